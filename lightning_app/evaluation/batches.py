"""How many sequences run at once: arithmetic over what a forward without gradients holds at a time.

Measured beside it (tests/test_evaluation_batches.py): the sum is 1.0 to 2 times what a batch takes.
"""

import math
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

_MOST_SEQUENCES = 256
_LOGITS_AT_A_TIME = 3  # a batch's logits and their log-softmax, while the log-softmax of the batch before still lives
_SCORES_OF_A_STEP = 4  # of generating, in fp32: the last logits, copies of them and a penalty's
_CGROUP_FILES = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def sequence_bytes(model: PreTrainedModel, tokens: int, is_generated: bool) -> int:
    """Returns the most bytes that a sequence takes at a time, beside the model's weights.

    Args:
        model: In the dtype that it runs in.
        tokens: T, prompt and continuation.
        is_generated: Whether only the last token's logits are made; those of every token where not.
    """
    config = model.config.get_text_config()
    size = model.dtype.itemsize
    heads, hidden = config.num_attention_heads, config.hidden_size
    head_size = getattr(config, "head_dim", None) or hidden // heads
    keys_and_values = 2 * (getattr(config, "num_key_value_heads", None) or heads) * head_size * size
    ffn = getattr(config, "intermediate_size", None) or 4 * hidden
    one_layer = (5 * hidden + 3 * ffn + 2 * heads * head_size) * size + 2 * hidden * 4  # norms are made in fp32
    cached = (config.num_hidden_layers + 2) * keys_and_values  # a layer's are copied when they grow
    is_fused = config._attn_implementation != "eager"
    mask = tokens * (1 + size if is_fused else 1 + size + heads * (2 * size + 4))
    if is_generated:
        return tokens * (cached + one_layer + mask) + _SCORES_OF_A_STEP * 4 * config.vocab_size
    return tokens * (cached + one_layer + mask + _LOGITS_AT_A_TIME * config.vocab_size * size)


def fitting(model: PreTrainedModel, tokens: int, is_generated: bool, free_bytes: float) -> int:
    """Returns how many sequences of ``tokens`` fit: a power of two, so that it is seldom another, and at least one."""
    count = (free_bytes - _packed_weights(model)) / sequence_bytes(model, max(1, tokens), is_generated)
    return max(1, min(_MOST_SEQUENCES, 2 ** math.floor(math.log2(max(1.0, count)))))


def _packed_weights(model: PreTrainedModel) -> int:
    """Returns the bytes of the copies that oneDNN makes of the largest matrix to multiply by it in bf16 on a CPU."""
    config = model.config.get_text_config()
    is_copied = model.device.type == "cpu" and model.dtype == torch.bfloat16 and _has_bf16_products()
    return 2 * 4 * config.vocab_size * config.hidden_size if is_copied else 0


def _has_bf16_products() -> bool:
    """Tells whether this CPU multiplies in bf16 itself; elsewhere torch does it without a copy."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False


def free_bytes(device: torch.device) -> int:
    """Returns the memory that may still be taken on a device; on a CPU no more than the process's control group has."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """Returns what is left below each limit that a container or a scheduler set; none where there is no such limit."""
    groups = Path("/proc/self/cgroup")
    lines = groups.read_text(encoding="utf-8").split() if groups.is_file() else []
    roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")]
    own = [root / path.lstrip("/") for line in lines for root in roots if (path := line.split(":", 2)[-1])]
    left = []
    for folder in dict.fromkeys([*roots, *own]):
        for limit, used in _CGROUP_FILES:
            try:
                most = int((folder / limit).read_text())  # a ValueError where it says "max"
                left.append(max(0, most - int((folder / used).read_text()) + _reclaimable(folder)))
            except (OSError, ValueError):
                continue
    return left


def _reclaimable(folder: Path) -> int:
    rows = (folder / "memory.stat").read_text().split("\n")
    return sum(int(row.split()[1]) for row in rows if row.startswith(("inactive_file ", "total_inactive_file ")))
