"""How much a loss depends on each neuron: its activation times the gradient with respect to it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_app.methods.method import Calibration
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loss import OutputHead, token_loss_sum


def score_neurons(base: PreTrainedModel, blocks: Iterable[Tensor], calibration: Calibration) -> Tensor:
    """Returns the mean over tokens of ``|h * dL/dh|`` for every neuron, float64 (L, N).

    ``h = act(gate) * up`` is what a neuron gives to down_proj, and L the summed loss of a sequence: to first order,
    how much the loss changes where the neuron is taken away.

    Args:
        base: Frozen.
        blocks: Sequences of token ids, (T,).
        calibration: How they run through the base.
    """
    ffns, head = find_gated_ffns(base), OutputHead.of(base)
    score_LN = torch.zeros(len(ffns), ffns[0].neurons, dtype=torch.float64, device=calibration.device)
    hidden_of: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].retain_grad()
        hidden_of.append(inputs[0])

    def begin(module: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        return embedded.requires_grad_()  # nothing of the base requires a gradient: the graph begins here

    hooks = [ffn.down.register_forward_pre_hook(keep) for ffn in ffns]
    hooks.append(base.get_input_embeddings().register_forward_hook(begin))
    tokens = 0
    try:
        for block in blocks:
            ids = block.to(calibration.device).unsqueeze(0)
            hidden_of.clear()
            with torch.enable_grad(), calibration.forward_context():
                last = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
                token_loss_sum(last[:, :-1], head, ids[:, 1:]).backward()
            for layer, hidden in enumerate(hidden_of):
                if hidden.grad is not None:
                    effect = (hidden.detach() * hidden.grad).abs()
                    score_LN[layer] += effect.flatten(0, -2).sum(0, dtype=torch.float64)
            tokens += ids.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return score_LN.cpu() / max(tokens, 1)
