"""How the tokens of a batch see one another: causal by themselves, behind masks, or within their documents."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_app.errors import UserError

_CAUSAL = "causal_sdpa"


def attend_without_masks(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model, in which fused attention is causal by itself where no layer has a sliding window.

    Sequences here are single ones, padded on the right at most, so no mask is needed. transformers finds that out from
    the positions in every forward, and waits for the device to do so.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and getattr(config, "sliding_window", None) is None:
        AttentionInterface.register(_CAUSAL, sdpa_attention_forward)  # and no mask function
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


def seen_within_documents(model: PreTrainedModel, ids_BT: Tensor, positions_BT: Tensor | None) -> dict[str, Tensor]:
    """Returns what a model is called with for attention that ends where a document begins, at position 0.

    transformers makes masks from the positions, anew for every layer's kernel, and waits for the device to do so. Where
    attention is causal by itself, one mask does for all layers: (B, 1, T, T), 0 or -inf. Without positions, a token
    sees all that stands before it.
    """
    if positions_BT is None:
        return {"input_ids": ids_BT}
    inputs = {"input_ids": ids_BT, "position_ids": positions_BT}
    if model.config.get_text_config()._attn_implementation != _CAUSAL:
        return inputs
    T = ids_BT.shape[1]
    document_BT = (positions_BT == 0).cumsum(1)
    seen_BTT = (document_BT[:, :, None] == document_BT[:, None]).tril()
    mask_BTT = torch.zeros((len(ids_BT), T, T), dtype=model.dtype, device=ids_BT.device)
    return {**inputs, "attention_mask": mask_BTT.masked_fill_(~seen_BTT, -torch.inf).unsqueeze(1)}


@torch.no_grad()
def require_documents_apart(model: PreTrainedModel) -> None:
    """Raises `UserError` where tokens of a model see other documents for all that; costs a forward of a few tokens."""
    base: Any = model.base_model
    is_training, ids = model.training, torch.arange(16, device=model.device).unsqueeze(0)
    cast(nn.Module, model).eval()
    with torch.compiler.set_stance("force_eager"):
        alone, apart, joined = (
            base(**inputs, use_cache=False).last_hidden_state[:, -8:].float()
            for inputs in (
                seen_within_documents(model, ids[:, 8:], None),
                seen_within_documents(model, ids, ids % 8),
                seen_within_documents(model, ids, None),
            )
        )
    cast(nn.Module, model).train(is_training)
    if (apart - alone).abs().max() > 0.1 * (joined - alone).abs().max():
        raise UserError(
            f"{type(model).__name__} cannot keep the documents of a block apart: its tokens see those before; give "
            "--data.chunking packed"
        )
