"""Training a subnetwork: the neurons that speak a language, and nothing else (arXiv 2510.13580, section 3)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.masked import MaskedEngine
from lightning_app.methods.method import Attached, Method
from lightning_app.methods.packed import PackedEngine
from lightning_app.model.ffn import PROJECTIONS, Projection, find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet


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

    def attach(self, base: PreTrainedModel, neurons: NeuronSet | None) -> Attached:
        engine = PackedEngine if self.engine == "packed" else MaskedEngine
        ordered = tuple(projection for projection in PROJECTIONS if projection in self.projections)
        return engine(find_gated_ffns(base), neurons or NeuronSet({}), ordered)
