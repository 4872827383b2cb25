"""A delta as a LoRA, exactly: changed rows times one-hot columns, rank = neurons of the layer.

Gate and up change in rows: B one-hot (N, k), A the rows' change (k, D). Down changes in columns: B the columns' change
(D, k), A one-hot (k, N). PEFT scales by alpha / rank, which is 1 everywhere here.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from lightning_app.errors import UserError
from lightning_app.export.delta import LanguageDelta
from lightning_app.files import ordinary_mode
from lightning_app.model.base_files import BaseFiles, Patch

Target = Literal["peft", "vllm", "llamacpp"]

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def lora_ranks(delta: LanguageDelta, target: Target) -> dict[str, int]:
    """Returns the rank of every module that a delta changes, by its name in the model.

    Args:
        delta: The delta.
        target: Who reads the LoRA. vLLM and llama.cpp know one rank for all: theirs is the largest, padded with zeros.

    Raises:
        UserError: vLLM allows no such rank; the layers that do not fit are named.
    """
    ranks = {matrix.weight.removesuffix(".weight"): 0 for matrix in delta.matrices}
    for matrix in delta.matrices:
        ranks[matrix.weight.removesuffix(".weight")] += len(delta.neurons.by_layer[matrix.layer])
    if target == "peft":
        return ranks
    largest = max(ranks.values())
    if target == "llamacpp":
        return dict.fromkeys(ranks, largest)
    allowed = next((rank for rank in _VLLM_RANKS if rank >= largest), None)
    if allowed is None:
        most = _VLLM_RANKS[-1]
        layers = {each.layer: len(i) for each in delta.matrices if len(i := delta.neurons.by_layer[each.layer]) > most}
        named = ", ".join(f"layer {layer} ({neurons})" for layer, neurons in layers.items())
        raise UserError(
            f"vLLM allows LoRA ranks up to {most}, and more neurons than that are in {named}; export with --to hf, "
            "which vLLM serves as any model, or select fewer neurons (--profiling.rate)"
        )
    return dict.fromkeys(ranks, allowed)


def lora_bytes(delta: LanguageDelta, ranks: Mapping[str, int]) -> int:
    """Returns what the tensors of PEFT's adapter file take."""
    shapes = {matrix.weight.removesuffix(".weight"): matrix.shape for matrix in delta.matrices}
    return sum(4 * rank * sum(shapes[module]) for module, rank in ranks.items())


def lora_tensors(patches: Mapping[str, Patch], files: BaseFiles, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the tensors of PEFT's adapter file, fp32.

    Args:
        patches: What changes, by weight.
        files: Of the base.
        ranks: By module; where larger than the neurons there, the rest is zero.
    """
    tensors = {}
    for weight, patch in patches.items():
        base = files.read(weight)
        module, rank = weight.removesuffix(".weight"), ranks[weight.removesuffix(".weight")]
        old = base.index_select(patch.dim, patch.index)
        change = exact_change(old.t() if patch.dim else old, patch.vectors)
        one_hot = torch.zeros(rank, base.shape[patch.dim])
        one_hot[torch.arange(len(patch.index)), patch.index] = 1.0
        filled = torch.zeros(rank, change.shape[1])
        filled[: len(change)] = change
        a, b = (one_hot, filled.t()) if patch.dim else (filled, one_hot.t())
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a.contiguous(), b.contiguous()
    return tensors


def exact_change(old: Tensor, new: Tensor) -> Tensor:
    """Returns fp32 numbers that, added to ``old`` in its own dtype or in fp32, give ``new``.

    Where the change is larger than the new number itself, fp32 has no such number at times, and the sum is one unit in
    its last place off.

    >>> old, new = torch.tensor([1.0000001]), torch.tensor([0.29999995])
    >>> bool(old + exact_change(old, new) == new)
    True
    """
    old32, new32 = old.to(torch.float32), new.to(torch.float32)
    change = new32 - old32
    for towards in (math.inf, -math.inf):
        missed = old32 + change != new32
        nudged = torch.nextafter(change, torch.tensor(towards))
        change = torch.where(missed & (old32 + nudged == new32), nudged, change)
    return change


def write_lora(folder: Path, tensors: Mapping[str, Tensor], ranks: Mapping[str, int], base: str) -> None:
    """Writes PEFT's adapter folder: ``adapter_model.safetensors`` and ``adapter_config.json``."""
    largest = max(ranks.values())
    uneven = {module: rank for module, rank in ranks.items() if rank != largest}
    config = LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, r=largest, lora_alpha=largest, lora_dropout=0.0,
        target_modules=sorted(ranks), rank_pattern=uneven, alpha_pattern=dict(uneven), inference_mode=True,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "adapter_model.safetensors"
    save_file(dict(tensors), weights, metadata={"format": "pt"})
    weights.chmod(ordinary_mode())
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")
