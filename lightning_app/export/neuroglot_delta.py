"""Puts a language onto a transformers model, and takes it off again bit for bit. Needs torch and safetensors alone.

    model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B", dtype="auto")
    welsh, maltese = Delta("welsh.safetensors").apply(model), Delta("maltese.safetensors")
    welsh.remove()  # the base again; this and another apply() read no file and no digest
    maltese.apply(model)

A delta holds the new vectors of the neurons that speak the language: rows of gate and up projections, columns of down
projections. Everything else of the model is as it was. Several deltas may be on one model if no two share a neuron.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open


class Delta:
    """A language's delta.

    Args:
        path: ``delta.safetensors``.

    Attributes:
        about: What the file says of itself: base, language, text, figures.
        matrices: The matrices that it changes: name of the weight, dimension and indices of the vectors.
    """

    def __init__(self, path: str | Path) -> None:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("neuroglot") != "delta":
                raise ValueError(f"{path} is no delta of Neuroglot")
            self.about = json.loads(header["metadata"])
            self.matrices = self.about["matrices"]
            self._vectors = {each["vectors"]: file.get_tensor(each["vectors"]) for each in self.matrices}
            self._neurons = {each["layer"]: file.get_tensor(f"{each['layer']}.neurons") for each in self.matrices}
        self._model: torch.nn.Module | None = None  # that it is on
        self._kept: list[tuple] = []  # by matrix: dim, index, the vectors of the last model there, the new ones

    @torch.no_grad()
    def apply(self, model: torch.nn.Module) -> "Delta":
        """Writes the new vectors into a model's weights, in place, and keeps those that they replace.

        Raises:
            ValueError: The model is another one than the delta was made for, or has another delta on these neurons.
            RuntimeError: This delta is on a model already.
        """
        if self._model is not None:
            raise RuntimeError("the delta is on a model already; remove() it first, or read the file again")
        weights = self._weights(model)
        if not self._kept or not all(map(_holds, weights, self._kept)):
            self._kept = list(map(self._prepare, weights, self.matrices))  # all is checked before anything is written
        for weight, (dim, index, _, new) in zip(weights, self._kept, strict=True):
            weight.index_copy_(dim, index, new.t() if dim else new)
        self._model = model
        return self

    @torch.no_grad()
    def remove(self) -> None:
        """Writes back what was there before `apply`."""
        if self._model is not None:
            for weight, (dim, index, old, _) in zip(self._weights(self._model), self._kept, strict=True):
                weight.index_copy_(dim, index.to(weight.device), (old.t() if dim else old).to(weight.device))
        self._model = None

    def _weights(self, model: torch.nn.Module) -> list[torch.Tensor]:
        named = dict(model.named_parameters())
        for matrix in self.matrices:
            found = list(named[matrix["weight"]].shape) if matrix["weight"] in named else "none"
            if found != matrix["shape"]:
                raise ValueError(f"the delta changes {matrix['weight']} of {matrix['shape']}, the model has {found}")
        return [named[matrix["weight"]].detach() for matrix in self.matrices]

    def _prepare(self, weight: torch.Tensor, matrix: dict) -> tuple:
        new, index = self._vectors[matrix["vectors"]], self._neurons[matrix["layer"]] + matrix["offset"]
        old = _read(weight, matrix["dim"], index := index.to(weight.device))
        if row_digest(old.to(new.dtype)) != matrix["replaces"]:
            raise ValueError(
                f"{matrix['weight']} is not that of {self.about['model']['name']}, for which the delta was made, or "
                f"another delta is on the same neurons; load the base in {str(new.dtype).split('.')[1]} or fp32"
            )
        return matrix["dim"], index, old, new.to(weight)


def _holds(weight: torch.Tensor, kept: tuple) -> bool:  # what it held when its digest was taken
    dim, index, old, _ = kept
    return (weight.device, weight.dtype) == (old.device, old.dtype) and torch.equal(_read(weight, dim, index), old)


def _read(weight: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    return weight.index_select(0, index) if dim == 0 else weight.index_select(1, index).t().contiguous()


def row_digest(vectors: torch.Tensor) -> str:
    """Returns a digest over vectors, (neurons, D), in the dtype that they have."""
    return hashlib.sha256(vectors.contiguous().cpu().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
