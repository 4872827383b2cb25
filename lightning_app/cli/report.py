"""``report``: a run on a page."""

from pathlib import Path

from lightning_app.cli.lightning_cli import ParsedCLI
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import UserError
from lightning_app.files import write_text
from lightning_app.reports.run_page import make_run_page
from lightning_app.run import RunFolder

REPORT = Verb(
    "report",
    "Tell of runs, each on a page that opens from the disk, report.html in its folder: what was done, what it gained "
    "and cost, what it writes. Of the newest run where none is named. It shows what evaluate and analyze have found, "
    "so make it again after them.",
    ("runs", "run_dir"),
    {"runs": (list[str], [], "Run folders.")},
    has_defaults=False,
    words="runs",
)  # fmt: skip


def report(arguments: list[str], shows_all: bool) -> None:
    """Writes the pages."""
    settings = ParsedCLI(REPORT, arguments, shows_all).config
    folders = [RunFolder(Path(run)) for run in settings.runs] or [RunFolder.newest(Path(settings.run_dir))]
    for folder in folders:
        if not folder.path.is_dir():
            raise UserError(f"there is no folder {folder}; expected that of a run")
    for folder, page in [(folder, make_run_page(folder)) for folder in folders]:
        write_text(folder.report, page)
        say(f"report: {folder.report}")
