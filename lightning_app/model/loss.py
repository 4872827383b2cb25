"""Cross-entropy over a large vocabulary that never holds the logits of a whole batch.

Shape suffixes: T tokens, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.model.attention import attend_with_masks

IGNORED = -100
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class OutputHead:
    """How an architecture makes logits: ``cap(scale * (W h + b))`` with ``cap(z) = softcap * tanh(z / softcap)``."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "OutputHead":
        """Reads head, scale (Cohere, Granite) and soft-cap (Gemma) from a causal language model."""
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        return cls(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits in fp32 (fp64 for fp64), as the reference and for short inputs."""
        return self._transform(self.linear(hidden))

    def _transform(self, logits: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @torch.no_grad()
    def require_agreement(self, model: PreTrainedModel, input_ids: Tensor) -> None:
        """Raises `UserError` where ``model`` makes its logits in some other way; costs a forward of a few tokens."""
        expected = model(input_ids=input_ids, use_cache=False).logits.float()
        if not torch.isfinite(expected).all():
            return  # of a model that diverged nothing can be compared; its loss will say so
        found = self.logits(model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state).float()
        if not torch.allclose(found, expected, rtol=2e-2, atol=1e-2 * expected.abs().max().item() + 1e-6):
            raise UserError(
                f"{type(model).__name__} transforms its logits in a way that is not known here "
                f"(off by up to {(found - expected).abs().max().item():.3g}); its losses would be wrong"
            )


@torch.no_grad()
def paper_loss(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns a batch's loss as the paper's script takes it: the mean over all positions, those of the padding too.

    Args:
        model: A causal language model.
        input_ids: Padded on the right, (B, T).
        attention_mask: 0 where there is padding, (B, T).
    """
    with attend_with_masks(model):
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return token_loss_sum(hidden[:, :-1], OutputHead.of(model), input_ids[:, 1:]) / input_ids[:, 1:].numel()


def token_loss_sum(hidden: Tensor, head: OutputHead, labels: Tensor) -> Tensor:
    """Returns the summed cross-entropy in nats of ``labels`` given the hidden states at the same positions.

    Logits exist for 1024 positions at a time and the gradient is made in the forward, so that memory stays at one
    chunk of logits in training and validation alike; sums are fp32 (fp64 for fp64). Exact, unlike a bf16 sum.

    Args:
        hidden: Last hidden states, (..., D).
        head: The output head. Its weight gets a gradient only if it requires one.
        labels: Next tokens, (...); positions with -100 do not count.
    """
    bias = head.linear.bias
    flat_TD = hidden.reshape(-1, hidden.shape[-1])
    return _ChunkedCrossEntropy.apply(flat_TD, head.linear.weight, bias, labels.reshape(-1), head.scale, head.softcap)


def sequence_loss_sums(hidden: Tensor, head: OutputHead, labels: Tensor) -> Tensor:
    """Returns `token_loss_sum` of each sequence of a batch on its own, (B,)."""
    return torch.stack([token_loss_sum(*pair) for pair in zip(hidden, [head] * len(labels), labels, strict=True)])


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_T: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]  # type: ignore[attr-defined]
        exact = torch.promote_types(hidden_TD.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden_TD.device)
        grad_TD = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_VD = torch.zeros_like(weight_VD) if needs_weight else None
        for start in range(0, len(hidden_TD), _ROWS):
            rows = slice(start, start + _ROWS)
            logits = F.linear(hidden_TD[rows], weight_VD, bias_V).to(exact).mul_(scale)
            if softcap is not None:
                logits = logits.div_(softcap).tanh_().mul_(softcap)
            labels = labels_T[rows]
            counted = labels != IGNORED
            target = labels.clamp_min(0).unsqueeze(1)
            slope: Tensor | float = scale
            if softcap is not None and (needs_hidden or needs_weight):
                slope = (1 - (logits / softcap).square_()).mul_(scale)
            # In place from here on: logits, then exp(logits - max), then probabilities, then the gradient.
            logits.sub_(logits.amax(-1, keepdim=True))
            target_logit = logits.gather(1, target)
            norm = logits.exp_().sum(-1, keepdim=True)
            total += ((norm.log() - target_logit).squeeze(1) * counted).sum()
            if not (needs_hidden or needs_weight):
                continue
            grad = logits.div_(norm)
            grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=exact))
            grad = grad.mul_(counted.unsqueeze(1)).mul_(slope).to(hidden_TD.dtype)
            if grad_TD is not None:
                grad_TD[rows] = (grad @ weight_VD.to(grad.dtype)).to(hidden_TD.dtype)
            if grad_VD is not None:
                grad_VD += grad.t() @ hidden_TD[rows]
        ctx.save_for_backward(*(grad for grad in (grad_TD, grad_VD) if grad is not None))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [
            next(saved) * grad_total.to(torch.promote_types(torch.float32, grad_total.dtype)) if needed else None
            for needed in ctx.needs_input_grad[:2]
        ]
        return (*grads, None, None, None, None)
