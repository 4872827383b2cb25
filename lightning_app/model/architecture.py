"""A base's configuration: read, checked for sizes that no model has, and made a model of."""

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, one_line

NEW = "new"
"""Name of a base that is made, not loaded."""

UNUSABLE = (*UNREADABLE, StrictDataclassError)
"""What transformers raises on configurations that are none."""

_LARGEST = {"num_hidden_layers": 10_000, "hidden_size": 10**6, "intermediate_size": 10**7, "vocab_size": 10**8}


def model_of(config: PretrainedConfig, name: str | None, dtype: torch.dtype | None) -> PreTrainedModel:
    """Returns a model of a configuration; raises `UserError` where it is none of a causal language model."""
    require_sizes(config, name or NEW)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except UNUSABLE as error:
        if not str(error).startswith("Unrecognized configuration class"):
            raise UserError(f"{name or NEW} cannot be built from its configuration: {one_line(error)}") from error
        raise UserError(
            f"{name or NEW} is a {config.model_type} model, which is no causal language model; check --model.base"
        ) from error


def require_sizes(config: PretrainedConfig, name: str) -> None:
    """Raises `UserError` where a configuration has a size or share that no model has: it would take hours, or fail."""
    text = config.get_text_config()
    for key, most in _LARGEST.items():
        size = getattr(text, key, None)
        if isinstance(size, int) and not 1 <= size <= most:
            raise UserError(f"the configuration of {name} has {key} {size}; expected 1 to {most}")
    for key, share in text.to_dict().items():
        if key.endswith(("dropout", "pdrop")) and isinstance(share, (int, float)) and not 0 <= share < 1:
            raise UserError(f"the configuration of {name} has {key} {share}; expected at least 0, below 1")


def read_architecture(architecture: JSON) -> PretrainedConfig:
    """Returns the configuration of ``model_type`` with the given keys."""
    keys = dict(architecture)
    model_type = keys.pop("model_type", None)
    if model_type is None:
        raise UserError("--model.architecture needs a model_type, for example llama")
    try:
        return AutoConfig.for_model(model_type, **keys)
    except (ValueError, TypeError) as error:
        reason = str(error).split("\n")[0][:160]
        raise UserError(f"--model.architecture.model_type {model_type}: {reason}") from error
