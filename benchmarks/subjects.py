"""The models that are measured, and the ways to train them: ours, the bound, and the others."""

import copy
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from datamodules.chunking import batch_documents
from lightning_app.files import JSON
from lightning_app.methods.method import Attached, Calibration
from lightning_app.methods.registry import build_method
from lightning_app.model.architecture import read_architecture
from lightning_app.model.attention import attend_without_masks, seen_within_documents
from lightning_app.model.base import base_without_weights, load_base
from lightning_app.model.ffn import PROJECTIONS, GatedFFN, find_gated_ffns
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import random_per_layer
from lightning_app.training.compilation import compile_layers

SHAPES: dict[str, JSON] = {
    "3m": {
        "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 4096,
    },
    "13m": {
        "model_type": "llama", "hidden_size": 320, "intermediate_size": 896, "num_hidden_layers": 6,
        "num_attention_heads": 5, "num_key_value_heads": 5, "vocab_size": 8192,
    },
    "37m": {
        "model_type": "llama", "hidden_size": 448, "intermediate_size": 1280, "num_hidden_layers": 9,
        "num_attention_heads": 7, "num_key_value_heads": 7, "vocab_size": 16_384,
    },
    "95m": {
        "model_type": "llama", "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 12,
        "num_attention_heads": 10, "num_key_value_heads": 10, "vocab_size": 26_000,
    },
    "llama-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
    },
    "nemo-12b": {
        "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131_072,
    },
    "aya-8b": {
        "model_type": "cohere", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 256_000,
    },
}  # fmt: skip

# Share of the paper's Welsh neurons of Llama-3.1-8B in each twelfth of the depth.
_MASK_SHAPE = (0.019, 0.024, 0.001, 0.002, 0.0005, 0.001, 0.01, 0.017, 0.028, 0.325, 0.449, 0.125)


