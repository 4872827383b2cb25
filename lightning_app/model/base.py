"""The base model and its tokenizer: loaded from the hub or a folder, or made from a configuration."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_app.errors import UserError
from lightning_app.files import JSON, refused_object
from lightning_app.hub import unloadable
from lightning_app.identity import ModelIdentity, fingerprint
from lightning_app.model.architecture import NEW, UNUSABLE, model_of, read_architecture, require_sizes
from lightning_app.model.attention import attend_without_masks
from lightning_app.model.base_files import BaseFiles
from lightning_app.model.loading import require_floats, shown_loading
from lightning_app.model.quantized import keep_unquantized, loading_options, numbers_in, quantization_of
from lightning_app.progress import ByteProgress
from lightning_app.run import is_first_process

_CPU = torch.device("cpu")
_DTYPES = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32, "64-true": torch.float64}


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen causal language model with what it was when it was loaded.

    Attributes:
        model: Its live weights.
        identity: Taken before anything trains them, because it reads every one.
    """

    model: PreTrainedModel
    identity: ModelIdentity

    @property
    def quantization(self) -> str | None:
        """What its matrices are kept in, ``nf4`` or ``int8``; None where they are as they were."""
        return quantization_of(self.model)

    def prepare_on(self, device: torch.device) -> None:
        """Moves the model to a device, in evaluation mode, to run single sequences."""
        attend_without_masks(self.model)
        on_device(self.model, device).eval()

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens that it was made for; None where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def base_dtype(precision: str) -> torch.dtype:
    """Returns the dtype of the frozen weights under a trainer precision.

    Under ``bf16-mixed`` they are bf16 while neuron weights and optimiser states are fp32.

    Raises:
        UserError: With any other precision; ``bf16-true`` would round small updates away.
    """
    if precision not in _DTYPES:
        raise UserError(
            f"--trainer.precision is {precision}; expected {', '.join(_DTYPES)}. Neuron weights must stay fp32: in "
            "bf16 most updates of size 1e-5 are rounded away"
        )
    return _DTYPES[precision]


def load_base(
    name: str,
    revision: str | None,
    dtype: torch.dtype | None,
    quantization: str | None = None,
    device: torch.device = _CPU,
) -> Base:
    """Loads a causal language model of transformers and freezes it.

    Its identity is that of the files, whether it is quantised or not: what is trained on the one fits the other.

    Args:
        name: On the hub, or a folder.
        revision: Branch, tag or commit.
        dtype: Of the weights, or of the products of quantised ones; that of the files where none is given.
        quantization: What the linear layers of the decoder are kept in: ``nf4``, ``int8``, or None.
        device: Where it is. On a CPU weights of the files' own dtype are the mapped files, which a node holds once.

    Raises:
        UserError: There is none, it is gated, out of reach, damaged, quantised already, or lacks weights.
    """
    options = loading_options(quantization, dtype, device)
    try:
        require_floats(name, revision)
        with shown_loading(name, revision):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, revision=revision or "main", dtype=dtype or "auto", trust_remote_code=False,
                output_loading_info=True, **options,
            )  # fmt: skip
    except UNUSABLE as error:
        raise _unusable_weights(name, error) from error
    model, found = loaded
    require_none_missing(name, sorted(found["missing_keys"]))
    read, size = dict(model.named_parameters()).__getitem__, sum(weight.nbytes for weight in model.parameters())
    if quantization is not None:  # is checked, and known again, by the files
        files = BaseFiles.find(name, revision)
        keep_unquantized(model, files)
        read, size = files.read, files.bytes
    return Base(model.requires_grad_(False), checked_identity(model, name, read, size))


def checked_identity(model: PreTrainedModel, name: str, read: Callable[[str], Tensor], size: int) -> ModelIdentity:
    """Returns the identity of a base, once every number in it has proved to be one.

    Args:
        model: Whose weights they are.
        name: Hub name or folder.
        read: Returns a weight by its name, as it was before the base was quantised or sharded.
        size: Bytes of all weights.

    Raises:
        UserError: A weight has NaN or infinite numbers.
    """
    names = [weight for weight, _ in model.named_parameters()]
    with ByteProgress(f"checking {name}", 2 * size, is_shown=is_first_process(), is_brief=True) as progress:
        for weight_name in names:
            weight = read(weight_name)
            if not torch.isfinite(weight).all():
                raise UserError(f"model {name} has NaN or infinite weights in {weight_name}; download it again")
            progress.advance(weight.nbytes)
        return identity_of(model, name, ((each, read(each)) for each in sorted(names)), progress.advance)


