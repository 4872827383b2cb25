"""torch.compile of the decoder layers."""

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.methods.method import Attached
from lightning_app.model.layers import decoder_layers


def require_compiler(device: torch.device) -> None:
    """Compiles next to nothing, so that a machine without a compiler is told before the first step.

    Raises:
        UserError: torch.compile does not work here.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"torch.compile does not work on this machine: {reason[:160]}; install a C++ compiler, or --model.compile "
            "false"
        ) from error


def compile_layers(model: PreTrainedModel, attached: Attached, **options: Any) -> None:
    """Compiles every decoder layer on its own, so that layers of a kind share one compilation.

    Args:
        model: The base, with a method at work on it.
        attached: That method. Its rows differ in number from layer to layer; they are marked as dynamic, or every
            layer would be compiled anew and Dynamo would give up after a few.
        options: For torch.compile.
    """
    config = torch._dynamo.config
    config.force_parameter_static_shapes = config.force_nn_module_property_static_shapes = False
    # Below the first trained layer, that layer, without neurons, with one, with more; for each kind of attention.
    config.recompile_limit = max(config.recompile_limit, 32)
    for rows in (*attached.parameters(), *attached.buffers()):
        torch._dynamo.maybe_mark_dynamic(rows, 0)
    for layer in decoder_layers(model):
        if isinstance(layer, FSDPModule):  # its hooks, which gather its weights, are not traced
            vars(layer)["forward"] = torch.compile(layer.forward, **options)
        else:
            layer.compile(**options)
