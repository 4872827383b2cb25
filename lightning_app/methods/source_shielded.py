"""Source-Shielded Updates (arXiv 2512.04844): what matters most to the source language is frozen, the rest trains."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.adamw import MaskedAdamW
from lightning_app.methods.dense import DenseMethod, DenseTraining
from lightning_app.methods.masked import mask_gradients, masking, require_masked
from lightning_app.methods.method import Attached, Calibration, Weights
from lightning_app.model.layers import decoder_layers, names_of
from lightning_app.model.shards import summed_over_rows
from lightning_app.neurons.neuron_set import NeuronSet

_FROZEN = "frozen_columns."


@dataclass(frozen=True)
class SourceShieldedUpdates(DenseMethod):
    """Freezes the columns of each decoder matrix that the source language uses most, and trains everything else.

    Differs: weight decay does not reach the frozen columns, which stay bit-identical.

    Args:
        source_language: The language to shield.
        freeze_ratio: Share of each matrix's columns to freeze.
        calibration_sequences: Sequences of text that are looked at before training.
        calibration_tokens: Tokens in each of them; at most the base's context.
    """

    name: ClassVar[str] = "ssu"
    lr: ClassVar[float] = 5e-5  # the paper's
    what: ClassVar[str] = "every weight but the columns that the source language uses most"

    source_language: str = "en"
    freeze_ratio: float = 0.5
    calibration_sequences: int = 500
    calibration_tokens: int = 2048

    def __post_init__(self) -> None:
        if not 0 <= self.freeze_ratio < 1:
            raise UserError(f"--model.freeze_ratio is {self.freeze_ratio}; expected a share of at least 0, below 1")
        if self.calibration_sequences < 1 or self.calibration_tokens < 2:
            raise UserError("--model.calibration_sequences must be above zero, --model.calibration_tokens above one")

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        return SourceShieldedTraining(base, self)


class SourceShieldedTraining(DenseTraining):
    """Trains a base under masks of columns, which calibration finds.

    Args:
        base: The base.
        method: Its keys.
    """

    def __init__(self, base: PreTrainedModel, method: SourceShieldedUpdates) -> None:
        super().__init__(base, base.parameters(), method)
        self._method: SourceShieldedUpdates = method
        linears = [each for layer in decoder_layers(base) for each in layer.modules() if isinstance(each, nn.Linear)]
        named = dict(base.named_modules())
        self._linears = {name: named[name] for name in names_of(base, linears)}
        for name, linear in self._linears.items():
            # What is trained, one flag per column; all of it until calibration has looked.
            trains = torch.ones(linear.in_features, dtype=torch.bool, device=linear.weight.device)
            self.register_buffer(_buffer(name), trains, persistent=False)
            mask_gradients(linear.weight, partial(self._mask, name))

    def _trains(self, name: str) -> Tensor:
        return self.get_buffer(_buffer(name))

    def _mask(self, name: str, grad: Tensor) -> Tensor:
        return masking(self._trains(name))(grad)

    @property
    def trained_parameters(self) -> int:
        frozen = sum(
            linear.out_features * _frozen_columns(linear.in_features, self._method.freeze_ratio)
            for linear in self._linears.values()
        )
        return super().trained_parameters - frozen

    @torch.no_grad()
    def calibrate(self, calibration: Calibration) -> None:
        """Freezes, in each matrix, the columns with the highest sum of |weight| times the norm of their input."""
        method = self._method
        blocks = calibration.blocks(method.source_language, method.calibration_sequences, method.calibration_tokens)
        squares = _input_squares(self.base, self._linears, blocks, calibration)
        for name, linear in self._linears.items():
            score = summed_over_rows(linear.weight, torch.abs) * squares[name].sqrt()
            highest = score.sort(descending=True, stable=True).indices
            self._trains(name).fill_(True)[highest[: _frozen_columns(len(score), method.freeze_ratio)]] = False

    def weights(self) -> Weights:
        return super().weights() | {f"{_FROZEN}{name}": ~self._trains(name) for name in self._linears}

    def load_weights(self, weights: Weights) -> None:
        super().load_weights({name: weight for name, weight in weights.items() if not name.startswith(_FROZEN)})
        for name in self._linears:
            self._trains(name).copy_(~weights[f"{_FROZEN}{name}"])

    def optimizer(self, lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
        """Returns AdamW, with weight decay on what is trained alone."""
        masks = {id(linear.weight): self._trains(name) for name, linear in self._linears.items()}
        trained = self.trained()
        return MaskedAdamW(trained, [masks.get(id(weight)) for weight in trained], lr, weight_decay, betas)

    def require_frozen_gradients_zero(self) -> None:
        """Raises `RuntimeError` where a hook did not reach a gradient."""
        for name, linear in self._linears.items():
            require_masked(linear.weight.grad, self._trains(name))


def _buffer(name: str) -> str:
    return f"trains {name}".replace(".", " ")


def _frozen_columns(columns: int, ratio: float) -> int:
    return int(columns * ratio)


def _input_squares(
    base: PreTrainedModel, linears: dict[str, nn.Linear], blocks: Iterable[Tensor], calibration: Calibration
) -> dict[str, Tensor]:
    """Returns the sum over tokens of the squared input of every linear layer, float64 (in_features,)."""
    squares = {
        name: torch.zeros(linear.in_features, dtype=torch.float64, device=calibration.device)
        for name, linear in linears.items()
    }

    def add(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares[name] += inputs[0].double().flatten(0, -2).square().sum(0)

        return hook

    hooks = [linear.register_forward_pre_hook(add(name)) for name, linear in linears.items()]
    training = base.training
    try:
        base.eval()
        for block in blocks:
            with calibration.forward_context():
                base.base_model(input_ids=block.to(calibration.device).unsqueeze(0), use_cache=False)
    finally:
        base.train(training)
        for hook in hooks:
            hook.remove()
    return squares
