"""A base as files: its tensors one at a time, and copies of its folder in which some vectors are others."""

import json
import shutil
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.files import UNREADABLE, one_line
from lightning_app.hub import hub_errors

_INDEX = "model.safetensors.index.json"
_NEEDED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".h5", ".msgpack", ".gguf")


@dataclass(frozen=True)
class Patch:
    """Vectors of one matrix that are to be others.

    Attributes:
        dim: 0 where they are rows, 1 where they are columns.
        index: Where they are, int64 (k,).
        vectors: What they are to be, (k, D), in the dtype of the file.
    """

    dim: int
    index: Tensor
    vectors: Tensor


class BaseFiles:
    """The files of a base in a local folder.

    Args:
        folder: As transformers saves a model: safetensors, whole or in shards, and what belongs to it.

    Raises:
        UserError: There are no safetensors in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shards = sorted(path for path in folder.glob("*.safetensors"))
        if (index := folder / _INDEX).is_file():
            shards = [folder / name for name in _named_shards(index)]
        if not shards:
            raise UserError(
                f"{folder} has no safetensors; save the base once with transformers' save_pretrained, and give that "
                "folder with --model.base"
            )
        self.shards = shards

    @property
    def bytes(self) -> int:
        """What a copy of them takes on a disk."""
        return sum(path.stat().st_size for path in self.shards)

    @classmethod
    def find(cls, name: str, revision: str | None) -> "BaseFiles":
        """Returns the files of a base by folder or hub name; of the hub they are downloaded where not cached."""
        if Path(name).is_dir():
            return cls(Path(name))
        with hub_errors(name, "run the same command again with a network, or give --model.base FOLDER", "--model.base"):
            try:
                found = snapshot_download(
                    name, revision=revision or "main", allow_patterns=list(_NEEDED), local_files_only=True
                )
            except LocalEntryNotFoundError:
                found = snapshot_download(name, revision=revision or "main", allow_patterns=list(_NEEDED))
            return cls(Path(found))

    @cached_property
    def shard_of(self) -> dict[str, Path]:
        """The shard that holds each tensor."""
        where: dict[str, Path] = {}
        for shard in self.shards:
            try:
                with safe_open(shard, framework="pt") as file:
                    where |= dict.fromkeys(file.keys(), shard)
            except UNREADABLE as error:
                raise UserError(f"{shard} is not readable: {one_line(error)}; download the base again") from error
        return where

    @cached_property
    def dtype(self) -> str:
        """The dtype of most tensors, as safetensors calls it: ``BF16``."""
        found: Counter[str] = Counter()
        for shard in self.shards:
            with safe_open(shard, framework="pt") as file:
                found.update(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118 - no mapping
        return found.most_common(1)[0][0]

    def key(self, weight: str) -> str:
        """Returns the name that a weight of the model has in the files.

        Raises:
            UserError: They do not hold it under its own name.
        """
        for name in (weight, weight.removeprefix("model."), f"model.{weight}"):
            if name in self.shard_of:
                return name
        raise UserError(f"the files in {self.folder} have no {weight}; they keep it under another name or fused")

    def read(self, weight: str) -> Tensor:
        """Returns a tensor by the name of its weight."""
        key = self.key(weight)
        with safe_open(self.shard_of[key], framework="pt") as file:
            return file.get_tensor(key)

    def shape(self, weight: str) -> list[int]:
        """Returns the shape of a tensor by the name of its weight."""
        key = self.key(weight)
        with safe_open(self.shard_of[key], framework="pt") as file:
            return list(file.get_slice(key).get_shape())

    def vectors(self, weight: str, dim: int, index: Tensor) -> Tensor:
        """Returns vectors of a matrix, (k, D): rows where ``dim`` is 0, columns where it is 1."""
        found = self.read(weight).index_select(dim, index)
        return (found.t() if dim else found).contiguous()

    def copy(self, target: Path, *patches: Mapping[str, Patch]) -> None:
        """Writes a copy of the folder in which ``patches``, by weight, are made; all other tensors are the same bytes.

        Never holds more than one matrix. Of several patches of one vector the last counts.
        """
        layers = [{self.key(weight): patch for weight, patch in each.items()} for each in patches]
        target.mkdir(parents=True)
        self.copy_beside(target)
        if (index := self.folder / _INDEX).is_file():
            shutil.copyfile(index, target / _INDEX)
        for shard in self.shards:
            copied = target / shard.name
            shutil.copyfile(shard, copied)
            for keyed in layers:
                _patch_file(copied, {key: patch for key, patch in keyed.items() if self.shard_of[key] == shard})

    def copy_beside(self, target: Path) -> None:
        """Copies what belongs to the weights, configuration and tokenizer, unless it is there already."""
        for path in sorted(self.folder.iterdir()):
            is_weights = path in self.shards or path.name == _INDEX or path.name.endswith(_OTHER_WEIGHTS)
            if path.is_file() and not is_weights and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)


def _named_shards(index: Path) -> list[str]:
    """Returns the names of the files that an index distributes the weights over; they are all beside it."""
    try:
        named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if outside := next((name for name in named if Path(name).name != name), None):
            raise ValueError(f"it names {outside!a}, which is no file beside it")
    except UNREADABLE as error:
        raise UserError(f"{index} is no index of weights ({one_line(error)}); download the base again") from error
    return named


def _patch_file(path: Path, patches: Mapping[str, Patch]) -> None:
    """Writes vectors into the tensors of a safetensors file, in place."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for key, patch in patches.items():
        begin, end = header[key]["data_offsets"]
        raw = np.memmap(path, dtype=np.uint8, mode="r+", offset=8 + length + begin, shape=(end - begin,))
        matrix = torch.from_numpy(raw).view(patch.vectors.dtype).view(header[key]["shape"])
        matrix.index_copy_(patch.dim, patch.index, patch.vectors.t() if patch.dim else patch.vectors)
        raw.flush()
