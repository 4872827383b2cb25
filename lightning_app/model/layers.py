"""The decoder layers of a transformers model, and the matrices in them."""

from torch import nn
from transformers import PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.model.ffn import GatedFFN


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the decoder layers, the lowest first.

    Raises:
        UserError: The model does not say which of its modules are layers.
    """
    names = set(model._no_split_modules or ())
    # By their bases too: FSDP2 gives a layer that it shards a class of its own, derived from the layer's.
    layers = [module for module in model.modules() if names & {each.__name__ for each in type(module).__mro__}]
    expected = model.config.get_text_config().num_hidden_layers
    if len(layers) != expected:
        raise UserError(f"{type(model).__name__} has {len(layers)} modules of the kind {names}; expected {expected}")
    return layers


def attention_linears(layer: nn.Module, ffn: GatedFFN) -> list[nn.Linear]:
    """Returns the linear layers of a decoder layer that are not its FFN's: the attention's matrices."""
    of_ffn = set(ffn.module.modules())
    return [module for module in layer.modules() if isinstance(module, nn.Linear) and module not in of_ffn]


def names_of(model: nn.Module, modules: list[nn.Linear]) -> list[str]:
    """Returns the full names of modules inside a model, in the model's order."""
    wanted = set(modules)
    return [name for name, module in model.named_modules() if module in wanted]
