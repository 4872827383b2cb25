"""A PEFT adapter at work on a base: trained, saved, scaled and merged by PEFT."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.method import Attached, Weights
from lightning_app.model.shards import is_first

if TYPE_CHECKING:  # a second of imports that other methods spare
    from peft import PeftConfig


class AdapterTraining(Attached):
    """Trains a PEFT adapter beside a base that stays as it is.

    Args:
        base: The base; its adapted layers are replaced in place.
        config: PEFT's configuration.
        name: Of the method.
        what: Its adapter, for people: ``a LoRA``.
        seed: Of what PEFT draws.
    """

    def __init__(self, base: PreTrainedModel, config: "PeftConfig", name: str, what: str, seed: int) -> None:
        from peft import get_peft_model

        super().__init__()
        # What PEFT draws must not depend on what was drawn before: a resumed run has not profiled.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                peft_model = get_peft_model(base, config)
            except ValueError as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"--model.method {name} does not fit this base: {reason}") from error
        # In a tuple, so that the base is no part of this module and its parameters stand in one place only.
        self._peft, self._name, self._what = (peft_model,), name, what

    def trained(self) -> Sequence[Tensor]:
        return [parameter for parameter in self._peft[0].parameters() if parameter.requires_grad]

    def weights(self) -> Weights:
        from peft import get_peft_model_state_dict

        return {name: tensor.detach() for name, tensor in get_peft_model_state_dict(self._peft[0]).items()}

    def load_weights(self, weights: Weights) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._peft[0], weights)

    def identity(self) -> dict[str, object]:
        config: Any = self._peft[0].peft_config["default"]
        own = {"rank": getattr(config, "r", None), "alpha": getattr(config, "lora_alpha", None)}
        return {"method": self._name, **own, "targets": sorted(config.target_modules)}

    def describe(self) -> str:
        config: Any = self._peft[0].peft_config["default"]
        rank = f" of rank {config.r}" if hasattr(config, "r") else ""
        suffixes = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in config.target_modules))
        return f"{self._what}{rank} on {', '.join(sorted(suffixes))}"

    def save(self, folder: Path) -> None:
        if is_first():  # every one has the whole adapter
            self._peft[0].save_pretrained(str(folder))

    @torch.no_grad()
    def write_scaled(self, scale: float) -> None:
        """Writes ``scale`` times what the adapter changes into the base's own weights, and takes the adapter off."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        peft_model = self._peft[0]
        for layer in peft_model.modules():
            if isinstance(layer, BaseTunerLayer):
                own: Iterable[nn.Parameter] = list(layer.get_base_layer().parameters())
                before = [weight.clone() for weight in own]
                layer.merge()
                for weight, old in zip(layer.get_base_layer().parameters(), before, strict=True):
                    weight.copy_(old.lerp(weight, scale))
                layer.merged_adapters.clear()
        peft_model.unload()

    def scale_beside(self, scale: float) -> None:
        """Lets what the adapter changes count ``scale`` times, where it stays beside the base's weights.

        Raises:
            UserError: It is no sum beside them, so that only all or nothing of it can count.
        """
        from peft.tuners.lora import LoraLayer
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in self._peft[0].modules():
            if isinstance(layer, LoraLayer) and not any(layer.use_dora.values()):
                layer.scale_layer(scale)
            elif isinstance(layer, BaseTunerLayer):
                if scale != 0.0:
                    raise UserError(
                        f"{self._what} on a quantised base cannot count {scale:g} times; expected 0 or 1, or "
                        "export it first: its scale can be any on the base as it is"
                    )
                layer.enable_adapters(False)


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> None:
    """Writes the adapters that `AdapterMethod.restore` attached into the weights, and leaves the plain modules."""
    if not any(type(module).__module__.startswith("peft.") for module in model.modules()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model.requires_grad_(False)
