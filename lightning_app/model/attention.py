"""How the tokens of a batch see one another: causal by themselves, behind masks, or within their documents.

Shape suffixes: B sequences, T tokens, H heads, d their size.
"""

import contextlib
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_app.errors import UserError

_CAUSAL = "causal_sdpa"
_BOUNDS = "cu_seq_lens_q"  # as transformers calls it, so that every architecture hands it on


def attend_without_masks(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model, in which fused attention is causal by itself where no layer has a sliding window.

    Sequences here are single ones, padded on the right at most, so no mask is needed. transformers finds that out from
    the positions in every forward, and waits for the device to do so.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and getattr(config, "sliding_window", None) is None:
        AttentionInterface.register(_CAUSAL, _attend)  # and no mask function
        model.set_attn_implementation(_CAUSAL)
    return model


@contextlib.contextmanager
def attend_with_masks(model: PreTrainedModel) -> Iterator[None]:
    """Takes `attend_without_masks` back while the block lasts, for sequences that are padded on the left or counted."""
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("sdpa" if before == _CAUSAL else before)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def seen_within_documents(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what a model is called with for attention that ends where a document begins.

    transformers makes masks from the positions, anew for every layer's kernel, and waits for the device to do so; with
    a mask, attention leaves its fastest kernels and looks at pairs of tokens that do not see one another, which at 4k
    tokens takes as long as all else. So kernels that take the bounds of documents get those. Elsewhere, where attention
    is causal by itself, one mask does for all layers: (B, 1, T, T), 0 or -inf.

    Args:
        model: What is called.
        batch: ``input_ids``, (B, T). Where documents are apart ``position_ids``, (B, T), in their documents, too, and
            ``bounds``, where documents begin row after row, and where the last ends, int32 (documents + 1,).
    """
    ids_BT = batch["input_ids"]
    if "position_ids" not in batch:
        return {"input_ids": ids_BT}
    positions_BT, bounds = batch["position_ids"], batch["bounds"]
    inputs = {"input_ids": ids_BT, "position_ids": positions_BT}
    if model.config.get_text_config()._attn_implementation != _CAUSAL:
        return inputs
    if takes_bounds(model, ids_BT.device):
        return inputs | {_BOUNDS: bounds}
    T = ids_BT.shape[1]
    document_BT = (positions_BT == 0).cumsum(1)
    seen_BTT = (document_BT[:, :, None] == document_BT[:, None]).tril()
    mask_BTT = torch.zeros((len(ids_BT), T, T), dtype=model.dtype, device=ids_BT.device)
    return inputs | {"attention_mask": mask_BTT.masked_fill_(~seen_BTT, -torch.inf).unsqueeze(1)}


def takes_bounds(model: PreTrainedModel, device: torch.device) -> bool:
    """Tells whether torch's own flash attention can be given the bounds of documents for a model on a device."""
    config = model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and {"window_size", "enable_gqa"} <= signature(varlen_attn).parameters.keys()
        and _dtype_on(device, model.dtype) in (torch.bfloat16, torch.float16)
        and head_size <= 256
        and head_size % 8 == 0
        and getattr(config, "v_head_dim", None) in (None, head_size)
        and not getattr(config, "attention_dropout", 0)
    )


def _dtype_on(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Returns what attention computes in: autocast changes torch's usual entrance, not that with bounds."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def _attend(
    module: nn.Module,
    query_BHTd: Tensor,
    key_BHTd: Tensor,
    value_BHTd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attends as transformers does through torch, or within the bounds of documents where they are given."""
    bounds: Tensor | None = options.get(_BOUNDS)
    if bounds is None:
        return sdpa_attention_forward(
            module, query_BHTd, key_BHTd, value_BHTd, attention_mask, scaling=scaling, **options
        )
    B, _, T, _ = query_BHTd.shape
    dtype = _dtype_on(query_BHTd.device, value_BHTd.dtype)
    query, key, value = (each.transpose(1, 2).flatten(0, 1).to(dtype) for each in (query_BHTd, key_BHTd, value_BHTd))
    # No document is longer than a row; to know more, one would wait for the device. The window is causal.
    out = varlen_attn(query, key, value, bounds, bounds, T, T, scale=scaling, window_size=(-1, 0), enable_gqa=True)
    return cast(Tensor, out).unflatten(0, (B, T)), None


@torch.no_grad()
def require_documents_apart(model: PreTrainedModel) -> None:
    """Raises `UserError` where tokens of a model see other documents for all that; costs a forward of a few tokens."""
    base: Any = model.base_model
    is_training, device = model.training, model.device
    ids = torch.arange(32, device=device).view(2, 16)
    bounds = torch.arange(0, 33, 8, dtype=torch.int32, device=device)
    cast(nn.Module, model).eval()
    with torch.compiler.set_stance("force_eager"):
        alone, apart, joined = (
            base(**inputs, use_cache=False).last_hidden_state[:, -8:].float()
            for inputs in (
                seen_within_documents(model, {"input_ids": ids[:, 8:]}),
                seen_within_documents(model, {"input_ids": ids, "position_ids": ids % 8, "bounds": bounds}),
                seen_within_documents(model, {"input_ids": ids}),
            )
        )
    cast(nn.Module, model).train(is_training)
    if (apart - alone).abs().max() > 0.1 * (joined - alone).abs().max():
        raise UserError(
            f"{type(model).__name__} cannot keep the documents of a block apart: its tokens see those before; give "
            "--data.chunking packed"
        )
