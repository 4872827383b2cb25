"""``plan``: what fit would take."""

import json
from dataclasses import replace

from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.measure import data_folder
from lightning_app.cli.setup import launch_of
from lightning_app.cli.verb import Verb
from lightning_app.planning.checks import require_checks
from lightning_app.planning.fitting import read_card
from lightning_app.planning.planner import Planner
from lightning_app.reports.tables import format_plan

PLAN = Verb(
    "plan",
    "Say what fit would take in memory, text, time and disk, and what is cached; load no weights.",
    (
        "language", "model.base", "model.method", "model.first_layer", "model.activation_checkpointing",
        "data.token_budget", "data.batch_size", "data.block_size", "profiling.languages", "profiling.rate",
        "trainer.devices", "trainer.precision", "for", "evaluate", "data_dir", "json",
    ),
    {
        "for": (str | None, None, "A card to fit into, 12gb say: say with which keys, the cheapest first."),
        "json": (bool, False, "Print JSON."),
        "evaluate": (str | None, None, "Say what evaluate would take, too: suites or tasks as its --tasks has them."),
        "data_dir": (str | None, None, "Folder of its data sets in the hub's layout."),
    },
)  # fmt: skip


def _card(text: str | None) -> tuple[float, str] | None:
    if text is None:
        return None
    size = read_card(text)
    return size * 1e9 / 2**30, f"a GPU of {size:g} GB"


def plan(arguments: list[str], shows_all: bool) -> None:
    """Prints the plan."""
    cli = NeuroglotCLI(PLAN, arguments, shows_all)
    require_checks(cli.model, cli.datamodule, cli.profiling, dict(cli.config_init.trainer))
    launch = launch_of(cli.config, cli.make_fabric(computes=False), _card(cli.config["for"]))
    planner = Planner(cli.model, cli.datamodule, cli.profiling, launch)
    found = planner.plan()
    if cli.config.evaluate is not None:
        names = [name.strip() for name in cli.config.evaluate.split(",") if name.strip()]
        found = replace(found, evaluation=planner.plan_evaluation(names, data_folder(cli.config.data_dir)))
    print(json.dumps(found.as_json(), ensure_ascii=False) if cli.config.json else format_plan(found), flush=True)
