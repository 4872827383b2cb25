"""What a run will take, before it starts: parameters, memory, text, time and disk, from shapes and sizes alone."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import DryRunError, HfHubHTTPError
from torch import Tensor
from transformers import PreTrainedModel

from lightning_app.base import base_dtype, base_without_weights, identity_of
from lightning_app.errors import UserError
from lightning_app.limit import device_rate, forward_flop, frozen_step_flop, known_peak
from lightning_app.memory import Memory, peak_gib, simulate
from lightning_app.module import SparseSubnetModule
from lightning_app.subnetwork import Subnetwork, select_subnetwork

if TYPE_CHECKING:
    from datamodules.glotcc import GlotCCDataModule
    from datamodules.supply import Supply

_GIB = 2**30
_CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 141, 192)
_KNOWN = ("NVIDIA H100", "NVIDIA A100", "NVIDIA RTX 4090")
_CONTEXT_GIB = 0.8  # of CUDA and its libraries, and what the allocator loses between blocks
_FLORES_TOKENS = 40_000  # of dev in one language, about
_LARGEST_SHARE = 0.25  # of the neurons taken over the whole pool, the most that one language got in the paper


@dataclass
class Planner:
    """Works out a plan for the run that these four would make. Loads no weights and writes nothing.

    Attributes:
        trainer: The NeuroglotTrainer, for precision, device and processes.
        module: Which base, and what of it is trained.
        data: Which text, and how much of it.
        profiling: The LAPEProfiling callback, for the pool of languages and the atlas.
    """

    trainer: Any
    module: SparseSubnetModule
    data: "GlotCCDataModule"
    profiling: Any

    def plan(self) -> dict[str, Any]:
        """Returns the plan as plain data. Reads configuration, tokenizer and the beginning of uncached texts.

        Raises:
            UserError: There is no language, no configuration can be read, or the language has no neurons.
        """
        module, data = self.module, self.data
        if not data.shares:
            raise UserError("no language to plan for: give --language (cy, say) or --config cy.yaml")
        is_tokenizer_new = data.tokenizer_vocabulary is not None
        if not is_tokenizer_new:
            data.use_tokenizer_of(module)
        model = self._base()
        identity = identity_of(model, module.base_name or "new")
        is_selected = module.method == "subnetwork" and module.subnetwork_path is None
        pool = self.profiling.pool(module.language) if is_selected else []
        atlas = self.profiling.existing_atlas(data, identity, self.profiling.block_size_on(model)) if pool else None
        uncounted = [language for language in pool if atlas is None or language not in atlas]
        neurons, source = self._neurons(model, pool, atlas if not uncounted else None)
        text: list[Supply] = []
        counted: list[Supply] = []
        if not is_tokenizer_new:
            text = [data.supply(share.language, int(data.token_budget * share.share)) for share in data.shares]
            counted = [data.supply(language, self.profiling.tokens_per_language) for language in uncounted]
        trained, count = identity.parameters, None
        if neurons is not None:
            count = sum(map(len, neurons.values()))
            trained = len(module.projections) * identity.hidden_size * count
        return {
            "model": identity.as_dict(),
            "language": str(module.language or "a mixture"),
            "trained_parameters": trained,
            "neurons": count,
            "neurons_from": source,
            "text": [_as_row(supply) for supply in text],
            "profiling_text": [_as_row(supply) for supply in counted],
            "memory": self._memory(neurons, is_profiled=bool(uncounted)),
            "time": self._time(model, neurons, text, counted),
            "disk": self._disk(trained, [*text, *counted]),
        }

    def _base(self) -> PreTrainedModel:
        dtype = base_dtype(str(self.trainer.precision))
        if self.module.method == "full":
            dtype = torch.promote_types(dtype, torch.float32)
        architecture = self.module.architecture
        if architecture is not None:
            architecture = {"vocab_size": self.data.tokenizer_vocabulary or len(self.data.tokenizer), **architecture}
        return base_without_weights(self.module.base_name, self.module.revision, dtype, architecture)

    def _neurons(self, model: PreTrainedModel, pool: list[Any], atlas: Any) -> tuple[dict[int, Tensor] | None, str]:
        """Returns the neurons to train per layer, None where every weight is, and how they are known."""
        module, profiling = self.module, self.profiling
        if module.method == "full":
            return None, "every weight is trained"
        if module.subnetwork_path is not None:
            found = Subnetwork.load(module.subnetwork_path).by_layer(module.target)
            source = f"read from {module.subnetwork_path}"
        elif atlas is not None:
            found = select_subnetwork(atlas, pool, profiling.rate, profiling.quantile).by_layer(module.target)
            source = "selected from the atlas"
        else:
            config = model.config.get_text_config()
            each = max(1, round(profiling.rate * config.intermediate_size * _LARGEST_SHARE))
            found = {layer: torch.arange(each) for layer in range(config.num_hidden_layers)}
            source = f"assumed, a quarter of the {100 * profiling.rate:g} % of all languages; profiling will tell"
        found = {layer: index for layer, index in found.items() if layer >= module.first_layer}
        if not found:
            raise UserError(
                f"{module.target} has no neurons from layer {module.first_layer} up ({source}); raise "
                "--profiling.rate or lower --model.first_layer"
            )
        return found, source

    def _memory(self, neurons: dict[int, Tensor] | None, is_profiled: bool) -> dict[str, Any]:
        module, data = self.module, self.data
        device = self.trainer.strategy.root_device
        settings: dict[str, Any] = {
            "activation_checkpointing": module.activation_checkpointing,
            "training": (data.batch_size, data.block_size),
            "validation": (data.validation_batch_size, data.block_size),
            "profiling": (self.profiling.batch_size, self.profiling.block_size_on(self._base()))
            if is_profiled
            else None,
            "with_heap": device.type == "cpu",
        }

        def peaks(changes: dict[str, Any]) -> Memory:
            used = {**settings, **changes}
            return simulate(self._base(), neurons, module.engine_name, module.projections, **used)

        memory = peaks({})
        extra_gib, room_gib, where = _room(device)
        needed_gib = memory.most / _GIB + extra_gib
        advice = None
        if needed_gib > room_gib:
            advice = _advice(peaks, memory, settings, (room_gib - extra_gib) * _GIB)
        card_gib = memory.most_in_tensors / _GIB + _CONTEXT_GIB
        return {
            **{f"{kind}_gib": size / _GIB for kind, size in vars(memory).items() if size is not None},
            "peak_gib": needed_gib,
            "smallest_card_gb": next((gb for gb in _CARDS_GB if gb * 1e9 / _GIB >= card_gib), None),
            "device": where,
            "device_gib": room_gib,
            "advice": advice,
            "batches": {phase: settings[phase] for phase in ("training", "validation", "profiling")},
        }

    def _time(
        self, model: PreTrainedModel, neurons: dict[int, Tensor] | None, text: list["Supply"], counted: list["Supply"]
    ) -> dict[str, Any]:
        """Returns, per device, the seconds that every phase takes at the limit of frozen training."""
        trainer, data = self.trainer, self.data
        wanted = [min(supply.wanted, (supply.available or supply.wanted) * data.epochs) for supply in text]
        tokens = sum(wanted) if text else data.token_budget
        steps = tokens // (data.batch_size * data.block_size * trainer.accumulate_grad_batches * trainer.world_size)
        validations = 2 + steps // trainer.validate_every
        profiled = sum(min(supply.wanted, supply.available or supply.wanted) for supply in counted)
        layers = range(model.config.get_text_config().num_hidden_layers)
        flop = {
            "profiling": profiled * forward_flop(model, self.profiling.block_size_on(model), layers),
            "training": tokens * frozen_step_flop(model, min(neurons) if neurons else 0, data.block_size),
            "validation": validations
            * _FLORES_TOKENS
            * len(data.validation_languages)
            * forward_flop(model, data.block_size),
        }
        device = trainer.strategy.root_device
        rate, source = device_rate(device, model.dtype)
        rates = {f"this machine ({source})": rate}
        if device.type != "cuda":
            rates |= {name: peak for name in _KNOWN if (peak := known_peak(name)) is not None}
        return {
            "tokens": tokens,
            "profiled_tokens": profiled,
            "limit_s": {
                name: {phase: each / rate / trainer.world_size for phase, each in flop.items()}
                for name, rate in rates.items()
            },
        }

    def _disk(self, trained: int, supplies: list["Supply"]) -> dict[str, Any]:
        # The target is wanted for training and for profiling, from one cache: the larger of the two.
        supplies = list({s.language: s for s in sorted(supplies, key=lambda s: s.missing)}.values())
        base: int | None = 0
        missing: int | None = 0
        if self.module.base_name is not None:
            base, missing = _base_size(self.module.base_name, self.module.revision)
        needed = {
            "token_cache": sum(4 * supply.missing for supply in supplies),
            "checkpoints": 3 * 12 * trained,  # weights and two states in fp32: the best, the last, one being written
            "base": missing or 0,
        }
        places = {
            "token_cache": self.data.cache_dir,
            "checkpoints": Path(self.trainer.default_root_dir),
            "base": Path(constants.HF_HUB_CACHE),
        }
        free: dict[int, tuple[int, Path]] = {}
        wanted: dict[int, int] = {}
        for kind, place in places.items():
            there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
            disk = there.stat().st_dev
            free[disk] = (shutil.disk_usage(there).free, there)
            wanted[disk] = wanted.get(disk, 0) + needed[kind]
        return {
            **{f"{kind}_bytes": size for kind, size in needed.items()},
            "base_bytes": base,
            "base_download_bytes": missing,
            "flores_to_download": [language.short for language in self.data.flores_to_download],
            "text_download_bytes": sum(supply.download_bytes for supply in supplies),
            "free_bytes": min(left for left, _ in free.values()),
            "too_small": [str(there) for disk, (left, there) in free.items() if wanted[disk] > left],
        }


def _room(device: torch.device) -> tuple[float, float, str]:
    """Returns GiB that the process takes besides tensors, GiB that there are, and of what."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return _CONTEXT_GIB, properties.total_memory / _GIB, properties.name
    return peak_gib(device), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB, "this machine"


