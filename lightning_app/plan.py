"""What a run will take, before it starts: parameters, memory, text, time and disk, from shapes and sizes alone."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import DryRunError, HfHubHTTPError
from transformers import PreTrainedModel

from lightning_app.base import base_dtype, base_without_weights, identity_of
from lightning_app.errors import UserError
from lightning_app.identity import ModelIdentity
from lightning_app.limit import device_rate, forward_flop, frozen_step_flop, known_peak
from lightning_app.memory import Memory, peak_gib, simulate
from lightning_app.progress import duration, short
from lightning_app.subnetwork import Subnetwork, select_subnetwork

_GIB = 2**30
_CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 141, 192)
_KNOWN = ("NVIDIA H100", "NVIDIA A100", "NVIDIA RTX 4090")
_CONTEXT_GIB = 0.8  # of CUDA and its libraries, and what the allocator loses between blocks
_FLORES_TOKENS = 40_000  # of dev in one language, about
_LARGEST_SHARE = 0.25  # of the neurons taken over the whole pool, the most that one language got in the paper


def make_plan(trainer: Any, module: Any, data: Any, profiling: Any) -> dict[str, Any]:
    """Returns the plan of a run as plain data. Reads configuration, tokenizer and the beginning of uncached texts.

    Args:
        trainer: The NeuroglotTrainer, for precision, device and processes.
        module: The SparseSubnetModule, for the base and what of it is trained.
        data: The GlotCCDataModule.
        profiling: The LAPEProfiling callback.

    Raises:
        UserError: No configuration can be read, or there is no language.
    """
    if not data.shares:
        raise UserError("no language to plan for: give --language (cy, say) or --config cy.yaml")
    model = _base(trainer, module, data)
    identity = identity_of(model, module.base_name or "new")
    is_tokenizer_new = data.tokenizer_vocabulary is not None
    if not is_tokenizer_new:
        data.use_tokenizer_of(module)
    atlas = None if is_tokenizer_new else profiling.existing_atlas(data, identity, _context(model))
    is_selected = module.method == "subnetwork" and module.subnetwork_path is None
    pool = profiling.pool(module.language) if is_selected else []
    uncounted = [language for language in pool if atlas is None or language not in atlas]
    neurons, source = _neurons(module, profiling, identity, pool, atlas if not uncounted else None)
    text, counted = [], []
    if not is_tokenizer_new:
        text = [data.supply(share.language, int(data.token_budget * share.share)) for share in data.shares]
        counted = [data.supply(language, profiling.tokens_per_language) for language in uncounted]
    trained = identity.parameters
    if neurons is not None:
        trained = len(module.projections) * identity.hidden_size * sum(map(len, neurons.values()))
    plan = {
        "model": identity.as_dict(),
        "language": str(module.language or "mixture"),
        "trained_parameters": trained,
        "neurons": sum(map(len, neurons.values())) if neurons is not None else None,
        "neurons_from": source,
        "text": [_as_row(supply) for supply in text],
        "profiling_text": [_as_row(supply) for supply in counted],
    }
    plan["memory"] = _memory(trainer, module, data, profiling, neurons, bool(uncounted), identity)
    plan["time"] = _time(trainer, module, data, profiling, model, neurons, text, counted)
    plan["disk"] = _disk(module, data, trained, [*text, *counted])
    return plan


def _base(trainer: Any, module: Any, data: Any) -> PreTrainedModel:
    dtype = base_dtype(str(trainer.precision))
    if module.method == "full":
        dtype = torch.promote_types(dtype, torch.float32)
    architecture = module.architecture
    if architecture is not None:
        architecture = {"vocab_size": data.tokenizer_vocabulary or len(data.tokenizer), **architecture}
    return base_without_weights(module.base_name, module.revision, dtype, architecture)


def _context(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _neurons(
    module: Any, profiling: Any, identity: ModelIdentity, pool: list[Any], atlas: Any
) -> tuple[dict[int, torch.Tensor] | None, str]:
    """Returns the neurons to train per layer, None where every weight is, and how they are known."""
    if module.method == "full":
        return None, "every weight is trained"
    if module.subnetwork_path is not None:
        found = Subnetwork.load(module.subnetwork_path).by_layer(module.target)
        source = f"read from {module.subnetwork_path}"
    elif atlas is not None:
        found = select_subnetwork(atlas, pool, profiling.rate, profiling.quantile).by_layer(module.target)
        source = "selected from the atlas"
    else:
        each = round(profiling.rate * identity.neurons_per_layer * _LARGEST_SHARE)
        found = {layer: torch.arange(each) for layer in range(identity.layers) if each}
        source = f"assumed, a quarter of the {100 * profiling.rate:g} % that all languages share; profiling will tell"
    return {layer: index for layer, index in found.items() if layer >= module.first_layer}, source


def _memory(
    trainer: Any, module: Any, data: Any, profiling: Any, neurons: Any, is_profiled: bool, identity: ModelIdentity
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "activation_checkpointing": module.activation_checkpointing,
        "training": (data.batch_size, data.block_size),
        "validation": (data.validation_batch_size, data.block_size),
        "profiling": (profiling.batch_size, profiling.block_size) if is_profiled else None,
        "with_heap": trainer.strategy.root_device.type == "cpu",
    }

    def peaks(**changes: Any) -> Memory:
        model = _base(trainer, module, data)
        context = min(profiling.block_size, _context(model) or profiling.block_size)
        used = {**settings, **changes}
        used["profiling"] = (profiling.batch_size, min(used["profiling"][1], context)) if used["profiling"] else None
        return simulate(model, neurons, module.engine_name, module.projections, **used)

    memory = peaks()
    device = trainer.strategy.root_device
    extra_gib, room_gib, where = _room(device)
    needed_gib = _most(memory) / _GIB + extra_gib
    tensors_gib = max(memory.training, memory.validation, memory.profiling) / _GIB
    advice = None if needed_gib <= room_gib else _advice(peaks, memory, settings, room_gib - extra_gib)
    return {
        **{f"{kind}_gib": size / _GIB for kind, size in vars(memory).items() if size is not None},
        "process_gib": extra_gib,
        "peak_gib": needed_gib,
        "smallest_card_gb": next((gb for gb in _CARDS_GB if gb * 0.93 >= tensors_gib + _CONTEXT_GIB), None),
        "device": where,
        "device_gib": room_gib,
        "advice": advice,
        "batches": {phase: settings[phase] for phase in ("training", "validation", "profiling")},
    }


def _most(memory: Memory) -> int:
    held = memory.weights + memory.neurons + memory.heap if memory.heap is not None else 0
    return max(memory.training, memory.validation, memory.profiling, held)


def _room(device: torch.device) -> tuple[float, float, str]:
    """Returns GiB that the process takes besides tensors, GiB that there are, and of what."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return _CONTEXT_GIB, properties.total_memory / _GIB, properties.name
    return peak_gib(device), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB, "this machine"


