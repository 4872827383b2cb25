"""A base and what became of it, opened one at a time."""

from functools import cached_property
from pathlib import Path

import torch

from lightning_app.adapted import Adaptation, AdaptedModel, load_adapted
from lightning_app.analysis.weight_change import Vectors, read_vectors
from lightning_app.errors import UserError
from lightning_app.export.delta import LanguageDelta
from lightning_app.export.source import Source
from lightning_app.files import load_checkpoint
from lightning_app.languages import Language, find_language
from lightning_app.methods.adapter_training import merge_adapters
from lightning_app.model.base import load_base, on_device
from lightning_app.neurons.neuron_set import NeuronSet


class Subject:
    """A checkpoint, a delta or a base alone, with the models that it stands for. Holds one of them at a time.

    Args:
        path: Of a checkpoint or a delta; None of a base alone.
        base: Where the base is, if not under the name that it had in training.
        revision: Of the base; the one it had in training where not given.
        device: Where models go.

    Attributes:
        languages: That were adapted to; none of a base alone.
        neurons: That were trained; None where that is not said by neurons.
        has_change: Whether there is an adapted model beside its base.

    Raises:
        UserError: The file is damaged, or nothing says which base is meant.
    """

    def __init__(self, path: Path | None, base: str | None, revision: str | None, device: torch.device) -> None:
        if path is None and base is None:
            raise UserError("nothing says which model to look into; give its --model.base")
        self.path, self.device = path, device
        self.languages: list[Language] = []
        self.neurons: NeuronSet | None = None
        self.has_change = path is not None
        self._base, self._revision = base, revision
        self._open: tuple[bool, AdaptedModel] | None = None
        if path is not None:
            codes = self._read(path)
            self.languages = [find_language(code) for code in codes if code]

    def _read(self, path: Path) -> list[str]:
        if path.suffix == ".safetensors":
            delta = LanguageDelta.load(path)
            self.neurons = delta.neurons
            return list(delta.about.get("language", []))
        adaptation = Adaptation.read(load_checkpoint(path, is_mapped=True))
        self.neurons, self.has_change = adaptation.neurons, adaptation.architecture is None
        return (adaptation.language or "").split(",")

    def base(self) -> AdaptedModel:
        """Returns the base, in the dtype that it was adapted in."""
        return self._opened(is_adapted=False)

    def adapted(self) -> AdaptedModel:
        """Returns the adapted model.

        Raises:
            UserError: There is none.
        """
        if not self.has_change:
            raise UserError(f"{self.path or self._base} is a base; there is no adapted model of it here")
        return self._opened(is_adapted=True)

    @cached_property
    def before(self) -> Vectors:
        """Vectors of the trained neurons in the base; of all neurons where those are not known."""
        return read_vectors(self.base().model, self.neurons)

    def _opened(self, is_adapted: bool) -> AdaptedModel:
        if self._open is None or self._open[0] != is_adapted:
            self._open = None  # the other's memory first
            model = self._load(is_adapted)
            on_device(model.model, self.device)
            self._open = is_adapted, model
        return self._open[1]

    def _load(self, is_adapted: bool) -> AdaptedModel:
        if self.path is None:
            return load_adapted(str(self._base), revision=self._revision)
        if self.path.suffix != ".safetensors":
            scale = 1.0 if is_adapted or not self.has_change else 0.0
            adapted = load_adapted(self.path, self._base, self._revision, scale=scale)
            merge_adapters(adapted.model)
            return adapted
        source = Source.find([self.path], self._base, self._revision)
        if is_adapted:
            model = source.adapted()
            return AdaptedModel(model.eval(), source.delta.model, None, source.base)
        plain = load_base(source.base, source.revision, None)
        source.delta.model.require_same(plain.identity, "delta", self.path)
        return AdaptedModel(plain.model.eval(), plain.identity, None, source.base)