def build_model(shape: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Returns a frozen model with random weights."""
    torch.manual_seed(0)
    config = read_architecture({**SHAPES[shape], "max_position_embeddings": 8192, "use_cache": False})
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    attend_without_masks(model)
    return model.requires_grad_(False).train()


def model_without_weights(shape: str, dtype: torch.dtype) -> PreTrainedModel:
    """Returns the same on the meta device."""
    return base_without_weights(None, None, dtype, {**SHAPES[shape], "max_position_embeddings": 8192}).model


def released_shape(layers: int, neurons_per_layer: int, share: float) -> NeuronSet:
    """Returns random neurons, ``share`` of all, distributed over the depth like a released mask."""
    total = share * layers * neurons_per_layer
    counts = [round(total * _MASK_SHAPE[layer * 12 // layers] * 12 / layers) for layer in range(layers)]
    return random_per_layer(counts, neurons_per_layer, seed=0)


@dataclass
class Subject:
    """One way to train: ``loss`` makes the graph, ``step`` makes a whole training step."""

    model: nn.Module
    loss: Callable[[], Tensor]
    step: Callable[[], None]
    optimizer: Optimizer | None


def _subject(model: nn.Module, decoder: nn.Module, head: OutputHead, ids: Tensor, trained: list[Tensor]) -> Subject:
    optimizer = AdamW(trained, lr=1e-4, weight_decay=0.01) if trained else None
    return _with(model, decoder, head, ids, optimizer, None)


def _with(
    model: nn.Module, decoder: nn.Module, head: OutputHead, ids: Tensor, optimizer: Optimizer | None,
    attached: Attached | None, seen: Callable[[], dict[str, Tensor]] = dict,
) -> Subject:  # fmt: skip
    def loss() -> Tensor:
        embedded = model.get_input_embeddings()(ids)  # type: ignore[operator]
        if optimizer is None:
            embedded = embedded.detach().requires_grad_()
        hidden = decoder(inputs_embeds=embedded, use_cache=False, **seen()).last_hidden_state
        return token_loss_sum(hidden[:, :-1], head, ids[:, 1:]) / ids[:, 1:].numel()

    def step() -> None:
        loss().backward()
        if optimizer is not None:
            clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if attached is not None:
            attached.after_step()

    return Subject(model, loss, step, optimizer)


def held_bytes(subject: Subject) -> int:
    """Returns the bytes of weights, trained numbers and optimiser states: what is there between two steps."""
    optimizer = subject.optimizer
    groups = optimizer.param_groups if optimizer is not None else []
    trained = [p for group in groups for p in group["params"]]
    states = [
        t for state in (optimizer.state.values() if optimizer else ()) for t in state.values() if t.is_floating_point()
    ]
    tensors = [*subject.model.parameters(), *subject.model.buffers(), *trained, *states]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def subjects(base: PreTrainedModel, neurons: NeuronSet, ids: Tensor, names: list[str]) -> dict[str, Subject]:
    """Returns the named ways to train ``base``, each on a copy; those that train small parts share its weights."""
    shared = {id(weight): weight for weight in base.parameters()}
    return {
        name: _BUILDERS[name](copy.deepcopy(base, {} if name in _OWN_WEIGHTS else dict(shared)), neurons, ids)
        for name in names
    }


def _frozen(model: PreTrainedModel, neurons: NeuronSet, ids: Tensor) -> Subject:
    """The bound: forward, and gradients with respect to inputs from the first layer on."""
    return _subject(model, model.base_model, OutputHead.of(model), ids, [])


def _method(
    name: str, is_compiled: bool = False, is_matched: bool = False, is_apart: bool = False, **keys: object
) -> Callable[..., Subject]:
    """One of our own methods, as a run would put it to work.

    Args:
        name: Of the method.
        is_compiled: Whether its layers are compiled.
        is_matched: Whether its rank is such that it trains as many parameters as the neurons have.
        is_apart: Whether no token sees another document than its own; a document is `_DOCUMENT` tokens long.
        keys: Of the method.
    """

    def build(model: PreTrainedModel, neurons: NeuronSet, ids: Tensor) -> Subject:
        own = {**keys, "rank": _matched_rank(name, model, neurons)} if is_matched else keys
        method = build_method(name, own)
        calibration = Calibration(lambda *_: list(ids), ids.device, nullcontext)
        chosen = method.choose(neurons, model, 0, calibration) if method.needs_neurons else None
        attached = method.attach(model, chosen)
        if is_compiled:
            compile_layers(model, attached)
        optimizer = attached.optimizer(lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999))
        batch = {"input_ids": ids}
        if is_apart:
            positions = (torch.arange(ids.shape[1]) % _DOCUMENT).expand_as(ids)
            apart = batch_documents([*torch.stack((ids.cpu(), positions), dim=1)])
            batch = {key: each.to(ids.device) for key, each in apart.items()}

        def seen() -> dict[str, Tensor]:  # as in every step: the mask is another for every batch
            inputs = seen_within_documents(model, batch)
            return {key: value for key, value in inputs.items() if key != "input_ids"}

        return _with(model, model.base_model, OutputHead.of(model), ids, optimizer, attached, seen)

    return build


def _matched_rank(name: str, model: PreTrainedModel, neurons: NeuronSet) -> int:
    """Returns the rank at which an adapter trains as many parameters as the neurons have."""
    wanted = neurons.parameters(model.config.hidden_size)
    each = copy.deepcopy(model).to("meta").requires_grad_(False)
    return max(1, round(wanted / build_method(name, {"rank": 1}).attach(each, None).trained_parameters))


class _Overwritten(nn.Module):
    """The paper's way: a full clone of the matrix with the rows written into it, in every forward."""

    def __init__(self, ffn: GatedFFN, projection: str, neurons: Tensor) -> None:
        super().__init__()
        linear = ffn.linear(projection)
        self.weight, self.bias, self.down, self.neurons = linear.weight, linear.bias, projection == "down", neurons
        self.rows = nn.Parameter(ffn.read(projection, neurons))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.clone()
        if self.down:
            weight[:, self.neurons] = self.rows.t()
        else:
            weight[self.neurons] = self.rows
        return nn.functional.linear(x, weight, self.bias)


def _clone(model: PreTrainedModel, neurons: NeuronSet, ids: Tensor) -> Subject:
    trained = []
    for ffn in find_gated_ffns(model):
        if ffn.layer not in neurons.layers:
            continue
        for projection in PROJECTIONS:
            wrapped = _Overwritten(ffn, projection, neurons.by_layer[ffn.layer].to(ids.device))
            setattr(ffn.module, f"{projection}_proj", wrapped)
            trained.append(wrapped.rows)
    return _subject(model, model.base_model, OutputHead.of(model), ids, trained)


def _quantized(build: Callable[..., Subject]) -> Callable[..., Subject]:
    """Returns the way of ``build`` on the same base in NF4, which is read from files, as a run reads it."""

    def build_on_four_bits(model: PreTrainedModel, neurons: NeuronSet, ids: Tensor) -> Subject:
        base = load_base(_files_of(model), None, model.dtype, "nf4", ids.device).model.train()
        attend_without_masks(base)
        return build(base, neurons, ids)

    return build_on_four_bits


def _files_of(model: PreTrainedModel) -> str:
    """Returns a folder with a model, which is there as long as this process; once for all that share its weights."""
    place = model.get_input_embeddings().weight.data_ptr()
    if place not in _WRITTEN:
        _WRITTEN[place] = tempfile.TemporaryDirectory()
        model.save_pretrained(_WRITTEN[place].name)
    return _WRITTEN[place].name


_WRITTEN: dict[object, "tempfile.TemporaryDirectory[str]"] = {}
_DOCUMENT = 200
_OF_NEURONS = ("random", "random_per_layer", "gradient")
_DENSE = ("ffn", "full", "last_layers", "hft", "ssu")
_BUILDERS: dict[str, Callable[..., Subject]] = {
    "frozen": _frozen,
    "packed": _method("subnetwork"),
    "documents": _method("subnetwork", is_apart=True),
    "packed_compiled": _method("subnetwork", is_compiled=True),
    "lora": _method("lora_matched"),
    "lora_compiled": _method("lora_matched", is_compiled=True),
    "clone": _clone,
    "masked": _method("subnetwork", engine="masked"),
    **{name: _method(name) for name in _OF_NEURONS},
    **{name: _method(name, is_matched=True) for name in ("lora_all", "dora", "shira")},
    "ia3": _method("ia3"),
    "nf4_frozen": _quantized(_frozen),
    "nf4_packed": _quantized(_method("subnetwork")),
    "nf4_lora": _quantized(_method("lora_matched")),
    **{name: _method(name) for name in _DENSE},
}
VARIANTS = tuple(_BUILDERS)
_OWN_WEIGHTS = ("masked", *_DENSE)