def _advice(peaks: Any, memory: Memory, settings: dict[str, Any], room_gib: float) -> str:
    """Returns the keys that make the run fit, the ones that cost least first, or that none does."""
    keys, changes = [], {}
    if memory.validation / _GIB > room_gib:
        keys, changes = ["--data.validation_batch_size 1"], {"validation": (1, settings["validation"][1])}
    if memory.profiling / _GIB > room_gib:
        keys, changes = [*keys, "--profiling.block_size 512"], {**changes, "profiling": (1, 512)}
    small = {"training": (1, settings["training"][1])}
    smaller: list[tuple[list[str], dict[str, Any]]] = [
        ([], {}),
        (["--data.batch_size 1"], small),
        (["--model.activation_checkpointing true"], {"activation_checkpointing": True}),
        (["--data.batch_size 1", "--model.activation_checkpointing true"], {**small, "activation_checkpointing": True}),
    ]
    for more, change in smaller:
        if (more or keys) and (most := _most(peaks(**changes, **change)) / _GIB) <= room_gib:
            return f"{' '.join([*keys, *more])} would fit ({most:.1f} GiB)"
    return f"no key makes it fit: the weights alone take {memory.weights / _GIB:.1f} GiB; take a smaller --model.base"


def _time(
    trainer: Any, module: Any, data: Any, profiling: Any, model: PreTrainedModel, neurons: Any, text: Any, counted: Any
) -> dict[str, Any]:
    """Returns seconds at the limit per device; what trains well reaches about half of it."""
    first = min(neurons) if neurons else 0
    wanted = [min(supply.wanted, (supply.available or supply.wanted) * data.epochs) for supply in text]
    tokens = sum(wanted) if text else data.token_budget
    steps = tokens / (data.batch_size * data.block_size * trainer.accumulate_grad_batches * trainer.world_size)
    validated = (2 + steps // trainer.validate_every) * _FLORES_TOKENS * len(data.validation_languages)
    layers = range(model.config.get_text_config().num_hidden_layers)
    block_size = min(profiling.block_size, _context(model) or profiling.block_size)
    profiled = sum(min(supply.wanted, supply.available or supply.wanted) for supply in counted)
    flop = {
        "profiling": profiled * forward_flop(model, block_size, layers),
        "training": tokens * frozen_step_flop(model, first, data.block_size),
        "validation": validated * forward_flop(model, data.block_size),
    }
    device = trainer.strategy.root_device
    rate, source = device_rate(device, model.dtype)
    rates = {f"this machine ({source})": rate}
    if device.type != "cuda":
        rates |= {name: peak for name in _KNOWN if (peak := known_peak(name)) is not None}
    limits = {
        name: {phase: each / rate / trainer.world_size for phase, each in flop.items()} for name, rate in rates.items()
    }
    return {"tokens": tokens, "profiled_tokens": profiled, "processes": trainer.world_size, "limit_s": limits}


def _disk(module: Any, data: Any, trained: int, supplies: list[Any]) -> dict[str, Any]:
    base, missing = _base_size(module.base_name, module.revision) if module.base_name else (0, 0)
    one_each = {}  # the target is wanted for training and for profiling, from one cache
    for supply in sorted(supplies, key=lambda supply: supply.missing):
        one_each[supply.language] = supply
    needed = {
        "token_cache": sum(4 * supply.missing for supply in one_each.values()),
        "checkpoints": 3 * 12 * trained,  # weights and two states in fp32: the best, the last, and one being written
        "base": missing or 0,
    }
    places = {"token_cache": data.cache_dir, "checkpoints": Path.cwd(), "base": Path(constants.HF_HUB_CACHE)}
    free: dict[int, tuple[int, Path]] = {}
    wanted: dict[int, int] = {}
    for kind, place in places.items():
        there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
        disk = os.stat(there).st_dev
        free[disk] = (shutil.disk_usage(there).free, there)
        wanted[disk] = wanted.get(disk, 0) + needed[kind]
    short_of = [str(there) for disk, (left, there) in free.items() if wanted[disk] > left]
    return {
        **{f"{kind}_bytes": size for kind, size in needed.items()},
        "base_bytes": base,
        "base_download_bytes": missing,
        "text_download_bytes": sum(supply.download_bytes for supply in one_each.values()),
        "free_bytes": min(left for left, _ in free.values()),
        "full": short_of,
    }


def _base_size(name: str, revision: str | None) -> tuple[int | None, int | None]:
    """Returns the bytes of a base's files and how many of them are still to be downloaded; None where unknown."""
    if Path(name).is_dir():
        return sum(path.stat().st_size for path in Path(name).glob("*.safetensors")), 0
    try:
        files = snapshot_download(
            name, revision=revision, dry_run=True, allow_patterns=["*.safetensors", "*.json", "tokenizer*"],
            ignore_patterns=["consolidated*", "*/*"],
        )  # fmt: skip
    except (DryRunError, HfHubHTTPError, OSError):
        return None, None
    return sum(f.file_size or 0 for f in files), sum(f.file_size or 0 for f in files if f.will_download)


def _as_row(supply: Any) -> dict[str, Any]:
    row = {key: getattr(supply, key) for key in ("wanted", "cached", "available", "is_exact", "download_bytes")}
    return {"language": str(supply.language), **row}


def format_plan(plan: dict[str, Any]) -> str:
    """Returns the figures of `make_plan` as text."""
    model, trained = plan["model"], plan["trained_parameters"]
    what = f"{plan['neurons']} neurons ({plan['neurons_from']})" if plan["neurons"] is not None else "every weight"
    lines = [
        f"plan: {plan['language']} on {model['name']}",
        "",
        f"trained     {what}",
        f"            {short(trained)} of {short(model['parameters'])} parameters, "
        f"{100 * trained / model['parameters']:.2f} %",
    ]
    lines += ["", *_format_memory(plan["memory"]), "", *_format_text(plan), "", *_format_time(plan["time"])]
    return "\n".join([*lines, "", *_format_disk(plan["disk"])])


def _format_memory(memory: dict[str, Any]) -> list[str]:
    batches = memory["batches"]
    sizes = {phase: f"{b[0]} x {b[1]} tokens" for phase, b in batches.items() if b}
    rows = [
        ("weights", memory["weights_gib"], ""),
        ("neuron weights, states", memory["neurons_gib"], "with gradients"),
        ("activations", memory["activations_gib"], "kept for the backward"),
        ("logits", memory["logits_gib"], "a chunk at a time"),
        ("peak of training", memory["training_gib"], sizes["training"]),
        ("peak of validation", memory["validation_gib"], sizes["validation"]),
    ]
    rows += [("peak of profiling", memory["profiling_gib"], sizes["profiling"])] if "profiling" in sizes else []
    rows.append(("of the whole process", memory["peak_gib"], f"{memory['device']} has {_size(memory['device_gib'])}"))
    lines = [
        f"{'memory' if i == 0 else '':<12}{name:<26}{_size(gib):>10}  {note}".rstrip()
        for i, (name, gib, note) in enumerate(rows)
    ]
    card = memory["smallest_card_gb"]
    lines.append(f"{'':<12}fits a GPU of {card} GB" if card else f"{'':<12}fits no single GPU")
    if memory["advice"]:
        lines.append(f"warning: this does not fit {memory['device']}; {memory['advice']}")
    return lines


def _size(gib: float) -> str:
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{1024 * gib:.1f} MiB"


def _format_text(plan: dict[str, Any]) -> list[str]:
    lines = []
    for title, rows in (("text", plan["text"]), ("profiling", plan["profiling_text"])):
        for i, row in enumerate(rows):
            there = "unknown, the source is out of reach" if row["available"] is None else short(row["available"])
            there = "enough" if row["cached"] >= row["wanted"] else there if row["is_exact"] else f"about {there}"
            load = f", {short(row['download_bytes'])}B to read over the network" if row["download_bytes"] else ""
            lines.append(
                f"{title if i == 0 else '':<12}{row['language']:<24}{short(row['wanted'])} tokens wanted, {there} "
                f"available, {short(row['cached'])} cached{load}"
            )
    return lines or ["text        not looked at: the tokenizer is still to be trained"]


def _format_time(time: dict[str, Any]) -> list[str]:
    tokens = f"{short(time['tokens'])} tokens of training, {short(time['profiled_tokens'])} of profiling"
    lines = [f"time        {tokens}; at half the limit"]
    for name, phases in time["limit_s"].items():
        parts = [f"{phase} {duration(2 * seconds)}" for phase, seconds in phases.items() if seconds]
        lines.append(f"{'':<12}{name}: {', '.join(parts)}")
    return lines


def _format_disk(disk: dict[str, Any]) -> list[str]:
    base = (
        "unknown size" if disk["base_download_bytes"] is None else f"{short(disk['base_download_bytes'])}B to download"
    )
    lines = [
        f"disk        base {base}; text {short(disk['text_download_bytes'])}B over the network, "
        f"{short(disk['token_cache_bytes'])}B of tokens; checkpoints {short(disk['checkpoints_bytes'])}B; "
        f"{short(disk['free_bytes'])}B free",
    ]
    if disk["full"]:
        lines.append(
            f"warning: the disk of {', '.join(disk['full'])} is too small; set --data.cache_dir, --run_dir or HF_HOME"
        )
    return lines
