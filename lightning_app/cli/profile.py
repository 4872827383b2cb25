"""``profile``: count activations into the atlas, train nothing."""

import re

import torch.distributed

from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError
from lightning_app.languages import Language, expand_languages
from lightning_app.model.base import base_dtype, load_base
from lightning_app.model.sharding import load_sharded
from lightning_app.planning.checks import Checked, check_base_can_be_sharded, require_checks
from lightning_app.profiling.processes import Processes
from lightning_app.profiling.profiler import Profiler
from lightning_app.progress import short
from lightning_app.training.sharded_strategy import SHARDED, mesh_over

PROFILE = Verb(
    "profile",
    "Count activations of the languages of the pool and add them to the atlas; train nothing.",
    (
        "languages", "part", "language", "model.base", "model.revision", "profiling.languages",
        "profiling.tokens_per_language", "profiling.block_size", "profiling.batch_size", "profiling.stop_when_stable",
        "profiling.atlas",
        "data.source", "data.files", "data.cache_dir", "trainer.devices", "trainer.precision",
    ),
    {
        "languages": (
            str | None, None,
            "Languages to count, in place of the pool: all (of FLORES-200), family:Celtic, script:Geor, a file with "
            "one a line, or mt,af,...; those of a group that have too little text are left out.",
        ),
        "part": (str | None, None, "Count only this part of them, as 3/10; for the tasks of an array of jobs."),
    },
)  # fmt: skip


def profile(arguments: list[str], shows_all: bool) -> None:
    """Counts on all processes; the first says what the atlas holds."""
    cli = NeuroglotCLI(PROFILE, arguments, shows_all)
    module, settings = cli.model, cli.profiling
    if cli.config.languages is None:
        pool, optional = settings.pool(module.languages), set[Language]()
    else:
        pool, optional = expand_languages(cli.config.languages)
    pool = _part(pool, cli.config.part)
    require_checks(module, cli.datamodule, settings)
    check_base_can_be_sharded(Checked(module, cli.datamodule, settings, dict(cli.config.trainer)))
    if module.base_name is None:
        raise UserError("a base from scratch has nothing to count yet; give a --model.base that exists")
    is_sharded = cli.config.trainer.strategy == SHARDED
    fabric = cli.make_fabric()
    fabric.launch()
    dtype, device = base_dtype(cli.config.trainer.precision), fabric.device
    if is_sharded:
        mesh = mesh_over(device, fabric.world_size)
        base = load_sharded(module.base_name, module.revision, dtype, mesh, device, fabric.broadcast)
    else:
        base = load_base(module.base_name, module.revision, dtype, module.quantization, device)
    base.prepare_on(device)
    processes = Processes(fabric.global_rank, fabric.world_size, device, fabric.autocast)
    atlas, path = Profiler(settings, base, cli.datamodule.corpus, processes).count(pool, optional)
    held = ", ".join(f"{code} {short(tokens)}" for code, tokens in atlas.tokens.items())
    processes.say(f"atlas {path}: {len(atlas.tokens)} languages, tokens {held}")
    processes.say(f"select with: python main.py subnetwork --atlas {path} --profiling.rate {settings.rate:g}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _part(pool: list[Language], part: str | None) -> list[Language]:
    """Returns every so many-th language of the pool, as ``part`` says: 1/3 is the first, fourth, seventh."""
    if part is None:
        return pool
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or not 0 < int(match[1]) <= int(match[2]) <= len(pool):
        raise UserError(f"--part is {part}; expected a part of the {len(pool)} languages, as 1/{min(10, len(pool))}")
    return pool[int(match[1]) - 1 :: int(match[2])]
