"""Works out what a run will take, before it starts, from shapes and sizes alone."""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import PreTrainedModel

from datamodules.examination import Fertility, fertility_of
from datamodules.glotcc import GlotCCDataModule
from datamodules.order import RunLength
from datamodules.supply import Supply
from lightning_app.errors import UserError
from lightning_app.languages import Language, find_language
from lightning_app.model.base import Base, base_without_weights
from lightning_app.model.limit import device_rate, forward_flop, frozen_step_flop, known_peak
from lightning_app.model.loading import base_size
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import all_neurons
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.planning.fitting import Setting, advise
from lightning_app.planning.memory import Batches, peak_gib, room_gib
from lightning_app.planning.plan import DiskPlan, EvaluationPlan, MemoryPlan, Plan, TimePlan
from lightning_app.profiling.profiler import find_atlas
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.training.module import SparseSubnetModule

_GIB = 2**30
_CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 141, 192)
_KNOWN = ("NVIDIA H100", "NVIDIA A100", "NVIDIA RTX 4090")
_CONTEXT_GIB = 0.8  # of CUDA and its libraries, and what the allocator loses between blocks
_FLORES_TOKENS = 40_000  # of dev in one language, about
_LARGEST_SHARE = 0.25  # of the neurons taken over the whole pool, the most that one language got in the paper


@dataclass(frozen=True)
class Launch:
    """How a run would be launched.

    Attributes:
        dtype: Of the frozen weights.
        device: Of this process.
        processes: How many there would be.
        accumulate: Batches per optimiser step.
        validate_every: Optimiser steps between validations.
        max_steps: Optimiser steps at most; -1 where nothing limits them.
        run_dir: Folder of all runs.
        shards: Processes over which the base is spread; 1 where each holds all of it.
        room: GiB of a GPU to plan for in place of the device, and its name.
    """

    dtype: torch.dtype
    device: torch.device
    processes: int
    accumulate: int
    validate_every: int
    max_steps: int
    run_dir: Path
    shards: int = 1
    room: tuple[float, str] | None = None


