"""The delta of a run: what training changed, with everything that says onto which base it belongs."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lightning_app import __version__
from lightning_app.adapted import Adaptation
from lightning_app.errors import UserError
from lightning_app.export.neuroglot_delta import row_digest
from lightning_app.files import JSON, UNREADABLE, digest, load_checkpoint, load_tensors, one_line, save_tensors
from lightning_app.identity import ModelIdentity
from lightning_app.model.base import base_without_weights
from lightning_app.model.base_files import BaseFiles, Patch
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.run import RunFolder

_KIND = "delta"
LICENCES = {"cis-lmu/GlotCC-V1": "Common Crawl's terms of use for the text, CC0-1.0 for the collection"}
_OF_RECORD = ("method", "settings", "lr", "seed", "targets")


@dataclass(frozen=True)
class Matrix:
    """A matrix that a delta changes.

    Attributes:
        weight: Its name in the model.
        shape: Its shape.
        layer: Of the decoder.
        dim: 0 where the neurons' vectors are rows, 1 where they are columns.
        offset: Added to a neuron's index: where gate and up are one matrix, the up rows come after the gate rows.
        vectors: The tensor of the file that holds them.
        replaces: Digest of the base's own vectors there, in the dtype of the file.
    """

    weight: str
    shape: list[int]
    layer: int
    dim: int
    offset: int
    vectors: str
    replaces: str


@dataclass(frozen=True, eq=False)
class LanguageDelta:
    """New vectors of the neurons that speak a language.

    Attributes:
        neurons: Which.
        vectors: What they are, by ``{layer}.{projection}``, (S, D), in the base's dtype.
        matrices: Where they go.
        model: The base.
        about: Language, text, licences and figures of the run.
    """

    neurons: NeuronSet
    vectors: dict[str, Tensor]
    matrices: list[Matrix]
    model: ModelIdentity
    about: JSON

    @property
    def language(self) -> str:
        """GlotCC codes of what it was trained for, + between."""
        return "+".join(self.about.get("language", [])) or "a language"

    @cached_property
    def identity(self) -> str:
        """Digest over what it changes."""
        return digest([vars(each) for each in self.matrices], self.neurons.pairs, *self.vectors.values())

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(each.nbytes for each in [*self.vectors.values(), *self.neurons.by_layer.values()])

    @classmethod
    def of(cls, checkpoint: Path, files: BaseFiles, has_masters: bool = False) -> "LanguageDelta":
        """Returns the delta of a checkpoint; reads one matrix of the base at a time, and no model.

        Args:
            checkpoint: Of a method that trains neurons.
            files: Of its base.
            has_masters: Whether to keep the vectors in the precision of training.

        Raises:
            UserError: The method trains something else, or the files are another base's.
        """
        loaded = load_checkpoint(checkpoint, is_mapped=True)
        adaptation = Adaptation.read(loaded)
        if adaptation.neurons is None:
            raise UserError(
                f"{checkpoint} was trained by method {adaptation.method.name}, which changes more than neurons' "
                "vectors; export it with --to hf"
            )
        shape = base_without_weights(str(files.folder), None)
        adaptation.base.require_same(replace(shape.identity, name=adaptation.base.name), "checkpoint", checkpoint)
        names = {id(weight): name for name, weight in shape.model.named_parameters()}
        neurons, vectors, matrices = adaptation.neurons, {}, []
        for ffn in find_gated_ffns(shape.model):
            for projection in ("gate", "up", "down"):
                key = f"{ffn.layer}.{projection}"
                if key not in loaded["state_dict"]:
                    continue
                weight, index = names[id(ffn.linear(projection).weight)], neurons.by_layer[ffn.layer]
                base = files.read(weight)
                new = loaded["state_dict"][key].clone()
                vectors[key] = new if has_masters else new.to(base.dtype)
                offset = int(ffn.rows_of(projection, torch.tensor(0)))
                dim = 1 if projection == "down" else 0
                old = base.index_select(dim, index + offset)
                matrices.append(
                    Matrix(weight, list(base.shape), ffn.layer, dim, offset, key, row_digest(old.t() if dim else old))
                )
        return cls(neurons, vectors, matrices, adaptation.base, about_run(checkpoint, loaded, adaptation))

    def scaled(self, files: BaseFiles, scale: float) -> "LanguageDelta":
        """Returns it with its change shrunk or stretched; raises `UserError` as `patches` does."""
        if scale == 1.0:
            return self
        vectors = {}
        for matrix in self.matrices:
            old, new = self.replaced(matrix, files), self.vectors[matrix.vectors]
            vectors[matrix.vectors] = old.float().lerp(new.float(), scale).to(new.dtype)
        return replace(self, vectors=vectors, about={**self.about, "scale": scale})

    def replaced(self, matrix: Matrix, files: BaseFiles) -> Tensor:
        """Returns the base's own vectors that a matrix's replace, (S, D); raises `UserError` where they are others."""
        index = self.neurons.by_layer[matrix.layer] + matrix.offset
        has_shape = files.shape(matrix.weight) == matrix.shape
        old = files.vectors(matrix.weight, matrix.dim, index) if has_shape else None
        if old is None or row_digest(old) != matrix.replaces:
            raise UserError(
                f"{matrix.weight} in {files.folder} is not that of {self.model.name}, which the delta was made for, or "
                "has a delta on the same neurons already; give its own base"
            )
        return old

    def save(self, path: Path) -> None:
        """Writes it to one safetensors file, atomically."""
        neurons = {f"{layer}.neurons": indices for layer, indices in self.neurons.by_layer.items()}
        matrices = [vars(each) for each in self.matrices]
        metadata = {**self.about, "version": __version__, "model": self.model.as_dict(), "matrices": matrices}
        metadata["digest"] = self.identity
        save_tensors(path, {**self.vectors, **neurons}, metadata, _KIND)

    @classmethod
    def load(cls, path: Path) -> "LanguageDelta":
        """Reads it.

        Raises:
            UserError: The file is missing, damaged or of a later version.
        """
        tensors, metadata = load_tensors(path, _KIND)
        try:
            matrices = [Matrix(**each) for each in metadata.pop("matrices")]
            model, written = ModelIdentity.read(metadata.pop("model")), metadata.pop("digest", None)
            neurons = NeuronSet({each.layer: tensors[f"{each.layer}.neurons"] for each in matrices})
            vectors = {each.vectors: tensors[each.vectors] for each in matrices}
            _require_shapes(neurons, vectors, matrices)
        except UNREADABLE as error:
            raise UserError(
                f"{path} is not a readable delta ({one_line(error)}); make it again from its run"
            ) from error
        delta = cls(neurons, vectors, matrices, model, metadata)
        if written not in (None, delta.identity):
            raise UserError(f"{path} is damaged: its vectors are not what was written; fetch it, or make it, again")
        return delta

    def patches(self, files: BaseFiles) -> dict[str, Patch]:
        """Returns what changes in the files of the base, by weight.

        Raises:
            UserError: The files are not those of the base, by the vectors that would be replaced.
        """
        patches: dict[str, Patch] = {}
        for matrix in self.matrices:
            old = self.replaced(matrix, files)
            index = self.neurons.by_layer[matrix.layer] + matrix.offset
            new = self.vectors[matrix.vectors].to(old.dtype)
            if (known := patches.get(matrix.weight)) is not None:  # gate and up in one matrix
                index, new = torch.cat([known.index, index]), torch.cat([known.vectors, new])
            patches[matrix.weight] = Patch(matrix.dim, index, new)
        return patches


def _require_shapes(neurons: NeuronSet, vectors: dict[str, Tensor], matrices: list[Matrix]) -> None:
    for each in matrices:
        index, found = neurons.by_layer[each.layer], vectors[each.vectors]
        if list(found.shape) != [len(index), each.shape[1 - each.dim]] or not torch.isfinite(found).all():
            raise ValueError(f"{each.vectors} does not fit {each.weight}, or is not finite")
        if int(index[0]) < 0 or int(index[-1]) + each.offset >= each.shape[each.dim]:
            raise ValueError(f"a neuron lies outside {each.weight}")


def about_run(checkpoint: Path, loaded: JSON, adaptation: Adaptation) -> JSON:
    """Returns language, text and figures of the run, as its record and the checkpoint itself know them."""
    record, states = RunFolder.of(checkpoint).record(), loaded.get("callbacks", {})
    about = {key: record[key] for key in _OF_RECORD if key in record}
    texts = [{"language": code, **text} for code, text in record.get("text", {}).items()]
    used = [{**text, "licence": LICENCES.get(text.get("data_set", ""), "the user's own")} for text in texts]
    before, best = states.get("Retention", {}).get("before", {}), states.get("BestCheckpoint", {}).get("kept", {})
    figures = {"step": best.get("step"), "before": before, "after": best.get("losses", {})}
    return {**about, "language": (adaptation.language or "").split(","), "text": used, "figures": figures}
