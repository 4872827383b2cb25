"""What is refused before text is tokenised, weights are loaded or a step is made: a function for each."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import torch

from datamodules.glotcc import GlotCCDataModule
from lightning_app.errors import UserError
from lightning_app.files import JSON, require_folder
from lightning_app.languages import find_language
from lightning_app.methods.registry import METHODS
from lightning_app.model.base import Base, base_without_weights
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.quantized import require_library
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.sharded_strategy import SHARDED


@dataclass
class Checked:
    """What the checks look at: a run as it is configured, with nothing loaded.

    Attributes:
        module: The base, and what of it is trained.
        data: The text.
        profiling: Where the neurons come from.
        trainer: The keys of the Trainer, of which there is none yet; none of them where nothing is trained.
    """

    module: SparseSubnetModule
    data: GlotCCDataModule
    profiling: ProfilingSettings
    trainer: JSON = field(default_factory=dict)

    @cached_property
    def base(self) -> Base:
        """The base's shape."""
        return base_without_weights(self.module.base_name, self.module.revision)

    @property
    def selects_neurons(self) -> bool:
        """Whether neurons of a base that exists are trained."""
        return self.module.method.needs_neurons and self.module.base_name is not None


def check_numbers(run: Checked) -> None:
    """Rates, decays and steps are numbers that an optimiser can work with."""
    module = run.module
    if not isinstance(module.betas, (tuple, list)) or len(module.betas) != 2:
        raise UserError(f"--model.betas is {module.betas}; expected two numbers, at least 0 and below 1")
    first, second = module.betas
    expected = {
        f"lr is {module.lr:g}; expected a number above 0": 0 < module.lr < inf,
        f"weight_decay is {module.weight_decay:g}; expected at least 0": 0 <= module.weight_decay < inf,
        f"betas are {first:g} and {second:g}; expected at least 0, below 1": 0 <= first < 1 and 0 <= second < 1,
        f"warmup_steps is {module.warmup_steps}; expected at least 0": module.warmup_steps >= 0,
        f"first_layer is {module.first_layer}; expected at least 0": module.first_layer >= 0,
    }
    for text, holds in expected.items():
        if not holds:
            raise UserError(f"--model.{text}")


def check_base_is_named(run: Checked) -> None:
    """There is something to train."""
    if not run.module.base_name and not run.module.architecture:
        raise UserError("no base model: give --model.base (a hub name or a folder), or --model.architecture")


def check_base_is_one(run: Checked) -> None:
    """A base is loaded or made, not both; and one that is made is trained as a whole."""
    module = run.module
    if module.architecture is None:
        return
    if module.base_name is not None:
        raise UserError(
            f"--model.base is {module.base_name} and --model.architecture is given too; expected one of the two"
        )
    if not module.method.trains_new_base:
        able = " or ".join(name for name, each in METHODS.items() if each.trains_new_base)
        raise UserError(f"a new base from --model.architecture has nothing to adapt yet; set --model.method {able}")


def check_base_can_be_quantized(run: Checked) -> None:
    """What is to be quantised is a base that exists and is not quantised yet, trained by what stands beside it."""
    module = run.module
    if module.base_name is not None and getattr(run.base.model.config, "quantization_config", None) is not None:
        raise UserError(
            f"{module.base_name} is quantised already, and its weights as they were are needed: give the --model.base "
            "that it was made from, with --model.quantization nf4 to keep that in 4 bits"
        )
    if (quantization := module.quantization) is None:
        return
    if module.base_name is None:
        raise UserError(f"--model.quantization is {quantization}, but a new base is trained as a whole; leave it out")
    if not module.method.trains_beside:
        able = ", ".join(name for name, each in METHODS.items() if each().trains_beside)
        raise UserError(
            f"--model.quantization {quantization} keeps the base's matrices in too few bits to train them, as "
            f"--model.method {module.method.name} does here; leave it out, or give --model.engine packed "
            f"and one of {able}"
        )
    if quantization == "int8" and module.is_compiled:
        raise UserError(
            "--model.compile true cannot trace the products of --model.quantization int8; leave one of the two out, or "
            "give nf4"
        )
    require_library(quantization)


def check_base_can_be_sharded(run: Checked) -> None:
    """What is to be sharded is a base in files, and nothing of the run needs the whole of it on one process."""
    if run.trainer.get("strategy") != SHARDED:
        return
    module = run.module
    others = {
        "model.architecture": module.architecture is not None,
        f"model.quantization {module.quantization}": module.quantization is not None,
        f"model.ema {module.ema}": module.ema is not None and not module.method.trains_beside,
        "trainer.translate": bool(run.trainer.get("translate")),
        "trainer.probe": bool(run.trainer.get("probe")),
    }
    if unable := next((key for key, is_given in others.items() if is_given), None):
        raise UserError(
            f"--trainer.strategy {SHARDED} does not go together with --{unable} yet, which needs the whole base on "
            "every process; leave it out, or give --trainer.strategy ddp"
        )


