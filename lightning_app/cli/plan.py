"""``plan``: what fit would take."""

import json
from pathlib import Path

from jsonargparse import ActionYesNo

from lightning_app.cli.launch import make_fabric
from lightning_app.cli.parser import Verb, make_parser
from lightning_app.model.base import base_dtype
from lightning_app.planning.checks import require_checks
from lightning_app.planning.planner import Launch, Planner
from lightning_app.reports.plan import format_plan

PLAN = Verb(
    "plan",
    "Say what fit would take in memory, text, time and disk, and what is cached; load no weights.",
    (
        "language", "model.base", "model.method", "model.first_layer", "model.activation_checkpointing",
        "data.token_budget", "data.batch_size", "data.block_size", "profiling.languages", "profiling.rate",
        "trainer.devices", "trainer.precision", "json",
    ),
)  # fmt: skip


def plan(arguments: list[str], shows_all: bool) -> None:
    """Prints the plan."""
    parser = make_parser(PLAN, shows_all)
    parser.add_argument("--json", action=ActionYesNo, default=False, help="Print JSON.")
    settings = parser.instantiate_classes(parser.parse_args(arguments))
    trainer, module = settings.trainer, settings.model
    require_checks(module, settings.profiling)
    fabric = make_fabric(trainer)
    launch = Launch(
        base_dtype(trainer.precision), fabric.device, fabric.world_size, trainer.accumulate_grad_batches,
        trainer.validate_every, trainer.max_steps, Path(settings.run_dir),
    )  # fmt: skip
    found = Planner(module, settings.data, settings.profiling, launch).plan()
    print(json.dumps(found.as_json(), ensure_ascii=False) if settings.json else format_plan(found), flush=True)