def _unusable_weights(name: str, error: Exception) -> UserError:
    """Returns one line for what transformers and torch say at length of files that do not hold a model's weights."""
    if found := refused_object(error):
        return UserError(
            f"the weights of {name} hold a Python object ({found}), which could run code and is not loaded; give a "
            "--model.base of safetensors"
        )
    if "Weights only load failed" in str(error):
        return UserError(f"the weights of {name} are no file of torch; download them again, as safetensors if you can")
    if "ignore_mismatched_sizes" in str(error):
        return UserError(
            f"the weights of {name} have other shapes than its config.json says; download both again, of one revision"
        )
    return unloadable("model", name, error)


def require_none_missing(name: str, missing: list[str]) -> None:
    """Raises `UserError` where files lack weights, which transformers would draw at random."""
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(
            f"the files of model {name} lack {len(missing)} of its weights ({some}); they would be random numbers. "
            "Download it again, or check that its config.json belongs to its weights"
        )


def new_base(architecture: JSON, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Base:
    """Makes a model with random weights from a transformers configuration and a tokenizer's vocabulary.

    Args:
        architecture: ``model_type`` and any key of that type's configuration.
        tokenizer: Decides vocabulary size and special tokens.
        dtype: Of the weights.

    Raises:
        UserError: transformers knows no such model type, or refuses the configuration.
    """
    own = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = read_architecture({**own, **architecture})
    require_sizes(config, NEW)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--model.architecture cannot be built: {error}") from error
    return Base(model.requires_grad_(False), identity_of(model, NEW))


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from the hub or a folder.

    Raises:
        UserError: There is none, it is gated or out of reach, or it has no EOS token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except UNUSABLE as error:
        raise unloadable("tokenizer", name, error) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no EOS token to put between documents; set one in its files")
    return tokenizer


def identity_of(
    model: PreTrainedModel,
    name: str,
    in_order: Iterable[tuple[str, Tensor]] | None = None,
    seen: Callable[[int], object] = lambda read_bytes: None,
) -> ModelIdentity:
    """Returns a model's identity, with a fingerprint unless its weights are on the meta device.

    Args:
        model: The model.
        name: Hub name or folder.
        in_order: What it is known by, in the order of the names, where the model's own weights are not as they were.
        seen: See `fingerprint`.
    """
    config = model.config.get_text_config()
    weights = sorted(model.named_parameters(), key=lambda item: item[0])
    is_meta = any(weight.is_meta for _, weight in weights)
    return ModelIdentity(
        name=name,
        revision=getattr(model.config, "_commit_hash", None) or "",
        fingerprint="" if is_meta else fingerprint(in_order or weights, seen),
        layers=config.num_hidden_layers,
        neurons_per_layer=getattr(config, "intermediate_size", None) or 0,
        hidden_size=config.hidden_size,
        parameters=sum(numbers_in(weight) for _, weight in weights),
    )


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves a model to a device, in place."""
    cast(nn.Module, model).to(device)  # transformers wraps it in a decorator without types
    return model


def recompute_activations(model: PreTrainedModel) -> None:
    """Lets every decoder layer make its activations again in the backward instead of keeping them."""
    # The older name is an alias since transformers 5.20.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def base_without_weights(
    name: str | None, revision: str | None, dtype: torch.dtype | None = None, architecture: JSON | None = None
) -> Base:
    """Returns a base on the meta device: its shape, read from its configuration alone.

    Args:
        name: Of a base on the hub, or a folder.
        revision: Branch, tag or commit.
        dtype: Of the weights; the configuration's where not given.
        architecture: Configuration of a new base, instead of a name.

    Raises:
        UserError: Its configuration cannot be read.
    """
    try:
        if architecture is not None:
            config = read_architecture(architecture)
        else:
            config = AutoConfig.from_pretrained(str(name), revision=revision or "main", trust_remote_code=False)
    except UNUSABLE as error:
        raise unloadable("configuration", str(name), error) from error
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_of(config, name, dtype)
    return Base(model.requires_grad_(False), identity_of(model, name or NEW))