def _advice(peaks: Any, memory: Memory, settings: dict[str, Any], room: float) -> str:
    """Returns the keys that make the run fit into ``room`` bytes, those that cost least first, or that none does."""
    keys: list[str] = []
    changes: dict[str, Any] = {}
    if memory.validation > room:
        keys.append("--data.validation_batch_size 1")
        changes["validation"] = (1, settings["validation"][1])
    if memory.profiling > room:
        keys.append("--profiling.block_size 512 --profiling.batch_size 1")
        changes["profiling"] = (1, min(512, settings["profiling"][1]))
    one, again = {"training": (1, settings["training"][1])}, {"activation_checkpointing": True}
    for more, change in (
        ("", {}),
        ("--data.batch_size 1", one),
        ("--model.activation_checkpointing true", again),
        ("--data.batch_size 1 --model.activation_checkpointing true", {**one, **again}),
    ):
        named = [*keys, *([more] if more else [])]
        if named and (found := peaks({**changes, **change})).most <= room:
            return f"{' '.join(named)} makes it fit ({found.most / _GIB:.2f} GiB)"
    return f"no key makes it fit: the weights alone take {memory.weights / _GIB:.2f} GiB; take a smaller --model.base"


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


def _as_row(supply: "Supply") -> dict[str, Any]:
    row = {key: getattr(supply, key) for key in ("wanted", "cached", "available", "is_exact", "download_bytes")}
    return {"language": str(supply.language), **row}
