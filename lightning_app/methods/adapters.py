"""PEFT's adapters as methods: LoRA and its kin, DoRA, SHiRA and IA3, trained, saved and loaded by PEFT itself."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.distributed.tensor.experimental import implicit_replication
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.adapter_training import AdapterTraining
from lightning_app.methods.method import Method, Weights
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.layers import attention_linears, decoder_layers, names_of
from lightning_app.model.quantized import quantization_of
from lightning_app.model.shards import assembled, is_sharded
from lightning_app.neurons.neuron_set import NeuronSet

if TYPE_CHECKING:  # a second of imports that other methods spare
    from peft import PeftConfig

_RANK, _ALPHA = 62, 32  # the paper's


class AdapterMethod(Method):
    """What the PEFT methods have in common.

    Attributes:
        what: The adapter, for people.
    """

    what: ClassVar[str]
    result: ClassVar[str | None] = "adapter"

    @property
    def trains_beside(self) -> bool:
        return True

    @abstractmethod
    def config(self, base: PreTrainedModel, neurons: NeuronSet | None) -> "PeftConfig":
        """Returns PEFT's configuration for a base."""

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> AdapterTraining:
        return AdapterTraining(base, self.config(base, neurons), self.name, self.what, self.seed)

    def restore(
        self, base: PreTrainedModel, neurons: NeuronSet | None, weights: Weights, scale: float = 1.0,
        is_merged: bool = False,
    ) -> None:  # fmt: skip
        """Attaches the adapter to a base; at another scale than 1 it is merged into the base's weights.

        Nothing is merged into quantised ones, whose levels are farther apart than what training changes, nor into
        sharded ones.
        """
        attached = self.attach(base, neurons)
        attached.load_weights(weights)
        if scale != 1.0 and (quantization_of(base) is not None or is_sharded(base)):
            attached.scale_beside(scale)
        elif scale != 1.0 or is_merged:
            attached.write_scaled(scale)
        base.requires_grad_(False)


@dataclass(frozen=True)
class LoRA(AdapterMethod):
    """Trains low-rank matrices beside gate_proj, up_proj and down_proj (the paper's baseline, PEFT's LoRA).

    Args:
        rank: Of the adapter; the method's own where not given: 62, the paper's, or what equals a number of parameters.
        alpha: The change is scaled by alpha / rank; keeps the paper's ratio of 32 to 62 where not given.
        dropout: Of the adapter's input in training.
    """

    name: ClassVar[str] = "lora"
    what: ClassVar[str] = "a LoRA"
    uses_dora: ClassVar[bool] = False

    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_rank(self.rank)
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UserError(f"--model.alpha is {self.alpha}; expected a number above zero")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--model.dropout is {self.dropout}; expected a share of at least 0, below 1")

    def targets(self, base: PreTrainedModel) -> list[nn.Linear]:
        """Returns the linear layers that get an adapter."""
        return _ffn_linears(base)

    def rank_on(self, base: PreTrainedModel, neurons: NeuronSet | None) -> int:
        """Returns the rank on a base."""
        return self.rank or _RANK

    def config(self, base: PreTrainedModel, neurons: NeuronSet | None) -> "PeftConfig":
        from peft import LoraConfig

        rank = self.rank_on(base, neurons)
        _require_rank_within(self.rank, self.targets(base))
        alpha: Any = self.alpha or rank * _ALPHA / _RANK
        return LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=self.dropout,
            target_modules=names_of(base, self.targets(base)), use_dora=self.uses_dora,
        )  # fmt: skip


class LoRAOnAllLinears(LoRA):
    """Trains low-rank matrices beside every linear layer of the decoder."""

    name: ClassVar[str] = "lora_all"

    def targets(self, base: PreTrainedModel) -> list[nn.Linear]:
        return [each for layer in decoder_layers(base) for each in layer.modules() if isinstance(each, nn.Linear)]


class LoRAOfEqualSize(LoRA):
    """Trains a LoRA on the FFNs with as many parameters as the neurons that speak the language have."""

    name: ClassVar[str] = "lora_matched"
    needs_neurons: ClassVar[bool] = True

    def rank_on(self, base: PreTrainedModel, neurons: NeuronSet | None) -> int:
        wanted = (neurons or NeuronSet({})).parameters(find_gated_ffns(base)[0].down.out_features)
        per_rank = sum(linear.in_features + linear.out_features for linear in self.targets(base))
        return self.rank or max(1, round(wanted / per_rank))


