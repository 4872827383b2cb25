"""Tasks of lm-evaluation-harness with their data: the harness's own, and ours in its form."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path

import datasets
import evaluate as hf_evaluate
import jinja2
import lm_eval.tasks
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from jinja2 import meta
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from datamodules.flores import Split
from lightning_app.errors import UserError
from lightning_app.evaluation.tasks.data import DATA_ADVICE, DATA_ALTERNATIVES
from lightning_app.files import JSON, digest, one_line
from lightning_app.hub import hub_errors
from lightning_app.languages import Language

TASKS = Path(__file__).parent / "tasks"
"""Our own task files, in the harness's form: ``lm_eval --include_path`` reads them too."""

OWN = "neuroglot_"
"""Begins the names that they have in the harness."""

_UNREADABLE = (
    DatasetsError, jinja2.TemplateError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OSError,
)  # fmt: skip
_OF_NO_ROWS = ("size 0", "BatchSize must be greater than 0")  # of an index, and of parquet

_PREPARED: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends: items are read from there

# Of the harness's tasks, where those are that suites.py names.
_SUITES_FOLDERS = ("multiblimp", "global_piqa", "hellaswag", "piqa", "winogrande", "arc")


@dataclass(frozen=True)
class TaskData:
    """Where tasks find their items.

    Attributes:
        folder: Data sets in the hub's layout, ``OWNER/NAME``; what it lacks is the hub's. None for the hub alone.
        flores: As ``--data.flores``.
        cache_dir: Where FLORES's tarball is kept.
        flores_split: What of FLORES our tasks are made of; dev is for validations.
    """

    folder: Path | None
    flores: str
    cache_dir: Path
    flores_split: Split = "devtest"


@cache
def _suites_tasks() -> TaskManager:
    """Finds the harness's tasks that our suites name; all of its fourteen thousand files take seconds to read."""
    root = Path(lm_eval.tasks.__file__).parent
    return _quiet_manager(include_path=[root / folder for folder in _SUITES_FOLDERS], include_defaults=False)


@cache
def _of_harness() -> TaskManager:
    return _quiet_manager()


@cache
def _own_names() -> frozenset[str]:
    return frozenset(_quiet_manager(include_path=str(TASKS), include_defaults=False).all_tasks)


def _quiet_manager(**options: object) -> TaskManager:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # It downloads code from the hub, and runs it.
    hf_evaluate.load = _refuse_metric
    return TaskManager(**options)


def _refuse_metric(name: str, *_: object, **__: object) -> None:
    raise UserError(f"metric {name} is code from the hub, which is not run here; leave the task out")


def harness_names() -> list[str]:
    """Returns the names of all tasks, groups and tags that the harness itself has; takes seconds the first time."""
    return list(_of_harness().all_tasks)


def is_in_harness(name: str) -> bool:
    """Tells whether the harness has a task, group or tag of a name; a typo is found without reading all as YAML."""
    return name in _suites_tasks().task_index or (_is_mentioned(name) and name in _of_harness().task_index)


