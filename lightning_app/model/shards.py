"""Matrices of which every process holds some rows: reading, writing and putting together what lies in them.

FSDP2 keeps a weight as a `DTensor` with consecutive rows on each process, as many as `torch.chunk` gives, and puts the
whole one in its place while its layer computes. Every function here takes whole tensors too, for which it is trivial.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Tells whether every process holds only a part of a model's weights."""
    return isinstance(model, FSDPModule)


def is_first() -> bool:
    """Tells whether this is the first of the processes that hold parts, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def local(tensor: Tensor) -> Tensor:
    """Returns the rows of a tensor that this process holds, in place; all of them where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assembled(tensor: Tensor) -> Tensor:
    """Returns a sharded tensor whole, on the CPU, to take no room of a device; any other as it is. Collective."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def rows_here(length: int, processes: int, rank: int) -> range:
    """Returns which rows of a matrix a process holds.

    >>> [rows_here(7, 3, rank) for rank in range(3)], rows_here(2, 4, 3)
    ([range(0, 3), range(3, 6), range(6, 7)], range(2, 2))
    """
    each = -(-length // processes)
    return range(min(rank * each, length), min((rank + 1) * each, length))


def rows_of(tensor: Tensor) -> range:
    """Returns which rows of a tensor this process holds."""
    if not isinstance(tensor, DTensor):
        return range(len(tensor))
    return rows_here(len(tensor), tensor.device_mesh.size(), tensor.device_mesh.get_local_rank())


def like(sharded: Tensor, tensor: Tensor) -> Tensor:
    """Returns a whole tensor that every process has as one that is sharded as another of its shape."""
    if not isinstance(sharded, DTensor) or isinstance(tensor, DTensor):
        return tensor
    rows = rows_of(sharded)
    part = tensor[rows.start : rows.stop].to(sharded.device, copy=True).contiguous()
    return from_local(part, sharded)


def from_local(part: Tensor, sharded: DTensor) -> DTensor:
    """Returns this process's rows as a part of what is sharded as another tensor of its shape."""
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=sharded.shape, stride=sharded.stride()
    )


@torch.no_grad()
def vectors_of(matrix: Tensor, dim: int, index: Tensor) -> Tensor:
    """Returns vectors of a matrix, (k, D): rows where ``dim`` is 0, columns where it is 1. Collective where sharded."""
    if not isinstance(matrix, DTensor):
        return matrix[:, index].t() if dim else matrix[index]
    rows, part = rows_of(matrix), matrix.to_local()
    # Exact: each number comes from one process, and fp32 holds those of every narrower kind.
    found = torch.zeros(
        len(index), matrix.shape[1 - dim], dtype=torch.promote_types(matrix.dtype, torch.float32), device=part.device
    )
    if dim:
        found[:, rows.start : rows.stop] = part[:, index].t().to(found.dtype)
    else:
        is_here = (index >= rows.start) & (index < rows.stop)
        found[is_here] = part[index[is_here] - rows.start].to(found.dtype)
    torch.distributed.all_reduce(found, group=matrix.device_mesh.get_group())
    return found.to(matrix.dtype)


@torch.no_grad()
def summed_over_rows(matrix: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the sum over all rows of every number changed, float64 (columns,). Collective where sharded."""
    total = change(local(matrix).double()).sum(0)
    if isinstance(matrix, DTensor):
        torch.distributed.all_reduce(total, group=matrix.device_mesh.get_group())
    return total


class VectorPlace:
    """Where vectors of a matrix lie in what this process holds of it.

    Of a sharded one, finding that out waits for the device; writing does not.

    Args:
        matrix: Whole or sharded.
        dim: 0 for rows, 1 for columns.
        index: Which, (k,).
    """

    def __init__(self, matrix: Tensor, dim: int, index: Tensor) -> None:
        rows, self._dim, self._index = rows_of(matrix), dim, index
        self._own: slice | Tensor = slice(rows.start, rows.stop) if dim else slice(None)
        if not dim and isinstance(matrix, DTensor):
            self._own = ((index >= rows.start) & (index < rows.stop)).nonzero().squeeze(1)
            self._index = index[self._own] - rows.start

    @torch.no_grad()
    def write(self, matrix: Tensor, vectors: Tensor) -> None:
        """Writes vectors, (k, D), of the matrix's dtype in place."""
        if self._dim:
            local(matrix).index_copy_(1, self._index, vectors[:, self._own].t())
        else:
            local(matrix).index_copy_(0, self._index, vectors[self._own])


@contextmanager
def gathered(model: nn.Module, part: nn.Module) -> Iterator[None]:
    """Lets every process hold all weights of the layer that a module is in while the block lasts. Collective."""
    within = [
        module
        for module in model.modules()
        if isinstance(module, FSDPModule) and module is not model and part in set(module.modules())
    ]
    for layer in within:
        layer.unshard()
    try:
        yield
    finally:
        for layer in within:
            layer.reshard()


def shed(model: nn.Module) -> None:
    """Lets go of the rows of other processes that a forward has left here: what is trained and saved are the parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
