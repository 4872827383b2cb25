"""Which model a file belongs to: recognised by a fingerprint of its weights, not by its path."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_app.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLES_PER_TENSOR = 256
_TEXTS = ("name", "revision", "fingerprint")


@dataclass(frozen=True)
class ModelIdentity:
    """A base model as atlas, subnetwork and checkpoint files name it.

    Attributes:
        name: Hub repository or folder it was loaded from.
        revision: Commit on the hub, empty for a folder.
        fingerprint: Digest over a sample of every weight, empty where the weights were never seen (released masks).
        layers: L.
        neurons_per_layer: N.
        hidden_size: D.
        parameters: All parameters, tied ones once.
    """

    name: str
    revision: str
    fingerprint: str
    layers: int
    neurons_per_layer: int
    hidden_size: int
    parameters: int

    @classmethod
    def read(cls, parts: object) -> "ModelIdentity":
        """Returns the identity that `as_dict` gave; raises `ValueError` where the parts are none."""
        kinds = {name: str if name in _TEXTS else int for name in cls.__dataclass_fields__}
        if not isinstance(parts, dict) or {name: type(part) for name, part in parts.items()} != kinds:
            raise ValueError(f"expected texts {', '.join(_TEXTS)} and numbers of a model")
        if any(part < 0 if isinstance(part, int) else not part.isprintable() for part in parts.values()):
            raise ValueError("a text or number of the model is none that can be")
        return cls(**parts)

    @property
    def short_name(self) -> str:
        """Name for files and folders."""
        return short_name(self.name)

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name} [{self.fingerprint or 'no fingerprint'}]"

    def require_same(self, other: "ModelIdentity", what: str, where: Path | str) -> None:
        """Raises `UserError` unless ``other`` is this model, as far as both sides know."""
        mine = self.layers, self.neurons_per_layer, self.hidden_size
        theirs = other.layers, other.neurons_per_layer, other.hidden_size
        differs = any(a and b and a != b for a, b in zip(mine, theirs, strict=True))
        if self.fingerprint and other.fingerprint and self.fingerprint != other.fingerprint:
            differs = True
        if differs:
            raise UserError(
                f"{what} {where} belongs to another model: {self} with {mine[0]} layers of {mine[1]} neurons, "
                f"but the base here is {other} with {theirs[0]} layers of {theirs[1]}; give the file made for this base"
            )


def short_name(name: str) -> str:
    """Returns the last part of a hub name or folder; a run's ``model`` folder goes by the run's name.

    >>> short_name("meta-llama/Llama-3.1-8B"), short_name("runs/base/model")
    ('Llama-3.1-8B', 'base')
    """
    path = Path(name)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def fingerprint(
    parameters: "Iterable[tuple[str, Tensor]]", seen: Callable[[int], object] = lambda read_bytes: None
) -> str:
    """Returns a digest over every named weight: its shape, the sum of its bits, and 256 entries spread over it.

    The sum sees a change of any single entry, the entries see an exchange. Both are taken in bf16, so that a base
    loaded in fp32 and in bf16 is the same base. Costs one pass over the weights: seconds at 8B parameters.

    Args:
        parameters: Weights by name, in the order of their names.
        seen: Called with the bytes of each once it was read.
    """
    import torch

    sha = hashlib.sha256()
    for name, weight in parameters:
        bits = weight.detach().to(torch.bfloat16).flatten().view(torch.int16)
        # An odd step does not keep to one column of a matrix whose width is a power of two.
        step = max(1, bits.numel() // _SAMPLES_PER_TENSOR) | 1
        sha.update(f"{name}{tuple(weight.shape)}{bits.sum(dtype=torch.int64).item()}".encode())
        sha.update(bits[::step].to("cpu").numpy().tobytes())
        seen(weight.nbytes)
    return sha.hexdigest()[:16]