def _is_mentioned(name: str) -> bool:
    return any(name.encode() in path.read_bytes() for path in Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"))


def has_suites_task(name: str) -> bool:
    """Tells whether the harness has one of the tasks that our suites are made of, by a name that they may have."""
    return name in _suites_tasks().task_index


def load_tasks(name: str, language: Language | None, data: TaskData) -> list[ConfigurableTask]:
    """Returns the tasks of a name with their items: one, or those of a group or tag.

    Args:
        name: Of a task, group or tag of the harness, or of one of our task files.
        language: Whose items, for ours.
        data: Where the items are.

    Raises:
        UserError: The data cannot be had, lacks a column, or has no items; or the task runs code that a model writes,
            or needs more than text.
    """
    if name in _own_names():
        code = language.glotcc if language else None
        place = {"flores": _absolute(data.flores), "cache_dir": str(data.cache_dir.resolve())}
        settings = {"language": code, "flores_split": data.flores_split, **place}
        manager = _quiet_manager(include_path=str(TASKS), include_defaults=False, metadata=settings)
    else:
        manager = _suites_tasks() if has_suites_task(name) else _of_harness()
    configs = list(_configs(manager, name))
    if any(config.get("unsafe_code") for config in configs):
        raise UserError(f"task {name} runs code that the model writes, which is not done here; leave it out")
    repositories = [config["dataset_path"] for config in configs if "dataset_path" in config]
    what = repositories[0] if repositories else f"the data of {name.removeprefix(OWN)}"
    with _data_errors(what, configs[0] if configs else {}), _inside(data.folder, repositories):
        tasks = _load(manager, name)
        for task in tasks:
            _require_text_and_metrics(task)
    return tasks


def _require_text_and_metrics(task: ConfigurableTask) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {task.task_name} needs more than text; leave it out")
    functions = getattr(task, "_metric_fn_list", {})
    lacking = [name for name, function in functions.items() if function is None]
    if lacking and task.config.process_results is None:
        raise UserError(
            f"metric {lacking[0]} of task {task.task_name} is none of the harness's own, and code from the hub is not "
            "run here; leave the task out"
        )


def _configs(manager: TaskManager, name: str) -> Iterator[JSON]:
    """Yields what the files of a task say, or of all tasks of a group or tag; nothing is imported yet."""
    entry = manager.task_index[name]
    config = entry.cfg or {}
    members = {Kind.GROUP: config.get("task"), Kind.TAG: entry.tags}.get(entry.kind)
    if members is None:
        yield config
    for member in members or ():
        child = member if isinstance(member, str) else member.get("task") or member.get("group")
        if child in manager.task_index:
            yield from _configs(manager, child)


def _load(manager: TaskManager, name: str) -> list[ConfigurableTask]:
    try:
        return list(manager.load([name])["tasks"].values())
    except KeyError as error:
        path = manager.task_index[name].yaml_path
        if path is None or error.args[0] not in ("train", "training", "dev"):
            raise
        # The harness wants the split that examples are drawn from even where no example is shown.
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(f"include: {path}\ntask: {name}\ntraining_split: null\nfewshot_split: null\n")
            file.flush()
            return list(manager.load([file.name])["tasks"].values())


def task_digest(task: ConfigurableTask, limit: int | None) -> str:
    """Returns a digest of what a task asks and how: its configuration and its items, but not where they lie."""
    config = {key: value for key, value in task.dump_config().items() if key not in ("metadata", "dataset_path")}
    docs: Iterable[JSON] = task.eval_docs or ()
    items = [dict(item) for item in islice(docs, limit)]
    said = [json.dumps(each, sort_keys=True, default=_name_of) for each in (config, items)]
    return digest(*said, metadata.version("lm_eval"))


def _name_of(value: object) -> str:
    """Returns what stands for a function or an object: without its address, which is another in every process."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _absolute(flores: str) -> str:
    path = Path(flores).expanduser()
    return str(path.resolve()) if path.exists() else flores


@contextlib.contextmanager
def _inside(folder: Path | None, repositories: Sequence[str]) -> Iterator[None]:
    """Makes ``folder`` the working directory, where `datasets` looks for OWNER/NAME before it asks the hub.

    What it finds there it prepares anew: its cache would give the rows of another folder, or of earlier files.
    """
    if folder is None:
        yield
        return
    before = datasets.config.HF_DATASETS_CACHE
    if any((folder / repository).is_dir() for repository in repositories):
        _PREPARED.append(tempfile.TemporaryDirectory(prefix="neuroglot-"))
        datasets.config.HF_DATASETS_CACHE = Path(_PREPARED[-1].name)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


@contextlib.contextmanager
def _data_errors(repository: str, config: JSON) -> Iterator[None]:
    """Turns what goes wrong with the data of a task into one line that says why it is left out."""
    try:
        with hub_errors(repository, DATA_ADVICE, DATA_ALTERNATIVES):
            yield
    except UserError:
        raise
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise UserError(f"{repository} is not to be had: {one_line(error)}; {DATA_ADVICE}") from error
    except ImportError as error:
        raise UserError(f"it needs another package: {one_line(error)}; install it, or leave the task out") from error
    except _UNREADABLE as error:
        said = one_line(error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error)
        if any(part in said for part in _OF_NO_ROWS):
            raise UserError(f"{repository} has no items; look at its files") from error
        if "scripts are no longer supported" in said:
            raise UserError(f"{repository} is a script, which is not run here: {said}; leave the task out") from error
        expected = ", ".join(_named_columns(config))
        hint = f"the task expects the columns {expected}" if expected else "look at its files"
        raise UserError(f"{repository} does not have what the task asks for ({said}); {hint}") from error


def _named_columns(config: JSON) -> list[str]:
    """Returns the columns that the templates of a task's file name."""
    templates = [config.get(f"doc_to_{part}") for part in ("text", "target", "choice")]
    parsed = [jinja2.Environment().parse(text) for text in templates if isinstance(text, str)]
    return sorted({name for tree in parsed for name in meta.find_undeclared_variables(tree)})
