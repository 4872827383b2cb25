"""Deltas on the files of a base, in a folder that says which, so that each can be taken off again bit for bit."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lightning_app import __version__
from lightning_app.errors import UserError
from lightning_app.export.delta import LanguageDelta
from lightning_app.export.stack import POLICIES, Policy, Stack
from lightning_app.export.whole import new_whole
from lightning_app.files import UNREADABLE, load_tensors, one_line, require_no_later_version, save_tensors, write_json
from lightning_app.model.base_files import BaseFiles, Patch

RECORD = "neuroglot"
"""The folder, beside the weights, that says what is on them: stack.json, the deltas, and what they replaced."""

_REPLACED = "replaced vectors"


@dataclass(frozen=True, eq=False)
class Applied:
    """A base in a folder, with deltas on it or none.

    Attributes:
        files: As they are now.
        stack: What is on them.
        replaced: The base's own vectors in the places of those that are on it, by weight.
    """

    files: BaseFiles
    stack: Stack = field(default_factory=lambda: Stack(()))
    replaced: dict[str, Patch] = field(default_factory=dict)

    @classmethod
    def find(cls, name: str, revision: str | None) -> "Applied":
        """Returns a base by folder or hub name.

        Raises:
            UserError: There is none, or what the folder says is on it is damaged.
        """
        files = BaseFiles.find(name, revision)
        record = files.folder / RECORD
        if not (record / "stack.json").is_file():
            return cls(files)
        try:
            said = json.loads((record / "stack.json").read_text(encoding="utf-8"))
            require_no_later_version(record / "stack.json", said["version"])
            deltas = tuple(LanguageDelta.load(record / Path(each).name) for each in said["deltas"])
            if said["policy"] not in POLICIES:
                raise ValueError(f"policy {said['policy']}")
            stack = Stack(deltas, said["policy"], tuple(said["weights"]))
        except UNREADABLE as error:
            said = one_line(error)
            raise UserError(f"{record}/stack.json is damaged ({said}); apply the deltas to the base again") from error
        return cls(files, stack, _read_replaced(record / "replaced.safetensors"))

    @property
    def base(self) -> BaseFiles:
        """The files, read as they are without any delta."""
        return _BareFiles(self.files.folder, self.replaced)

    def require_unchanged(self) -> None:
        """Raises `UserError` where the folder's vectors are others than those that were put there."""
        for weight, patch in self.stack.patches(self.base).items():
            if not torch.equal(self.files.vectors(weight, patch.dim, patch.index), patch.vectors):
                raise UserError(
                    f"{weight} in {self.files.folder} is not what the deltas there made of it: it was changed since; "
                    "apply them to the base again"
                )

    def with_deltas(self, deltas: Sequence[LanguageDelta], policy: Policy | None, weights: Sequence[float]) -> Stack:
        """Returns what is on it and ``deltas`` after that; the policy is the one it has where none is given."""
        every = (*self.stack.deltas, *deltas)
        own = self.stack.weights if policy is None and not deltas else ()
        return Stack(every, policy or self.stack.policy, tuple(weights) or own)

    def without(self, named: Callable[[LanguageDelta], bool]) -> Stack:
        """Returns what stays when those that are ``named`` go."""
        stays = [place for place, each in enumerate(self.stack.deltas) if not named(each)]
        weights = tuple(self.stack.weights[place] for place in stays) if self.stack.weights else ()
        return Stack(tuple(self.stack.deltas[place] for place in stays), self.stack.policy, weights)

    def write(self, stack: Stack, out: Path) -> None:
        """Writes the base with ``stack`` on it to a new folder: the same bytes but for the neurons' vectors.

        Never holds more than one matrix beside the deltas.

        Raises:
            UserError: The folder exists or cannot be written, the base is another than a delta was made for, the folder
                was changed since, or neurons are shared and no policy says what becomes of them.
        """
        self.require_unchanged()
        base, patches = self.base, stack.patches(self.base)
        with new_whole(out, self.files.bytes + self.record_bytes(stack)) as temporary:
            self.files.copy(temporary, self.replaced, patches)
            if stack.deltas:
                replaced = {
                    name: Patch(patch.dim, patch.index, base.vectors(name, patch.dim, patch.index))
                    for name, patch in patches.items()
                }
                _write_record(temporary / RECORD, stack, replaced)

    @staticmethod
    def record_bytes(stack: Stack) -> int:
        """Returns about what the record of a stack takes, at most."""
        return 2 * sum(each.nbytes for each in stack.deltas)


class _BareFiles(BaseFiles):
    """Files of a base with deltas on it, in which the base's own vectors are read."""

    def __init__(self, folder: Path, replaced: dict[str, Patch]) -> None:
        super().__init__(folder)
        self._replaced = replaced

    def read(self, weight: str) -> Tensor:
        found, patch = super().read(weight), self._replaced.get(weight)
        if patch is None:
            return found
        return found.index_copy(patch.dim, patch.index, patch.vectors.t() if patch.dim else patch.vectors)


def _write_record(folder: Path, stack: Stack, replaced: dict[str, Patch]) -> None:
    folder.mkdir()
    names = [f"{number}-{each.language}.safetensors" for number, each in enumerate(stack.deltas)]
    for name, delta in zip(names, stack.deltas, strict=True):
        delta.save(folder / name)
    said = {"version": __version__, "deltas": names, "policy": stack.policy, "weights": list(stack.weights)}
    write_json(folder / "stack.json", said)
    tensors = {name: patch.vectors for name, patch in replaced.items()}
    tensors |= {f"{name}.index": patch.index for name, patch in replaced.items()}
    dims = {name: patch.dim for name, patch in replaced.items()}
    save_tensors(folder / "replaced.safetensors", tensors, {"version": __version__, "dims": dims}, _REPLACED)


def _read_replaced(path: Path) -> dict[str, Patch]:
    tensors, metadata = load_tensors(path, _REPLACED)
    try:
        dims: dict[str, int] = metadata["dims"]
        return {name: Patch(dim, tensors[f"{name}.index"], tensors[name]) for name, dim in dims.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); apply the deltas to the base again") from error
