"""Files of counts and of neurons, read with every value checked: what is wrong is said in one line, by its name."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.files import JSON, load_tensors
from lightning_app.identity import ModelIdentity

_MODEL = {"name": str, "revision": str, "fingerprint": str}
_SHAPE = ("layers", "neurons_per_layer", "hidden_size", "parameters")


class NeuronFile:
    """The tensors of a file and what it says of itself.

    Args:
        path: The file.
        kind: What it must be, as `save_tensors` was told.
        keys: What its metadata must have, beside version and model, and nothing else.
        optional: What its metadata may have.

    Raises:
        UserError: It is missing, damaged, of another kind or a later version, or has other metadata.
    """

    def __init__(self, path: Path, kind: str, keys: Iterable[str] = (), optional: Iterable[str] = ()) -> None:
        self.path, self.kind = path, kind
        self.tensors, self.metadata = load_tensors(path, kind)
        required = {"version", "model", *keys}
        if missing := sorted(required - set(self.metadata)):
            raise self.refuse(f"its metadata lacks {', '.join(missing)}")
        if unknown := sorted(set(self.metadata) - required - set(optional)):
            raise self.refuse(f"its metadata has {unknown[0][:60]!a}, which this version does not know")
        self.require(isinstance(self.metadata["version"], str), "version", "text")
        self.model = self._read_model()

    def refuse(self, reason: str) -> UserError:
        """Returns the error for a file with something wrong in it."""
        return UserError(f"{self.path} is not a sound {self.kind}: {reason}; make it again, or give another file")

    def require(self, is_sound: bool, name: str, expected: str) -> None:
        """Raises `UserError` unless a value of the metadata ``is_sound``."""
        if not is_sound:
            value = ascii(self.metadata.get(name))
            raise self.refuse(f"{name} is {value[:60]}{'...' if len(value) > 60 else ''}, expected {expected}")

    def text(self, name: str) -> str:
        """Returns a text of the metadata."""
        value = self.metadata[name]
        self.require(isinstance(value, str), name, "text")
        return value

    def share(self, name: str, without: tuple[int, ...] = ()) -> float | None:
        """Returns a number of the metadata from 0 to 1, where these ends may be left out; None where it is unknown."""
        value = self.metadata[name]
        is_share = type(value) in (int, float) and 0 <= value <= 1 and value not in without
        self.require(value is None or is_share, name, "a share of one, or null where it is unknown")
        return None if value is None else float(value)

    def table(self, name: str, codes: Iterable[str], kind: type, is_whole: bool = True) -> JSON:
        """Returns a table of the metadata with a value of one ``kind`` for each of ``codes``, or for some of them."""
        table: Any = self.metadata.get(name, {})
        codes = set(codes)
        self.require(isinstance(table, dict), name, "a table by language")
        fits = set(table) == codes if is_whole else set(table) <= codes
        if not fits or any(type(value) is not kind for value in table.values()):
            of = "each" if is_whole else "some"
            raise self.refuse(f"{name} has not one {kind.__name__} for {of} of {' '.join(sorted(codes)) or 'none'}")
        return table

    def by_language(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors by GlotCC code, all of them named ``prefix.code``."""
        for name in self.tensors:
            if not name.startswith(f"{prefix}.") or not name.isprintable():
                raise self.refuse(f"it holds {name[:60]!a}, expected {prefix}.LANGUAGE")
        return {name.removeprefix(f"{prefix}."): tensor for name, tensor in self.tensors.items()}

    def require_pairs(self, name: str) -> Tensor:
        """Returns a tensor of neurons of the model: int64 (neurons, 2), sorted, each once."""
        pairs = self.tensors[name]
        if pairs.dtype != torch.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise self.refuse(f"{name} is {describe(pairs)}, expected int64 of (neurons, 2)")
        if not len(pairs):
            return pairs
        layers, indices = pairs.unbind(1)
        for what, numbers, size in (
            ("layer", layers, self.model.layers),
            ("neuron", indices, self.model.neurons_per_layer),
        ):
            low, high = int(numbers.min()), int(numbers.max())
            if low < 0 or (size and high >= size):
                found = low if low < 0 else high
                raise self.refuse(
                    f"{name} names {what} {found}, {self.model.short_name} has {size or 'them from 0 up'}"
                )
        ascends = (layers[1:] > layers[:-1]) | ((layers[1:] == layers[:-1]) & (indices[1:] > indices[:-1]))
        if not bool(ascends.all()):
            raise self.refuse(f"{name} is not sorted with each neuron once")
        return pairs

    def _read_model(self) -> ModelIdentity:
        model: Any = self.metadata["model"]
        sound = isinstance(model, dict) and set(model) == {*_MODEL, *_SHAPE}
        sound = sound and all(isinstance(model[name], str) and model[name].isprintable() for name in _MODEL)
        sound = sound and all(type(model[name]) is int and model[name] >= 0 for name in _SHAPE)
        self.require(sound, "model", f"texts {', '.join(_MODEL)} and numbers {', '.join(_SHAPE)}")
        return ModelIdentity(**model)


def describe(tensor: Tensor) -> str:
    """Returns dtype and shape for people.

    >>> describe(torch.zeros(2, 3))
    'float32 of (2, 3)'
    """
    return f"{str(tensor.dtype).removeprefix('torch.')} of {tuple(tensor.shape)}"
