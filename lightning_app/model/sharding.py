"""A base of which every process holds a part: made without weights, sharded by FSDP2, and filled from its files.

Parameters are sharded by rows, layer by layer; a layer is whole on a process only while it computes. Data are parallel,
a matrix product is not: tensor and pipeline parallelism are not built.
"""

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.hub import unloadable
from lightning_app.identity import ModelIdentity
from lightning_app.model.architecture import UNUSABLE, model_of
from lightning_app.model.base import Base, checked_identity, require_none_missing
from lightning_app.model.base_files import BaseFiles
from lightning_app.model.layers import decoder_layers
from lightning_app.model.loading import require_floats
from lightning_app.model.neuron_rows import widen
from lightning_app.model.shards import from_local, rows_of


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shards a model by decoder layer; embeddings, last norm and output head are one more part, the root's.

    The root stays whole from a forward to the end of its backward: the loss reads the head's weight after the forward.
    The decoder is run without the head, so that a call of it counts as a call of the root.

    Args:
        model: On the meta device, but for its buffers.
        mesh: Of one dimension, over all processes.
    """
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    decoder: Any = model.base_model
    forward = decoder.forward

    def decode(root: nn.Module, *args: object, **inputs: object) -> object:
        return forward(*args, **inputs)

    root: Any = model
    root.decode = MethodType(decode, model)
    register_fsdp_forward_method(model, "decode")
    decoder.forward = root.decode


def load_sharded(
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    mesh: DeviceMesh,
    device: torch.device,
    agree: Callable[[ModelIdentity | None], ModelIdentity | None],
    widened: Callable[[PreTrainedModel], Iterable[nn.Linear]] = lambda model: (),
) -> Base:
    """Loads a base of which this process holds the rows that `rows_of` gives it, and freezes it. Collective.

    No process ever holds more than its part, and one matrix on the CPU. The first one reads all of the files once more,
    a tensor at a time, for the base's identity, and refuses what `load_base` refuses.

    Args:
        name: On the hub, or a folder; safetensors.
        revision: Branch, tag or commit.
        dtype: Of the weights.
        mesh: See `shard`.
        device: This process's own.
        agree: Returns the first process's value on all.
        widened: Returns the layers whose matrices are kept in fp32, where ``dtype`` is narrower.

    Raises:
        UserError: There is none, it is gated, out of reach or damaged, or lacks weights.
    """
    try:
        require_floats(name, revision)
        config = AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except UNUSABLE as error:
        raise unloadable("model", name, error) from error
    with init_empty_weights(include_buffers=False):  # rotary tables are computed, and in no file
        model = model_of(config, name, dtype)
    model.tie_weights()  # which making them empty has undone
    files = BaseFiles.find(name, revision)
    _require_same_shapes(name, model, files)
    _take_generation_settings(model, name, revision)
    for linear in widened(model.requires_grad_(False)):
        widen(linear)
    shard(model, mesh)
    _fill(model, files, device)
    identity = checked_identity(model, name, files.read, files.bytes) if mesh.get_rank() == 0 else None
    return Base(model, cast(ModelIdentity, agree(identity)))


def _require_same_shapes(name: str, model: PreTrainedModel, files: BaseFiles) -> None:
    """Raises `UserError` where the files lack a weight, or hold it in another shape than the configuration says."""
    found = {weight: _is_held(files, weight) for weight, _ in model.named_parameters()}
    missing = sorted(weight for weight, is_held in found.items() if not is_held)
    require_none_missing(name, missing)
    for weight, parameter in model.named_parameters():
        if files.shape(weight) != list(parameter.shape):
            raise UserError(
                f"the weights of {name} have other shapes than its config.json says; download both again, of one "
                "revision"
            )


def _is_held(files: BaseFiles, weight: str) -> bool:
    try:
        files.key(weight)
    except UserError:
        return False
    return True


def _take_generation_settings(model: PreTrainedModel, name: str, revision: str | None) -> None:
    """Takes over how the base's makers generate with it, where its files say so."""
    try:
        model.generation_config = GenerationConfig.from_pretrained(name, revision=revision or "main")
    except OSError:
        return  # what the configuration says stands


@torch.no_grad()
def _fill(model: PreTrainedModel, files: BaseFiles, device: torch.device) -> None:
    """Reads this process's rows of every weight."""
    parts: dict[str, Tensor] = {}
    for weight, parameter in model.named_parameters():
        sharded, rows, key = cast(DTensor, parameter), rows_of(parameter), files.key(weight)
        with safe_open(files.shard_of[key], framework="pt") as file:
            part = file.get_slice(key)[rows.start : rows.stop]
        parts[weight] = from_local(part.to(device, parameter.dtype, copy=True).contiguous(), sharded)
    model.load_state_dict(parts, strict=False, assign=True)
    model.tie_weights()