class DoRA(LoRA):
    """Trains a LoRA whose matrices' lengths are trained apart from their directions (arXiv 2402.09353)."""

    name: ClassVar[str] = "dora"
    what: ClassVar[str] = "a DoRA"
    uses_dora: ClassVar[bool] = True

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> AdapterTraining:
        from peft.tuners.lora.dora import DoraLinearLayer

        with implicit_replication():  # the lengths of sharded matrices' rows are sharded as those
            attached = super().attach(base, neurons)
        for each in base.modules():
            if isinstance(each, DoraLinearLayer):
                each.weight = nn.Parameter(assembled(each.weight.detach()).to(each.weight.device))
        return attached


@dataclass(frozen=True)
class SHiRA(AdapterMethod):
    """Trains entries of gate_proj, up_proj and down_proj drawn at random, as many as a LoRA has (arXiv 2406.13175).

    Args:
        rank: Of the LoRA whose number of parameters is taken; 62, the paper's, where not given.
    """

    name: ClassVar[str] = "shira"
    what: ClassVar[str] = "a SHiRA"

    rank: int | None = None

    def __post_init__(self) -> None:
        _require_rank(self.rank)

    def config(self, base: PreTrainedModel, neurons: NeuronSet | None) -> "PeftConfig":
        from peft import ShiraConfig

        targets = _ffn_linears(base)
        _require_rank_within(self.rank, targets)
        config = ShiraConfig(
            task_type="CAUSAL_LM", r=self.rank or _RANK, random_seed=self.seed, target_modules=names_of(base, targets)
        )
        if targets[0].weight.is_meta:
            config.mask_fn = None  # which entries is nothing to ask of weights that are not there
        return config

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> AdapterTraining:
        from peft.tuners.shira import ShiraLayer

        attached = super().attach(base, neurons)
        for layer in base.modules():
            if isinstance(layer, ShiraLayer) and "default" not in layer.shira_indices:
                # Sparse tensors cannot be added on the meta device; what is added has the size of the matrix.
                vars(layer)["get_delta_weight"] = _DenseChange(layer)
        return attached


@dataclass(frozen=True, eq=False)
class _DenseChange:
    """Stands for the change of a layer whose weights are on the meta device."""

    layer: Any

    def __call__(self, adapter: str) -> Tensor:
        return self.layer.shira_weight[adapter].sum().expand_as(self.layer.get_base_layer().weight)


@dataclass(frozen=True)
class IA3(AdapterMethod):
    """Trains factors of keys, values and the input of down_proj (arXiv 2205.05638): the paper's smallest baseline."""

    name: ClassVar[str] = "ia3"
    what: ClassVar[str] = "IA3 factors"

    def config(self, base: PreTrainedModel, neurons: NeuronSet | None) -> "PeftConfig":
        from peft import IA3Config

        ffns = find_gated_ffns(base)
        named = {id(linear): name for name, linear in base.named_modules()}
        attention: list[str] = []
        for layer, ffn in zip(decoder_layers(base), ffns, strict=True):
            names = [named[id(linear)] for linear in attention_linears(layer, ffn)]
            keys_and_values = [name for name in names if name.rsplit(".", 1)[-1] in ("k_proj", "v_proj")]
            # Where query, key and value are one matrix its factors reach the queries too.
            attention += keys_and_values or [name for name in names if "qkv" in name]
        down = [named[id(ffn.down)] for ffn in ffns]
        return IA3Config(task_type="CAUSAL_LM", target_modules=[*attention, *down], feedforward_modules=down)


def _require_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise UserError(f"--model.rank is {rank}; expected a whole number above zero")


def _require_rank_within(rank: int | None, linears: list[nn.Linear]) -> None:
    longest = max(max(linear.in_features, linear.out_features) for linear in linears)
    if rank is not None and rank > longest:
        raise UserError(
            f"--model.rank is {rank}, but the matrices that it is for have {longest} rows or columns at most"
        )


def _ffn_linears(base: PreTrainedModel) -> list[nn.Linear]:
    return list(dict.fromkeys(linear for ffn in find_gated_ffns(base) for linear in (ffn.gate, ffn.up, ffn.down)))
