"""An adapted model: a base plus what a run trained, as a plain transformers model. No Trainer needed.

adapted = load_adapted("runs/cy-Llama-3.1-8B-3f2a91")
ids = adapted.tokenizer("Mae", return_tensors="pt").input_ids
print(adapted.tokenizer.decode(adapted.model.generate(ids)[0]))
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from types import NoneType

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_app import __version__
from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, load_checkpoint, one_line
from lightning_app.identity import ModelIdentity
from lightning_app.methods.method import Method
from lightning_app.methods.registry import build_method
from lightning_app.model.base import Base, load_base, load_tokenizer, new_base
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.run import RunFolder

Loader = Callable[[str, str | None, torch.dtype, str | None], Base]
"""Returns a base by its name, its revision, a dtype and what it was quantised to in training."""

_KEY = "neuroglot"
_KINDS: dict[str, tuple[type, ...]] = {
    "architecture": (dict, NoneType), "dtype": (str,), "tokenizer": (str,), "language": (str, NoneType),
    "method": (str,), "keys": (dict,), "trained": (dict,), "quantization": (str, NoneType),
}  # fmt: skip


@dataclass(frozen=True)
class Adaptation:
    """What a checkpoint says of itself: with its weights, enough to rebuild the adapted model.

    Attributes:
        base: The model that was adapted.
        architecture: Configuration of a base that was trained from scratch; None of one that was loaded.
        dtype: Of the base's weights in training, by torch's name; of the products of quantised ones.
        quantization: What the base's matrices were kept in in training, ``nf4`` or ``int8``; None of one as it is.
        tokenizer: Hub name or folder.
        language: GlotCC codes of the targets, comma between; None of a mixture.
        method: What was trained, and how.
        trained: Identity of what was trained; see `Attached.identity`.
        neurons: The neurons that the method was given, or None where it needs none.
    """

    base: ModelIdentity
    architecture: JSON | None
    dtype: str
    quantization: str | None
    tokenizer: str
    language: str | None
    method: Method
    trained: JSON
    neurons: NeuronSet | None

    @classmethod
    def read(cls, checkpoint: JSON) -> "Adaptation":
        """Returns what a loaded checkpoint says.

        Raises:
            UserError: It was made by another program, or another version of this one, or says what cannot be.
        """
        if not isinstance(checkpoint.get(_KEY), dict):
            raise UserError("the checkpoint was not made by Neuroglot; give one from a run's checkpoints folder")
        own = dict(checkpoint[_KEY])
        version = own.pop("version", "0.1.0")
        if own.keys() != {*(field.name for field in fields(cls)), "keys"}:
            raise UserError(
                f"the checkpoint was made by Neuroglot {str(version)[:9]}, which this version cannot read; train again"
            )
        weights = checkpoint.get("state_dict")
        if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
            raise UserError("the checkpoint holds no trained weights; give another one")
        try:
            return cls._of(own)
        except UNREADABLE as error:
            raise UserError(
                f"the checkpoint says of itself what cannot be ({one_line(error)}); give another one"
            ) from error

    @classmethod
    def _of(cls, own: JSON) -> "Adaptation":
        """Returns what the parts say, or raises one of `UNREADABLE`."""
        pairs: Tensor | None = own["neurons"]
        if pairs is not None and (pairs.dtype != torch.int64 or pairs.ndim != 2 or pairs.shape[1] != 2):
            raise ValueError(f"neurons are {pairs.dtype} of {tuple(pairs.shape)}")
        for name, kinds in _KINDS.items():
            if not isinstance(own[name], kinds):
                raise TypeError(f"{name} is {str(own[name])[:40]}")
        if not getattr(torch, own["dtype"]).is_floating_point:
            raise ValueError(f"dtype is {own['dtype']}")
        own["neurons"] = NeuronSet.from_pairs(pairs) if pairs is not None else None
        own["base"] = ModelIdentity.read(own["base"])
        own["method"] = build_method(own["method"], own.pop("keys"))
        return cls(**own)

    def write(self, checkpoint: JSON) -> None:
        """Puts this into a checkpoint that is about to be saved."""
        names = ("architecture", "dtype", "quantization", "tokenizer", "language", "trained")
        own: JSON = {name: getattr(self, name) for name in names}
        own |= {"version": __version__, "base": self.base.as_dict()}
        own |= {"method": self.method.name, "keys": asdict(self.method)}
        checkpoint[_KEY] = own | {"neurons": self.neurons.pairs if self.neurons is not None else None}

    def require_same(self, other: "Adaptation") -> None:
        """Raises `UserError` unless a run that makes ``other`` can go on from this one's checkpoint."""
        mine, theirs = (
            {
                "base": each.base.fingerprint if each.architecture is None else "",
                "quantization": each.quantization,
                **each.trained,
            }
            for each in (self, other)
        )
        for key, expected in theirs.items():
            if mine.get(key) != expected:
                raise UserError(
                    f"the checkpoint belongs to another {key}: found {mine.get(key) or 'none'}, expected "
                    f"{expected or 'none'}; give this run's checkpoint, or the --model keys it was made with"
                )


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A transformers model and what it is.

    Attributes:
        model: Frozen, in evaluation mode, on the CPU.
        base: The base's identity.
        adaptation: What was trained; None of a base as it is.
        tokenizer_name: Where its tokenizer is.
    """

    model: PreTrainedModel
    base: ModelIdentity
    adaptation: Adaptation | None
    tokenizer_name: str

    @property
    def as_base(self) -> Base:
        """The model with the identity of its base."""
        return Base(self.model, self.base)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, loaded on first use."""
        is_the_bases = self.tokenizer_name == self.base.name
        return load_tokenizer(self.tokenizer_name, self.base.revision or None if is_the_bases else None)


