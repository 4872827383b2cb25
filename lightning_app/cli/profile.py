"""``profile``: count activations into the atlas, train nothing."""

import torch.distributed

from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError
from lightning_app.model.base import base_dtype, load_base
from lightning_app.planning.checks import require_checks
from lightning_app.profiling.processes import Processes
from lightning_app.profiling.profiler import Profiler
from lightning_app.progress import short

PROFILE = Verb(
    "profile",
    "Count activations of the languages of the pool and add them to the atlas; train nothing.",
    (
        "language", "model.base", "model.revision", "profiling.languages", "profiling.tokens_per_language",
        "profiling.block_size", "profiling.batch_size", "profiling.stop_when_stable", "profiling.atlas",
        "data.source", "data.files", "data.cache_dir", "trainer.devices", "trainer.precision",
    ),
)  # fmt: skip


def profile(arguments: list[str], shows_all: bool) -> None:
    """Counts on all processes; the first says what the atlas holds."""
    cli = NeuroglotCLI(PROFILE, arguments, shows_all)
    module, settings = cli.model, cli.profiling
    require_checks(module, cli.datamodule, settings)
    if module.base_name is None:
        raise UserError("a base from scratch has nothing to count yet; give a --model.base that exists")
    fabric = cli.make_fabric()
    fabric.launch()
    base = load_base(module.base_name, module.revision, base_dtype(cli.config.trainer.precision))
    base.prepare_on(fabric.device)
    processes = Processes(fabric.global_rank, fabric.world_size, fabric.device, fabric.autocast)
    atlas, path = Profiler(settings, base, cli.datamodule.corpus, processes).count(settings.pool(module.languages))
    held = ", ".join(f"{code} {short(tokens)}" for code, tokens in atlas.tokens.items())
    processes.say(f"atlas {path}: tokens {held}")
    processes.say(f"select with: python main.py subnetwork --atlas {path} --profiling.rate {settings.rate:g}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
