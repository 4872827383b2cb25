"""Training neurons: those that speak a language (arXiv 2510.13580, section 3), and others for comparison."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.gradient import score_neurons
from lightning_app.methods.masked import MaskedEngine
from lightning_app.methods.method import Attached, Calibration, Method
from lightning_app.methods.packed import PackedEngine
from lightning_app.model.ffn import PROJECTIONS, Projection, find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import highest_neurons, random_neurons, random_per_layer


@dataclass(frozen=True)
class SubnetworkTraining(Method):
    """Trains rows of gate_proj and up_proj and columns of down_proj.

    Args:
        engine: ``packed`` (rows only, fast) or ``masked`` (gradient masks on full matrices, the reference).
        projections: Which of gate, up and down are trained.
    """

    name: ClassVar[str] = "subnetwork"
    needs_neurons: ClassVar[bool] = True

    engine: Literal["packed", "masked"] = "packed"
    projections: tuple[Projection, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        if not self.projections:
            raise UserError("--model.projections is empty; expected some of gate, up and down")
        if len(set(self.projections)) < len(self.projections):
            raise UserError(f"--model.projections is {', '.join(self.projections)}; name each projection once")

    @property
    def trains_beside(self) -> bool:
        return self.engine == "packed"

    def widened(self, base: PreTrainedModel) -> Iterable[nn.Linear]:
        ffns = find_gated_ffns(base) if self.engine == "masked" else ()  # which neurons is not known yet
        return {linear for ffn in ffns for linear in (ffn.gate, ffn.up, ffn.down)}

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        engine = PackedEngine if self.engine == "packed" else MaskedEngine
        ordered = tuple(projection for projection in PROJECTIONS if projection in self.projections)
        return engine(find_gated_ffns(base), neurons or NeuronSet({}), ordered)


class RandomNeurons(SubnetworkTraining):
    """Trains as many neurons as speak the language, drawn from all layers alike: the paper's random baseline."""

    name: ClassVar[str] = "random"

    def choose(
        self, neurons: NeuronSet, base: PreTrainedModel, first_layer: int, calibration: Calibration
    ) -> NeuronSet:
        ffns = find_gated_ffns(base)
        return self.draw(neurons, len(ffns), ffns[0].neurons, first_layer)

    def draw(self, neurons: NeuronSet, layers: int, neurons_per_layer: int, first_layer: int) -> NeuronSet:
        """Returns neurons in the place of those that speak the language; the same for the same seed."""
        return random_neurons(len(neurons), layers, neurons_per_layer, self.seed, first_layer)


class RandomNeuronsPerLayer(RandomNeurons):
    """Trains as many neurons in each layer as speak the language there, but others: its depth without its neurons."""

    name: ClassVar[str] = "random_per_layer"

    def draw(self, neurons: NeuronSet, layers: int, neurons_per_layer: int, first_layer: int) -> NeuronSet:
        return random_per_layer(neurons.per_layer(layers), neurons_per_layer, self.seed)


@dataclass(frozen=True)
class GradientNeurons(SubnetworkTraining):
    """Trains as many neurons as speak the language: those that its loss depends on most, by activation x gradient.

    Args:
        calibration_sequences: Sequences of text that are looked at before training.
        calibration_tokens: Tokens in each of them; at most the base's context.
    """

    name: ClassVar[str] = "gradient"
    chooses_by_text: ClassVar[bool] = True

    calibration_sequences: int = 500
    calibration_tokens: int = 2048

    def choose(
        self, neurons: NeuronSet, base: PreTrainedModel, first_layer: int, calibration: Calibration
    ) -> NeuronSet:
        blocks = calibration.blocks(None, self.calibration_sequences, self.calibration_tokens)
        return highest_neurons(score_neurons(base, blocks, calibration), len(neurons), first_layer)
