"""LAPE profiling before the optimiser exists: counts activations into an atlas and selects the target's neurons."""

from lightning.pytorch import Callback

from lightning_app.profiling.processes import Processes
from lightning_app.profiling.profiler import Profiler
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer


class LAPEProfiling(Callback):
    """Finds the neurons that speak the target language, where the method needs some and none are named.

    For every language of the pool, monolingual text runs through the decoder without output head, and per neuron the
    tokens with a positive gate are counted. Counts go into an atlas: languages that it holds are not counted again.

    Args:
        settings: The pool, how much text, and how neurons are chosen.

    Raises:
        UserError: The language gets no neurons, or the atlas belongs to another model.
    """

    def __init__(self, settings: ProfilingSettings) -> None:
        self.settings = settings

    def setup(self, trainer: NeuroglotTrainer, pl_module: SparseSubnetModule, stage: str) -> None:
        """Profiles and selects; in Lightning's order of hooks the optimiser does not exist yet."""
        if stage != "fit" or not pl_module.needs_selection:
            return
        device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        processes = Processes(trainer.global_rank, trainer.world_size, device, context)
        pl_module.base.prepare_on(device)
        profiler = Profiler(self.settings, pl_module.base, trainer.datamodule.corpus, processes)
        pool = self.settings.pool(pl_module.targets)
        atlas, path = profiler.count(pool)
        pl_module.train_neurons(profiler.select(atlas, pool, pl_module.targets), path)
