"""Puts a language onto a transformers model, and takes it off again bit for bit. Needs torch and safetensors alone.

    model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B", dtype="auto")
    welsh = Delta("delta.safetensors").apply(model)
    ...
    welsh.remove()

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
        self._other: list[torch.Tensor] | None = None  # what is not in the model now, while the delta is on it
        self._weights: list[torch.Tensor] = []

    def indices(self, matrix: dict) -> torch.Tensor:
        """Returns where the vectors of a matrix lie in its dimension."""
        return self._neurons[matrix["layer"]] + matrix["offset"]

    @torch.no_grad()
    def apply(self, model: torch.nn.Module) -> "Delta":
        """Writes the new vectors into a model's weights, in place, and keeps those that they replace.

        Raises:
            ValueError: The model is another one than the delta was made for, or has another delta on these neurons.
            RuntimeError: This delta is on a model already.
        """
        if self._other is not None:
            raise RuntimeError("the delta is on a model already; remove() it first, or read the file again")
        named = dict(model.named_parameters())
        weights: list[torch.Tensor] = []
        new = []
        for matrix in self.matrices:  # all is checked before anything is written
            weight = named.get(matrix["weight"])
            if weight is None or list(weight.shape) != matrix["shape"]:
                found = "no such weight" if weight is None else f"one of {list(weight.shape)}"
                raise ValueError(f"the delta changes {matrix['weight']} of {matrix['shape']}, the model has {found}")
            vectors = self._vectors[matrix["vectors"]]
            if row_digest(self._read(weight, matrix).to(vectors.dtype)) != matrix["replaces"]:
                base = self.about["model"]["name"]
                raise ValueError(
                    f"{matrix['weight']} is not that of {base}, for which the delta was made, or another delta is on "
                    f"the same neurons; load the base in {str(vectors.dtype).removeprefix('torch.')} or fp32"
                )
            weights.append(weight)
            new.append(vectors.to(weight.device, weight.dtype))
        self._weights, self._other = weights, new
        self._exchange()
        return self

    def remove(self) -> None:
        """Writes back what was there before `apply`."""
        if self._other is not None:
            self._exchange()
        self._weights, self._other = [], None

    @torch.no_grad()
    def _exchange(self) -> None:
        assert self._other is not None
        for place, (matrix, weight) in enumerate(zip(self.matrices, self._weights, strict=True)):
            old, vectors = self._read(weight, matrix), self._other[place]
            index = self.indices(matrix).to(weight.device)
            weight.index_copy_(matrix["dim"], index, vectors.t() if matrix["dim"] else vectors)
            self._other[place] = old

    def _read(self, weight: torch.Tensor, matrix: dict) -> torch.Tensor:
        vectors = weight.detach().index_select(matrix["dim"], self.indices(matrix).to(weight.device))
        return vectors.t() if matrix["dim"] else vectors


def row_digest(vectors: torch.Tensor) -> str:
    """Returns a digest over vectors, (neurons, D), in the dtype that they have."""
    return hashlib.sha256(vectors.contiguous().cpu().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
