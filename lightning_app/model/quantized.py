"""A base whose linear layers are kept in 4 or 8 bits by bitsandbytes, and the products that a step needs of them.

NF4 with doubly quantised scales is QLoRA's (arXiv 2305.14314), 0.516 bytes a weight; int8 is LLM.int8() (arXiv
2208.07339). Embeddings, norms and the output head keep their dtype, as transformers leaves them.
"""

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.model.base_files import BaseFiles

Quantization = Literal["nf4", "int8"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

_NF4_BLOCK, _SCALES_BLOCK = 64, 256


@dataclass(frozen=True, eq=False)
class Unquantized:
    """Where the numbers of a quantised matrix are as they were.

    Attributes:
        files: Of the base.
        weight: Name of the matrix in the model.
        dtype: Of its products.
    """

    files: BaseFiles
    weight: str
    dtype: torch.dtype

    def vectors(self, dim: int, index: Tensor) -> Tensor:
        """Returns vectors, (k, D), in the dtype of the products: rows where ``dim`` is 0, columns where it is 1."""
        return self.files.vectors(self.weight, dim, index.cpu()).to(index.device, self.dtype)


def require_library(quantization: str) -> None:
    """Raises `UserError` where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"--model.quantization {quantization} needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or leave --model.quantization out (null)"
        )


def loading_options(quantization: str | None, dtype: torch.dtype | None, device: torch.device) -> JSON:
    """Returns what ``from_pretrained`` is given beside a name and a dtype.

    Raises:
        UserError: bitsandbytes is not installed, or computes nothing in this dtype.
    """
    placed = {"device_map": {"": device}}  # weight by weight, with no copy of the base in the host's memory
    if quantization is None:
        return {} if device.type == "cpu" else placed  # there the weights are the mapped files themselves
    require_library(quantization)
    if dtype not in (torch.float32, torch.bfloat16):
        raise UserError(
            f"--model.quantization {quantization} computes in float32 or bfloat16, not in {str(dtype)[6:]}; give "
            "--trainer.precision 32-true or bf16-mixed"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells on every import which kernels it lacks
    if quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, **placed}


def keep_unquantized(model: PreTrainedModel, files: BaseFiles) -> None:
    """Lets every quantised layer know where its matrix is as it was."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_quantized(module):
            own = vars(module)
            own["unquantized"] = Unquantized(files, f"{name}.weight", model.dtype)
            # On some processors it would store the matrix in another order at the first inference, and back.
            own["support_avx512bf16_for_cpu"] = False


def is_quantized(linear: nn.Linear) -> bool:
    """Tells whether a layer's matrix is kept in fewer bits than it computes in."""
    return not linear.weight.is_floating_point()


def quantization_of(model: PreTrainedModel) -> str | None:
    """Returns what a model's matrices are kept in, ``nf4`` or ``int8``; None where they are as they were."""
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, BitsAndBytesConfig):
        return None
    return "int8" if config.load_in_8bit else config.bnb_4bit_quant_type


def product_dtype(linear: nn.Linear) -> torch.dtype:
    """Returns the dtype that a layer computes in."""
    return unquantized(linear).dtype if is_quantized(linear) else linear.weight.dtype


def unquantized(linear: nn.Linear) -> Unquantized:
    """Returns where the numbers of a quantised layer's matrix are as they were."""
    found = linear.unquantized
    if not isinstance(found, Unquantized):
        raise TypeError(f"expected a layer that `keep_unquantized` has seen, found {type(found).__name__}")
    return found


def dequantized(linear: nn.Linear) -> Tensor:
    """Returns a layer's matrix, (out, in), in the dtype of its products: a copy, where it is quantised."""
    if not is_quantized(linear):
        return linear.weight
    weight: Any = linear.weight
    dtype = product_dtype(linear)
    if (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state).to(dtype)
    own: Any = linear
    scales = own.state.SCB if own.state.SCB is not None else weight.SCB
    # Two steps, as bitsandbytes makes them in its backward.
    return weight.data.to(dtype, copy=True).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))


def numbers_in(weight: Tensor) -> int:
    """Returns how many numbers a weight holds; two lie in a byte of a 4-bit one."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def bytes_of_quantized(linear: nn.Linear, quantization: str) -> int:
    """Returns the bytes that a layer's matrix takes with its scales."""
    numbers = linear.out_features * linear.in_features
    if quantization == "int8":
        return numbers + 4 * linear.out_features
    return round(numbers * (1 / 2 + 1 / _NF4_BLOCK + 4 / (_NF4_BLOCK * _SCALES_BLOCK)))