@dataclass
class Planner:
    """Works out a plan for the run that these would make. Loads no weights and writes nothing.

    Attributes:
        module: Which base, and what of it is trained.
        data: Which text, and how much of it.
        profiling: The pool of languages and the atlas.
        launch: On what, and by how many processes.
    """

    module: SparseSubnetModule
    data: GlotCCDataModule
    profiling: ProfilingSettings
    launch: Launch

    def plan(self) -> Plan:
        """Returns the plan. Reads configuration, tokenizer and the beginning of uncached texts.

        Raises:
            UserError: There is no language, no configuration can be read, or the language has no neurons.
        """
        module, data = self.module, self.data
        if not data.shares:
            raise UserError("no language to plan for: give --language (cy, say) or --config cy.yaml")
        base, corpus = self._base(), data.corpus
        identity = base.identity
        pool = self.profiling.pool(module.languages) if module.needs_selection else []
        counted_on = identity, self.profiling.block_size_on(base), module.quantization
        atlas = find_atlas(self.profiling, corpus, *counted_on) if pool else None
        uncounted = [language for language in pool if atlas is None or language not in atlas]
        neurons, source = self._neurons(base, pool, atlas if not uncounted else None)
        text: list[Supply] = []
        counted: list[Supply] = []
        if corpus.new_vocabulary is None:
            wanted = {share.language: int(data.token_budget * share.share) for share in data.shares}
            text = [corpus.supply(language, tokens, is_trained=True) for language, tokens in wanted.items()]
            counted = [corpus.supply(language, self.profiling.tokens_per_language) for language in uncounted]
        length = self._length(text)
        attached = module.method.attach(base.model, neurons)
        trained = attached.trained_parameters
        return Plan(
            model=identity,
            language=", ".join(map(str, module.languages)) or "a mixture",
            trained_parameters=trained,
            neurons=len(neurons) if neurons is not None else None,
            neurons_from=source or attached.describe(),
            fertility=self._fertility(),
            text=text,
            profiling_text=counted,
            memory=self._memory(neurons, is_profiled=bool(uncounted)),
            time=self._time(base, attached.lowest_layer, length, counted),
            disk=self._disk(trained, [*text, *counted]),
        )

    def _fertility(self) -> Fertility | None:
        """Returns how the tokenizer cuts the target, beside English where FLORES here has that; None without FLORES."""
        data, language = self.data, self.data.target
        if language is None or data.corpus.new_vocabulary:
            return None
        mine, other = self._sentences(language), self._sentences(find_language("en"))
        return fertility_of(data.tokenizer, language, mine, other if len(mine) == len(other) else ()) if mine else None

    def _sentences(self, language: Language) -> list[str]:
        """Returns a language's sentences of FLORES devtest; none where they are not on this machine."""
        text = self.data.evaluation_text
        with contextlib.suppress(UserError):  # a folder lacks the language, which fit will say
            return [] if text.to_download([language]) else text.sentences(language)["devtest"]
        return []

    def plan_evaluation(self, names: Sequence[str], data_dir: Path | None) -> EvaluationPlan:
        """Returns what ``evaluate`` takes for the base, in suites and tasks.

        Raises:
            UserError: There is no such suite or task, no language, or the tokenizer is still to be trained.
        """
        from lightning_app.evaluation.loading import TaskData
        from lightning_app.planning.evaluation import EvaluationPlanner

        data = self.data
        if data.corpus.new_vocabulary is not None:
            raise UserError("--evaluate cannot be planned for a base whose tokenizer is still to be trained")
        place = TaskData(data_dir, data.flores, data.corpus.cache_dir)
        planner = EvaluationPlanner(self._base(), data.tokenizer, place, self.launch.device)
        return planner.plan(names, self.module.languages)

    def _base(self) -> Base:
        module, corpus = self.module, self.data.corpus
        architecture = module.architecture
        if architecture is not None:
            architecture = {"vocab_size": corpus.new_vocabulary or len(corpus.tokenizer), **architecture}
        dtype = module.method.weight_dtype(self.launch.dtype)
        return base_without_weights(module.base_name, module.revision, dtype, architecture)

    def _base_model(self) -> PreTrainedModel:
        return self._base().model

    def _neurons(self, base: Base, pool: list[Language], atlas: Atlas | None) -> tuple[NeuronSet | None, str]:
        """Returns the neurons to train, where the method needs some, and how they are known."""
        module, profiling = self.module, self.profiling
        if not module.method.needs_neurons:
            return None, ""
        if module.subnetwork_path is not None:
            found = Subnetworks.load(module.subnetwork_path)
            return found.to_train(module.targets, module.first_layer, module.subnetwork_path), (
                f"read from {module.subnetwork_path}"
            )
        if atlas is not None:
            found = profiling.select(atlas, pool)
            return found.to_train(module.targets, module.first_layer, "of the atlas"), "selected from the atlas"
        identity = base.identity
        each = max(1, round(profiling.rate * identity.neurons_per_layer * _LARGEST_SHARE))
        source = f"assumed, a quarter of the {100 * profiling.rate:g} % of all languages; profiling will tell"
        assumed = all_neurons(identity.layers, each).from_layer(module.first_layer)
        if not len(assumed):
            raise UserError(f"--model.first_layer is {module.first_layer}; {identity} has {identity.layers} layers")
        return assumed, source

    def _memory(self, neurons: NeuronSet | None, is_profiled: bool) -> MemoryPlan:
        module, data, profiling = self.module, self.data, self.profiling
        device = self.launch.device if self.launch.room is None else torch.device("cuda")
        batches = Batches(
            training=(data.batch_size, data.block_size),
            are_documents_apart=data.chunking == "documents",
            validation=(data.validation_batch_size, data.block_size),
            profiling=(profiling.batch_size, profiling.block_size_on(self._base())) if is_profiled else None,
        )

        recomputes, shards = module.activation_checkpointing, self.launch.shards
        setting = Setting(module.method, neurons, batches, recomputes, module.quantization, shards)
        memory = setting.memory(self._base_model())
        # A CPU's process is there already; a GPU's context is not.
        beside = _CONTEXT_GIB if device.type == "cuda" else peak_gib(device)
        room, where = self.launch.room if self.launch.room is not None else room_gib(device)
        needed = memory.on(device) / _GIB + beside
        card_gib = memory.most / _GIB + _CONTEXT_GIB
        fits = needed <= room
        return MemoryPlan(
            sizes=memory,
            batches=batches,
            peak_gib=needed,
            smallest_card_gb=next((gb for gb in _CARDS_GB if gb * 1e9 / _GIB >= card_gib), None),
            device=where,
            device_gib=room,
            advice=None if fits else advise(setting, self._base_model, (room - beside) * _GIB, device),
        )

    def _length(self, text: list[Supply]) -> RunLength:
        """Returns how long the run is on the text that there is; raises `UserError` where that is less than a step."""
        launch, data = self.launch, self.data
        wanted = [min(supply.wanted, (supply.available or supply.wanted) * data.epochs) for supply in text]
        tokens = sum(wanted) if text else data.token_budget
        length = RunLength(
            tokens // data.block_size, data.block_size, data.batch_size, launch.processes, launch.accumulate,
            launch.max_steps,
        )  # fmt: skip
        length.require_step(data.block_size)
        return length

    def _time(self, base: Base, lowest_layer: int, length: RunLength, counted: list[Supply]) -> TimePlan:
        """Returns, per device, the seconds that every phase takes at the limit of frozen training."""
        launch, data, model = self.launch, self.data, base.model
        tokens = length.tokens
        profiled = sum(min(supply.wanted, supply.available or supply.wanted) for supply in counted)
        validated = (2 + length.steps // launch.validate_every) * _FLORES_TOKENS * len(data.validation_languages)
        block_size = self.profiling.block_size_on(base)
        flop = {
            "profiling": profiled * forward_flop(model, block_size, range(base.identity.layers)),
            "training": tokens * frozen_step_flop(model, lowest_layer, data.block_size),
            "validation": validated * forward_flop(model, data.block_size),
        }
        rate, source = device_rate(launch.device, model.dtype)
        rates = {f"this machine ({source})": rate}
        if launch.device.type != "cuda":
            rates |= {name: peak for name in _KNOWN if (peak := known_peak(name)) is not None}
        limit_s = {
            name: {phase: each / rate / launch.processes for phase, each in flop.items()}
            for name, rate in rates.items()
        }
        return TimePlan(tokens, profiled, limit_s)

    def _disk(self, trained: int, supplies: list[Supply]) -> DiskPlan:
        # The target is wanted for training and for profiling, from one cache: the larger of the two.
        supplies = list({s.language: s for s in sorted(supplies, key=lambda s: s.missing)}.values())
        name = self.module.base_name
        base, download = base_size(name, self.module.revision) if name is not None else (0, 0)
        tokens = sum(4 * supply.missing for supply in supplies)
        checkpoints = 3 * 12 * trained  # weights and two states in fp32: the best, the last, one being written
        corpus = self.data.corpus
        hub = Path(constants.HF_HUB_CACHE)
        free_bytes, too_small = _look_at_disks(
            (corpus.cache_dir, tokens), (self.launch.run_dir, checkpoints), (hub, download or 0)
        )
        return DiskPlan(
            token_cache_bytes=tokens,
            checkpoints_bytes=checkpoints,
            base_bytes=base,
            base_download_bytes=download,
            text_download_bytes=sum(supply.download_bytes for supply in supplies),
            flores_to_download=[language.short for language in self.data.flores_to_download],
            free_bytes=free_bytes,
            too_small=too_small,
        )


def _look_at_disks(*needs: tuple[Path, int]) -> tuple[int, list[str]]:
    """Returns the least that is free on any disk of these folders, and the disks with less than is needed on them."""
    free: dict[int, tuple[int, Path]] = {}
    wanted: dict[int, int] = {}
    for place, needed in needs:
        there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
        disk = there.stat().st_dev
        free[disk] = (shutil.disk_usage(there).free, there)
        wanted[disk] = wanted.get(disk, 0) + needed
    too_small = [str(there) for disk, (left, there) in free.items() if wanted[disk] > left]
    return min(left for left, _ in free.values()), too_small
