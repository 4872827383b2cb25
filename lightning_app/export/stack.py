"""Several deltas on one base: what each has alone is set, and what some share becomes what a policy says."""

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.export.delta import LanguageDelta
from lightning_app.export.neuroglot_delta import row_digest
from lightning_app.model.base_files import BaseFiles, Patch

Policy = Literal["refuse", "average", "ordered", "weighted"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True)
class Overlap:
    """Neurons that two deltas share.

    Attributes:
        first: Languages of the one.
        second: Languages of the other.
        shared: Neurons that both have.
        shares: Of the neurons of each.
    """

    first: str
    second: str
    shared: int
    shares: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Stack:
    """Deltas for one base.

    Attributes:
        deltas: In the order they go on.
        policy: What becomes of a neuron that several have: ``average`` adds the mean of their changes to the base's,
            ``weighted`` the mean by ``weights``, ``ordered`` takes the last one's, ``refuse`` allows none.
        weights: One for each delta; all 1 where the policy takes none.

    Raises:
        UserError: A delta is there twice, or the weights do not fit.
    """

    deltas: tuple[LanguageDelta, ...]
    policy: Policy = "refuse"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for first, second in itertools.combinations(self.deltas, 2):
            if first.identity == second.identity:
                raise UserError(f"the delta of {first.language} is there twice; name each delta once")
        if self.policy == "weighted" and len(self.weights) != len(self.deltas):
            raise UserError(
                f"--weights has {len(self.weights)} numbers for {len(self.deltas)} deltas; expected one for each, in "
                f"their order: {' '.join(each.language for each in self.deltas)}"
            )
        if self.policy != "weighted" and self.weights:
            raise UserError(f"--weights is for --policy weighted, not {self.policy}; leave it out")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise UserError(f"--weights is {','.join(f'{w:g}' for w in self.weights)}; expected numbers above 0")

    @property
    def languages(self) -> list[str]:
        """GlotCC codes of all deltas, each once."""
        return list(dict.fromkeys(code for each in self.deltas for code in each.about.get("language", [])))

    def overlaps(self) -> list[Overlap]:
        """Returns what each pair of deltas shares."""
        found = []
        for first, second in itertools.combinations(self.deltas, 2):
            shared = len(first.neurons) - len(first.neurons.minus(second.neurons))
            shares = shared / len(first.neurons), shared / len(second.neurons)
            found.append(Overlap(first.language, second.language, shared, shares))
        return found

    def require_policy(self) -> None:
        """Raises `UserError` where neurons are shared and no policy says what becomes of them."""
        sharing = [each for each in self.overlaps() if each.shared]
        if self.policy == "refuse" and sharing:
            most = max(sharing, key=lambda each: each.shared)
            raise UserError(
                f"{most.first} and {most.second} share {most.shared} neurons; say what becomes of shared ones by "
                "--policy average, ordered (the last one's) or weighted with --weights"
            )

    def scaled(self, files: BaseFiles, scale: float) -> "Stack":
        """Returns it with every change shrunk or stretched."""
        return replace(self, deltas=tuple(each.scaled(files, scale) for each in self.deltas))

    def patches(self, files: BaseFiles) -> dict[str, Patch]:
        """Returns what changes in the files of the base, by weight; raises `UserError` as `merged` does."""
        return self.merged(files).patches(files) if self.deltas else {}

    def merged(self, files: BaseFiles) -> LanguageDelta:
        """Returns one delta that does what all do; reads one matrix of the base at a time.

        Raises:
            UserError: The files are another base's, or neurons are shared and the policy is to refuse.
        """
        self.require_policy()
        first, *others = self.deltas
        if not others:
            for matrix in first.matrices:
                first.replaced(matrix, files)
            return first
        neurons = first.neurons.union(*(each.neurons for each in others))
        vectors, matrices = {}, []
        for name in sorted({matrix.vectors for each in self.deltas for matrix in each.matrices}):
            own = [each for each in self.deltas if name in each.vectors]
            matrix = next(each for each in own[0].matrices if each.vectors == name)
            for each in own:
                each.replaced(next(theirs for theirs in each.matrices if theirs.vectors == name), files)
            index = neurons.by_layer[matrix.layer]
            old = files.vectors(matrix.weight, matrix.dim, index + matrix.offset)
            vectors[name] = self._mixed(name, matrix.layer, index, old)
            matrices.append(replace(matrix, replaces=row_digest(old)))
        about = {
            "language": self.languages,
            "text": [text for each in self.deltas for text in each.about.get("text", [])],
            "stack": [each.about for each in self.deltas],
            "policy": self.policy,
        }
        return LanguageDelta(neurons, vectors, matrices, first.model, about)

    def _mixed(self, name: str, layer: int, index: Tensor, old: Tensor) -> Tensor:
        """Returns the vectors of a matrix at the neurons of all deltas.

        Args:
            name: Of the vectors.
            layer: Theirs.
            index: The neurons of all, (S,).
            old: The base's own, (S, D).
        """
        weights = self.weights or (1.0,) * len(self.deltas)
        own = [(each, weight) for each, weight in zip(self.deltas, weights, strict=True) if name in each.vectors]
        dtype = functools.reduce(torch.promote_types, (each.vectors[name].dtype for each, _ in own))
        mixed, takers = old.to(dtype, copy=True), torch.zeros(len(index), dtype=torch.int64)
        change, total = torch.zeros(old.shape, dtype=torch.float64), torch.zeros(len(index), 1, dtype=torch.float64)
        for each, weight in own:
            place, new = torch.searchsorted(index, each.neurons.by_layer[layer]), each.vectors[name]
            mixed[place] = new.to(dtype)
            takers[place] += 1
            change[place] += weight * (new.double() - old[place].double())
            total[place] += weight
        if self.policy == "ordered":
            return mixed
        is_shared = takers > 1  # what one has alone is exactly what it has
        mixed[is_shared] = (old.double() + change / total)[is_shared].to(dtype)
        return mixed
