"""``evaluate``: what a model can do, by tasks of lm-evaluation-harness, beside its base."""

from pathlib import Path

from lightning_app.cli.lightning_cli import ParsedCLI
from lightning_app.cli.measure import data_folder, of_run
from lightning_app.cli.verb import Verb, say
from lightning_app.errors import UserError
from lightning_app.evaluation.contestants import find_contest
from lightning_app.evaluation.evaluation import evaluate as measure
from lightning_app.evaluation.loading import TaskData
from lightning_app.evaluation.suites import choose_tasks
from lightning_app.files import write_text
from lightning_app.languages import find_languages
from lightning_app.reports.comparison import as_json
from lightning_app.reports.evaluation import describe_evaluation, format_evaluation, read_evaluation
from lightning_app.run import RunFolder, is_first_process

EVALUATE = Verb(
    "evaluate",
    "Measure what a run, a checkpoint or any model can do, by tasks of lm-evaluation-harness, beside its base, and say "
    "what got better or worse beyond noise; the newest run where nothing is named. What is done is not done again.",
    (
        "tasks", "source", "run_dir", "language", "data_dir", "limit", "data.flores", "data.cache_dir",
        "trainer.accelerator",
    ),
    {
        "tasks": (
            str, "base", "Suites (paper, base, skills), our tasks and the harness's, comma between; TASK:METRIC shows "
            "another metric.",
        ),
        "source": (str | None, None, "Run folder, checkpoint, or a model by hub name or folder."),
        "data_dir": (str | None, None, "Folder of data sets in the hub's layout; what it lacks is the hub's."),
        "limit": (int | None, None, "Only so many items of each task, for trying; kept in files of its own."),
    },
)  # fmt: skip


def evaluate(arguments: list[str], shows_all: bool) -> None:
    """Measures, keeps the scores and evaluation.json, and prints the table."""
    cli = ParsedCLI(EVALUATE, of_run(arguments), shows_all)
    settings = cli.config
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"--limit is {settings.limit}; expected a whole number above zero")
    cli.require_whole_base()
    fabric = cli.make_fabric()
    if not is_first_process():
        return
    if fabric.world_size > 1:
        say(f"evaluate runs on one device, the first of {fabric.world_size}")
    source = Path(settings.source) if settings.source else RunFolder.newest(Path(settings.run_dir)).path
    cache_dir = Path(settings.data.cache_dir)
    data = TaskData(data_folder(settings.data_dir), settings.data.flores, cache_dir)
    contest = find_contest(source, cache_dir, fabric.device, settings.limit)
    is_named = "--language" in {argument.partition("=")[0] for argument in arguments} or not contest.languages
    named = [each for each, _ in find_languages(settings.language)] if settings.language and is_named else []
    languages = named or contest.languages
    tasks = choose_tasks([name.strip() for name in settings.tasks.split(",") if name.strip()], languages)
    before = read_evaluation(contest.file)
    say(f"measuring {' and '.join(each.name for each in contest.contestants)} of {source}")
    outcomes = measure(tasks, contest.contestants, data, settings.limit, say)
    described = describe_evaluation(outcomes, contest.about, settings.limit, before)
    write_text(contest.file, as_json(described))
    say(f"\n{format_evaluation(outcomes, settings.limit)}\n")
    say(f"files of the evaluation: {contest.file}, {contest.contestants[-1].folder}/")
