"""``runs``: every run under a folder, in one table."""

import argparse
from pathlib import Path

from lightning_app.cli.command_line import quiet_libraries
from lightning_app.cli.verb import Verb, say

RUNS = Verb(
    "runs",
    "List the runs under --run_dir, those of comparisons too: what each is, what it gained and lost, how far it is.",
    ("run_dir", "sort", "json"),
    {
        "sort": (
            str,
            "when",
            "Column to sort by, best or newest first: gain, worst, run, state, ...; or a setting.",
        ),
        "json": (bool, False, "Print JSON, with every setting in which the runs differ."),
    },
)


def runs(arguments: list[str], shows_all: bool) -> None:
    """Prints the table; reads JSON and YAML only, so that it needs neither torch nor much time."""
    from lightning_app.comparison.overview import read_rows
    from lightning_app.reports.layout import as_json
    from lightning_app.reports.overview import describe_runs, format_runs, sort_rows

    settings = _parse(arguments, shows_all)
    root = Path(settings.run_dir)
    rows = read_rows(root)
    if rows:
        rows = sort_rows(rows, settings.sort)
    else:
        say(f"there are no runs under {root}/; make one with: python main.py fit --config cy.yaml")
    if settings.json:
        print(as_json(describe_runs(rows)), end="", flush=True)
    elif rows:
        print(format_runs(rows), flush=True)


def _parse(arguments: list[str], shows_all: bool) -> argparse.Namespace:
    """Returns the keys; whatever is not of this verb alone, a configuration say, is left to the parser of all verbs."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--run_dir", default="runs")
    parser.add_argument("--sort", default=RUNS.options["sort"][1])
    parser.add_argument("--json", action="store_true")
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        known, rest = None, arguments
    if known is not None and not rest:
        return known
    from lightning_app.cli.lightning_cli import ParsedCLI

    quiet_libraries()
    return ParsedCLI(RUNS, arguments, shows_all).config
