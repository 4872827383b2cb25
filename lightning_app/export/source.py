"""What is exported: a run's checkpoint, or one or several deltas, and the base that they go onto."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lightning_app.adapted import Adaptation, load_adapted
from lightning_app.errors import UserError
from lightning_app.export.delta import LanguageDelta, about_run
from lightning_app.export.neuroglot_delta import Delta
from lightning_app.export.stack import Policy, Stack
from lightning_app.files import JSON, load_checkpoint
from lightning_app.identity import ModelIdentity
from lightning_app.model.base import load_base
from lightning_app.model.base_files import BaseFiles


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        paths: Checkpoints, or the deltas of some; several where their languages are stacked.
        base: Hub name or folder.
        revision: Of the base.
        scale: Shrinks or stretches the change.
        has_masters: Whether a delta keeps the precision of training.
        policy: What becomes of neurons that several have.
        weights: One for each, where the policy takes some.
    """

    paths: tuple[Path, ...]
    base: str
    revision: str | None
    scale: float = 1.0
    has_masters: bool = False
    policy: Policy = "refuse"
    weights: tuple[float, ...] = ()

    @classmethod
    def find(
        cls, paths: Sequence[Path], base: str | None, revision: str | None, scale: float = 1.0,
        has_masters: bool = False, policy: Policy = "refuse", weights: Sequence[float] = (),
    ) -> "Source":  # fmt: skip
        """Returns it with the base that it was made from, where no other place of it is given.

        Raises:
            UserError: A number is out of its range, or the sources are of several bases.
        """
        if not 0 <= scale < float("inf"):
            raise UserError(f"--scale is {scale}; expected a number of at least 0")
        models = [_base_of(path) for path in paths]
        for path, model in zip(paths, models, strict=True):
            model.require_same(models[0], "the source", path)
        name, own = base or models[0].name, None if base else models[0].revision
        return cls(tuple(paths), name, revision or own or None, scale, has_masters, policy, tuple(weights))

    @cached_property
    def adaptation(self) -> Adaptation | None:
        """What the checkpoint says of itself; None where there are deltas."""
        path = self.paths[0]
        is_one = len(self.paths) == 1 and path.suffix != ".safetensors"
        return Adaptation.read(load_checkpoint(path, is_mapped=True)) if is_one else None

    @property
    def has_neurons(self) -> bool:
        """Whether neurons were trained, so that there is a delta."""
        return self.adaptation is None or self.adaptation.neurons is not None

    @cached_property
    def files(self) -> BaseFiles:
        """The files of the base; of the hub they are downloaded where not cached."""
        return BaseFiles.find(self.base, self.revision)

    @cached_property
    def stack(self) -> Stack:
        """The deltas as they were made; raises `UserError` where a method changed more than neurons' vectors."""
        every = (
            LanguageDelta.load(path)
            if path.suffix == ".safetensors"
            else LanguageDelta.of(path, self.files, self.has_masters)
            for path in self.paths
        )
        return Stack(tuple(every), self.policy, self.weights)

    @cached_property
    def delta(self) -> LanguageDelta:
        """What all of them do at the scale, as one delta of the base where it is now."""
        one = self.stack.scaled(self.files, self.scale).merged(self.files)
        return replace(one, model=replace(one.model, name=self.base, revision=self.revision or ""))

    @cached_property
    def about(self) -> JSON:
        """Language, text, licences and figures."""
        if self.has_neurons:
            return self.delta.about
        assert self.adaptation is not None
        return about_run(self.paths[0], load_checkpoint(self.paths[0], is_mapped=True), self.adaptation)

    @property
    def languages(self) -> list[str]:
        """GlotCC codes of what was trained for, each once."""
        if self.adaptation is not None:
            return [code for code in (self.adaptation.language or "").split(",") if code]
        return self.stack.languages

    def require_base(self, loaded: ModelIdentity) -> None:
        """Raises `UserError` where a loaded base is another than one of the checkpoints was trained on.

        Deltas know the vectors that they replace, and may go onto a base that has others.
        """
        for path in self.paths:
            if path.suffix != ".safetensors":
                _base_of(path).require_same(loaded, "checkpoint", path)

    def adapted(self, is_merged: bool = False) -> PreTrainedModel:
        """Returns the adapted model, in the dtype of the base's files, by another way than an export is written.

        An adapter stands beside the base's weights where it is not ``is_merged``.
        """
        if self.adaptation is not None:
            return load_adapted(self.paths[0], self.base, self.revision, scale=self.scale, is_merged=is_merged).model
        base = load_base(self.base, self.revision, None)
        self.require_base(base.identity)
        model = base.model
        named = dict(model.named_parameters())
        old = {matrix.weight: named[matrix.weight].clone() for matrix in self.delta.matrices}
        with torch.no_grad():
            if len(self.paths) == 1:
                Delta(self.paths[0]).apply(model)
                for name in old if self.scale != 1.0 else ():
                    named[name].copy_(old[name].float().lerp(named[name].float(), self.scale))
            else:
                _write_stack(self.stack, named, old, self.scale)
        return model


def _base_of(path: Path) -> ModelIdentity:
    if path.suffix == ".safetensors":
        return LanguageDelta.load(path).model
    adaptation = Adaptation.read(load_checkpoint(path, is_mapped=True))
    if adaptation.architecture is not None:
        raise UserError(f"{path} is of a base from scratch, which its run has saved already, in model/")
    return adaptation.base


def _write_stack(
    stack: Stack, named: dict[str, torch.nn.Parameter], old: dict[str, torch.Tensor], scale: float
) -> None:
    """Writes deltas into a model's weights, vector by vector: the plain way of what `Stack` does at once.

    Args:
        stack: What to write.
        named: The weights.
        old: Copies of those that change, as they are in the base.
        scale: Shrinks or stretches the change.
    """
    taken: dict[tuple[str, int, int], list[tuple[torch.Tensor, float]]] = {}
    weights = stack.weights or (1.0,) * len(stack.deltas)
    for delta, weight in zip(stack.deltas, weights, strict=True):
        for matrix in delta.matrices:
            index = (delta.neurons.by_layer[matrix.layer] + matrix.offset).tolist()
            for place, new in zip(index, delta.vectors[matrix.vectors], strict=True):
                taken.setdefault((matrix.weight, matrix.dim, place), []).append((new, weight))
    for (name, dim, place), every in taken.items():
        base = old[name].select(dim, place).double()
        new, total = every[-1][0].double(), sum(weight for _, weight in every)
        if len(every) > 1 and stack.policy != "ordered":
            new = base + sum((weight * (each.double() - base) for each, weight in every), 0 * base) / total
        named[name].select(dim, place).copy_(base + scale * (new - base) if scale != 1.0 else new)
