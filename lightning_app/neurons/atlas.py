"""The atlas: activation counts of one model for any number of languages, with where they came from.

Counts are additive, so shards, ranks and later languages are summed or appended; selection needs no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path

import torch
from torch import Tensor

from lightning_app import __version__
from lightning_app.errors import UserError
from lightning_app.files import JSON, digest, save_tensors
from lightning_app.identity import ModelIdentity
from lightning_app.languages import Language
from lightning_app.neurons import lape
from lightning_app.neurons.neuron_file import NeuronFile, describe

ATLAS_KIND = "activation atlas"


@dataclass
class Atlas:
    """Activation counts per language.

    Attributes:
        model: The model that was profiled.
        tokenizer: Digest of its tokenizer.
        block_size: Tokens per block; the context length that probabilities were measured at.
        counts: Per GlotCC code, tokens with a positive gate, int64 (L, N).
        tokens: Per GlotCC code, tokens counted.
        sources: Per GlotCC code, the data set, revision and tokenizer that the tokens came from.
        stability: Per GlotCC code that was counted until its set was stable, ``curve``: pairs of tokens and the overlap
            of the sets selected from two halves of them, at this ``rate`` and ``quantile``.
    """

    model: ModelIdentity
    tokenizer: str
    block_size: int
    counts: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    sources: dict[str, JSON] = field(default_factory=dict)
    stability: dict[str, JSON] = field(default_factory=dict)

    def pool_id(self, codes: list[str]) -> str:
        """Digest over the part of the atlas that a pool of languages reads."""
        counts = [self.counts[code] for code in sorted(codes)]
        return digest(self.model.fingerprint, [[code, self.tokens[code]] for code in sorted(codes)], *counts)

    def __contains__(self, language: Language) -> bool:
        return language.glotcc in self.counts

    def add(self, language: Language, counts_LN: Tensor, tokens: int, source: JSON) -> None:
        """Adds the counts of a language, summing with what is there already."""
        code = language.glotcc
        counts_LN = counts_LN.to("cpu", torch.int64)
        self.counts[code] = self.counts[code] + counts_LN if code in self.counts else counts_LN
        self.tokens[code] = self.tokens.get(code, 0) + tokens
        self.sources[code] = source

    def remove(self, language: Language) -> None:
        """Forgets what was counted of a language."""
        for table in (self.counts, self.tokens, self.sources, self.stability):
            table.pop(language.glotcc, None)

    def merge(self, other: "Atlas", where: Path | str) -> None:
        """Adds every count of ``other``: shards of one language are summed, new languages appended.

        Raises:
            UserError: ``other`` was counted on another model, with another tokenizer, or in blocks of another size.
        """
        other.model.require_same(self.model, "atlas", where)
        self.require_settings(other.tokenizer, other.block_size, where)
        shared = self.counts.keys() & other.counts.keys()  # a curve of overlap describes one count, not a sum
        curves = {**self.stability, **other.stability}
        self.stability = {code: curve for code, curve in curves.items() if code not in shared}
        for code, counts_LN in other.counts.items():
            self.counts[code] = self.counts[code] + counts_LN if code in self.counts else counts_LN
            self.tokens[code] = self.tokens.get(code, 0) + other.tokens[code]
            self.sources.setdefault(code, other.sources[code])

    def require_settings(self, tokenizer: str, block_size: int, where: Path | str) -> None:
        """Raises `UserError` where counts made with these settings would not be comparable with the ones here."""
        if tokenizer != self.tokenizer:
            raise UserError(f"atlas {where} was counted with another tokenizer; name another --profiling.atlas")
        if block_size != self.block_size:
            raise UserError(
                f"atlas {where} was counted in blocks of {self.block_size} tokens, asked for {block_size}; "
                f"set --profiling.block_size {self.block_size} or name another --profiling.atlas"
            )

    def probability(self, pool: list[Language], where: Path | str = "") -> Tensor:
        """Returns p as float64 (L, N, K) for the languages of ``pool``, in their order.

        Raises:
            UserError: A language has not been counted.
        """
        missing = [str(language) for language in pool if language not in self]
        if missing:
            raise UserError(
                f"atlas {where} lacks {', '.join(missing)}; it holds {', '.join(self.counts) or 'nothing'}. "
                "Count them with: python main.py profile"
            )
        shape = (*self.counts[pool[0].glotcc].shape, len(pool)) if pool else (0, 0, 0)
        prob_LNK = torch.empty(shape, dtype=torch.float64)
        for place, language in enumerate(pool):  # one at a time: 150 languages of an 8B model are half a GiB
            counts_LN1, tokens_1 = self.counts[language.glotcc][..., None], torch.tensor([self.tokens[language.glotcc]])
            prob_LNK[..., place] = lape.activation_probability(counts_LN1, tokens_1)[..., 0]
        return prob_LNK

    def save(self, path: Path) -> None:
        """Writes the atlas, atomically."""
        metadata = {
            "version": __version__,
            "model": self.model.as_dict(),
            "tokenizer": self.tokenizer,
            "block_size": self.block_size,
            "tokens": self.tokens,
            "sources": self.sources,
            "stability": self.stability,
        }
        save_tensors(path, {f"counts.{code}": counts for code, counts in self.counts.items()}, metadata, ATLAS_KIND)

    @classmethod
    def load(cls, path: Path) -> "Atlas":
        """Reads an atlas.

        Raises:
            UserError: There is none at ``path``, or the file is damaged, of a later version, or says what cannot be.
        """
        file = NeuronFile(path, ATLAS_KIND, ("tokenizer", "block_size", "tokens", "sources"), optional=("stability",))
        counts = file.by_language("counts")
        block_size = file.metadata["block_size"]
        file.require(type(block_size) is int and block_size > 0, "block_size", "a whole number above zero")
        tokens = file.table("tokens", counts, int)
        sources = file.table("sources", counts, dict)
        stability = file.table("stability", counts, dict, is_whole=False)
        for code, counts_LN in counts.items():
            _require_counts(file, code, counts_LN, tokens[code])
        return cls(file.model, file.text("tokenizer"), block_size, counts, tokens, sources, stability)


def sum_atlases(given: str | Sequence[str]) -> Atlas:
    """Returns the sum of atlases of one model, given by their paths or patterns such as ``parts/*.safetensors``.

    Raises:
        UserError: There is none, or they are of different models, tokenizers or block sizes.
    """
    paths: list[Path] = []
    for pattern in [given] if isinstance(given, str) else given:
        found = sorted(map(Path, glob(pattern))) if has_magic(pattern) else [Path(pattern)]
        if not found:
            raise UserError(f"--atlas is {pattern}, which no file matches; check the path")
        paths += found
    first = Atlas.load(paths[0])
    for path in paths[1:]:
        first.merge(Atlas.load(path), path)
    return first


def _require_counts(file: NeuronFile, code: str, counts_LN: Tensor, tokens: int) -> None:
    """Raises `UserError` unless every neuron of the model was open for none to all of the tokens, and some for one."""
    layers, neurons = file.model.layers, file.model.neurons_per_layer
    if counts_LN.dtype != torch.int64 or tuple(counts_LN.shape) != (layers, neurons) or not counts_LN.numel():
        raise file.refuse(
            f"counts.{code} is {describe(counts_LN)}, expected int64 of {(layers, neurons)} as {file.model} has them"
        )
    if not 0 < tokens < 1 << 62:
        raise file.refuse(f"tokens of {code} is {tokens}, expected a number above zero")
    low, high = int(counts_LN.min()), int(counts_LN.max())
    if low == high == 0:
        raise file.refuse(f"counts.{code} are all 0, no gate opened for any of {tokens} tokens")
    if low < 0 or high > tokens:
        raise file.refuse(
            f"counts.{code} has a count of {low if low < 0 else high}, expected 0 to the {tokens} tokens counted"
        )