def check_neurons_are_trained(run: Checked) -> None:
    """Keys that choose neurons are given to a method that trains some."""
    module = run.module
    given = {"subnetwork": module.subnetwork_path, "first_layer": module.first_layer or None}
    for key, value in given.items():
        if value is not None and not module.method.needs_neurons:
            raise UserError(
                f"--model.{key} is {value}, but --model.method {module.method.name} trains no neurons; leave it out"
            )


def check_cache_is_a_folder(run: Checked) -> None:
    """The folder of caches is one, or can be made."""
    require_folder(run.data.corpus.cache_dir, "--data.cache_dir")


def check_files_are_read(run: Checked) -> None:
    """Own text is given for languages that something reads: to train on, to profile, or to calibrate with."""
    used = {share.language.glotcc for share in run.data.shares}
    used |= {language.glotcc for language in run.profiling.pool(run.module.languages)}
    if code := getattr(run.module.method, "source_language", None):
        source = find_language(code)
        used.add(source.glotcc)
        run.data.corpus.require_text([source])
    for code in run.data.corpus.files:
        if code not in used:
            raise UserError(
                f"--data.files has text of {find_language(code)}, which is neither trained on nor profiled; leave it "
                "out, or name the language in --language, --data.replay or --profiling.languages"
            )


def check_pool_is_compared(run: Checked) -> None:
    """The pool has several languages, and those that have a rate of their own."""
    if run.selects_neurons and run.module.subnetwork_path is None:
        run.profiling.require_pool(run.profiling.pool(run.module.languages))


def check_base_has_gated_ffns(run: Checked) -> None:
    """The base has neurons, as far as its configuration tells."""
    if run.selects_neurons:
        find_gated_ffns(run.base.model)


def check_blocks_fit_the_context(run: Checked) -> None:
    """No training sequence is longer than what the base was made for."""
    context = run.base.context if run.module.base_name is not None else None
    if context is not None and run.data.block_size > context:
        raise UserError(
            f"--data.block_size is {run.data.block_size}, but the context of {run.base.identity.name} is {context} "
            "tokens; lower it"
        )


def check_method_fits_the_base(run: Checked) -> None:
    """The base has what the method trains: the layers that are named, the matrices that an adapter is put beside."""
    module = run.module
    if module.base_name is None:
        return
    identity = run.base.identity
    if module.first_layer >= identity.layers:
        raise UserError(f"--model.first_layer is {module.first_layer}; {identity.name} has {identity.layers} layers")
    one_each = NeuronSet({layer: torch.zeros(1, dtype=torch.int64) for layer in range(identity.layers)})
    # Of its own: attaching changes the model.
    base = base_without_weights(module.base_name, module.revision).model
    module.method.attach(base, one_each if module.method.needs_neurons else None)


def check_subnetwork_is_the_bases(run: Checked) -> None:
    """The subnetwork file that is named belongs to a model of the base's shape, and has neurons of the languages."""
    module, path = run.module, run.module.subnetwork_path
    if run.selects_neurons and path is not None:
        subnetworks = Subnetworks.load(path)
        subnetworks.model.require_same(run.base.identity, "subnetwork", path)
        if module.languages:
            subnetworks.to_train(module.languages, module.first_layer, path)


def check_atlas_is_the_bases(run: Checked) -> None:
    """The atlas that is named belongs to a model of the base's shape, or can be made."""
    is_read = run.selects_neurons and run.module.subnetwork_path is None
    path = run.profiling.atlas_path(run.data.corpus.atlases) if is_read else None
    if path is None:
        return
    if path.exists():
        Atlas.load(path).model.require_same(run.base.identity, "atlas", path)
        return
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--profiling.atlas is {path}, which cannot be written in {there}; name a file elsewhere")


CHECKS: tuple[Callable[[Checked], None], ...] = (
    check_numbers,
    check_base_is_named,
    check_base_is_one,
    check_base_can_be_quantized,
    check_base_can_be_sharded,
    check_neurons_are_trained,
    check_blocks_fit_the_context,
    check_cache_is_a_folder,
    check_files_are_read,
    check_pool_is_compared,
    check_base_has_gated_ffns,
    check_method_fits_the_base,
    check_subnetwork_is_the_bases,
    check_atlas_is_the_bases,
)


def require_checks(
    module: SparseSubnetModule, data: GlotCCDataModule, profiling: ProfilingSettings, trainer: JSON | None = None
) -> None:
    """Raises the `UserError` of the first check that fails."""
    run = Checked(module, data, profiling, trainer or {})
    for check in CHECKS:
        check(run)