def as_it_is(name: str, revision: str | None, dtype: torch.dtype, quantization: str | None) -> Base:
    """Loads a base to the CPU, not quantised, however it was in training."""
    return load_base(name, revision, dtype)


def as_trained(device: torch.device) -> Loader:
    """Returns what loads a base to a device as it was in training, quantised or not."""
    return partial(load_base, device=device)


def load_adapted(
    source: str | Path,
    base: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    is_merged: bool = False,
    load: Loader = as_it_is,
) -> AdaptedModel:
    """Loads an adapted model, or a base as it is.

    Args:
        source: A run folder (its best checkpoint), a checkpoint, or a base: a hub name or a folder.
        base: Where the base is, if not under the name that it had in training.
        revision: Branch, tag or commit of the base; the one it had in training where not given.
        dtype: Of the weights; as in training, or as the base's files have it, where not given.
        scale: Shrinks or stretches what training changed; 0 is the base.
        is_merged: Whether an adapter is written into the base's weights, so that transformers alone saves the model.
        load: Loads the base, quantised or as a part of it on every process for example. Where not given it is as it
            is: what was trained on a quantised base fits that, and it is what `export` writes.

    Raises:
        UserError: There is nothing there, it is damaged, or the base is another one than was adapted.
    """
    path = Path(source)
    if (folder := RunFolder(path)).record_file.is_file():
        best = folder.best_checkpoint()
        if best is None:
            raise UserError(f"{path} has no best checkpoint yet; the same fit command goes on with the run")
        path = best
    elif path.suffix != ".ckpt":
        plain = load_base(str(source), revision, dtype)
        return AdaptedModel(plain.model.eval(), plain.identity, None, str(source))
    checkpoint = load_checkpoint(path, is_mapped=True)
    adaptation = Adaptation.read(checkpoint)
    dtype = adaptation.method.weight_dtype(dtype or getattr(torch, adaptation.dtype))
    rebuilt = _rebuild(adaptation, base, revision, dtype, load)
    if adaptation.architecture is None:
        adaptation.base.require_same(rebuilt.identity, "checkpoint", path)
    adaptation.method.restore(rebuilt.model, adaptation.neurons, checkpoint["state_dict"], scale, is_merged)
    is_the_bases = adaptation.tokenizer == adaptation.base.name
    tokenizer = rebuilt.identity.name if is_the_bases else adaptation.tokenizer
    return AdaptedModel(rebuilt.model.eval(), rebuilt.identity, adaptation, tokenizer)


def _rebuild(adaptation: Adaptation, name: str | None, revision: str | None, dtype: torch.dtype, load: Loader) -> Base:
    if adaptation.architecture is not None and name is not None:
        raise UserError(f"the checkpoint is of a base from scratch, not of {name}; leave --model.base out (null)")
    if adaptation.architecture is not None:
        return new_base(adaptation.architecture, load_tokenizer(adaptation.tokenizer), dtype)
    revision = revision or adaptation.base.revision or None
    return load(name or adaptation.base.name, revision, dtype, adaptation.quantization)
