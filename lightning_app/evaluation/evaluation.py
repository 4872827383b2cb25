"""A base and what it was adapted to, task by task; what was measured before is measured no second time."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from lm_eval.api.task import ConfigurableTask

from lightning_app.errors import UserError, did_you_mean
from lightning_app.evaluation.contestants import ADAPTED, BASE, Contestant
from lightning_app.evaluation.differences import Difference, differences
from lightning_app.evaluation.harness import ModelInMemory, UnfitError, run_task
from lightning_app.evaluation.loading import TaskData, load_tasks, task_digest
from lightning_app.evaluation.scores import Scores
from lightning_app.evaluation.suites import Task
from lightning_app.evaluation.translation import sign_translation
from lightning_app.progress import duration


@dataclass(frozen=True)
class Outcome:
    """What came of one task.

    Attributes:
        task: Its name.
        language: Short code of its language, or None.
        scores: By contestant; empty where the task was left out.
        differences: By metric, from base to adapted, where both were measured.
        why_not: Why it was left out, where it was.
        note: What a reader of its figures must know.
    """

    task: str
    language: str | None
    scores: dict[str, Scores]
    differences: dict[str, Difference] = field(default_factory=dict)
    why_not: str = ""
    note: str = ""

    @property
    def main(self) -> str:
        """The metric that a table shows first."""
        return next(iter(self.scores.values())).main

    @property
    def difference(self) -> Difference | None:
        """Of the main metric."""
        return self.differences.get(self.main) if self.differences else None


@dataclass(frozen=True)
class _Ready:
    """A task with its items, or why it is left out."""

    name: str
    task: Task
    loaded: ConfigurableTask | None = None
    asked: str = ""
    items: int = 0
    why_not: str = ""


def evaluate(
    tasks: Sequence[Task],
    contestants: Sequence[Contestant],
    data: TaskData,
    limit: int | None,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Measures every contestant in every task, one model in memory at a time.

    Scores are written as soon as a task is done, so that a killed run goes on with the next.

    Args:
        tasks: What to measure.
        contestants: Whom.
        data: Where the items are.
        limit: Only so many items of each task; for trying.
        say: Prints a line.

    Raises:
        UserError: None of the tasks can be run, a metric is unknown, or scores that were kept are damaged.
    """
    ready = _prepare(tasks, data, limit)
    _require_any(ready)
    scores = {each.name: _kept(each, contestants) for each in ready}
    unfit: dict[str, str] = {}
    for contestant in contestants:
        fit = [each for each in ready if each.loaded is not None and each.name not in unfit]
        missing = [each for each in fit if contestant.name not in scores[each.name]]
        before = f", {len(fit) - len(missing)} were measured before" if len(missing) < len(fit) else ""
        say(f"{contestant.name}: {len(missing)} of {len(fit)} tasks to measure{before}")
        if not missing:
            continue
        with _opened(contestant) as model:
            for each in missing:
                try:
                    found = _run(model, each, contestant, limit)
                except UnfitError as error:
                    unfit[each.name] = str(error)
                    say(f"  {each.name}: left out: {error}")
                    continue
                scores[each.name][contestant.name] = found
                left_s = _seconds_left([each for each in fit if each.name not in unfit], scores, contestants)
                say(_line(each.name, found) + (f"; about {duration(left_s)} left in all" if left_s else ""))
    return [_outcome(replace(each, why_not=unfit.get(each.name, each.why_not)), scores[each.name]) for each in ready]


def _prepare(tasks: Sequence[Task], data: TaskData, limit: int | None) -> list[_Ready]:
    ready: dict[str, _Ready] = {}
    for task in tasks:
        try:
            loaded = [] if task.why_not else load_tasks(task.harness, task.language, data)
        except UserError as error:
            task, loaded = replace(task, why_not=str(error)), []
        if not loaded:
            ready.setdefault(task.name, _Ready(task.name, task, why_not=task.why_not))
        for leaf in loaded:
            known = leaf.aggregation()
            if task.main is not None and task.main not in known:
                hint = did_you_mean(task.main, known)
                raise UserError(f"task {task.name} has no metric '{task.main}'; it has {', '.join(known)}{hint}")
            name = task.name if len(loaded) == 1 else leaf.task_name
            count = min(len(leaf.eval_docs), limit or len(leaf.eval_docs))
            ready.setdefault(name, _Ready(name, task, leaf, task_digest(leaf, limit), count))
    return list(ready.values())


def _require_any(ready: Sequence[_Ready]) -> None:
    if all(each.loaded is None for each in ready):
        reasons = list(dict.fromkeys(each.why_not for each in ready))
        more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
        raise UserError(f"none of the {len(ready)} tasks can be run: {ready[0].name}: {reasons[0]}{more}")


def _kept(ready: _Ready, contestants: Sequence[Contestant]) -> dict[str, Scores]:
    """Returns the scores of the contestants that are at hand: of the same weights in the same items."""
    kept = {}
    for contestant in contestants:
        path = contestant.folder / f"{ready.name}.json"
        found = Scores.load(path) if ready.loaded is not None and path.is_file() else None
        if found is not None and (found.model, found.asked) == (contestant.identity, ready.asked):
            main = ready.task.main if ready.task.main in found.metrics else found.main
            kept[contestant.name] = sign_translation(replace(found, main=main))
    return kept


@contextlib.contextmanager
def _opened(contestant: Contestant) -> Iterator[ModelInMemory]:
    """Holds a contestant in memory while the block lasts."""
    model = ModelInMemory(contestant.open(), contestant.identity)
    try:
        yield model
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _run(model: ModelInMemory, ready: _Ready, contestant: Contestant, limit: int | None) -> Scores:
    assert ready.loaded is not None
    model.title = f"{contestant.name}, {ready.name}"
    found = run_task(model, ready.loaded, ready.asked, ready.task.main, limit)
    found.save(contestant.folder / f"{ready.name}.json")
    return found


def _seconds_left(
    ready: Sequence[_Ready], scores: Mapping[str, Mapping[str, Scores]], contestants: Sequence[Contestant]
) -> float:
    """Returns what the rest takes, by the same tasks of the other contestant, or else by tasks of the same kind."""
    kinds: dict[str, list[tuple[float, int]]] = {}
    for each in ready:
        if each.loaded is not None:
            taken = [(found.seconds, found.items) for found in scores[each.name].values()]
            kinds.setdefault(each.loaded.OUTPUT_TYPE, []).extend(taken)
    every = [taken for kind in kinds.values() for taken in kind]
    left_s = 0.0
    for each in ready:
        if each.loaded is None:
            continue
        known = kinds[each.loaded.OUTPUT_TYPE] or every
        own = [found.seconds for found in scores[each.name].values()]
        per_item = sum(seconds for seconds, _ in known) / max(1, sum(items for _, items in known))
        typical = sum(own) / len(own) if own else per_item * each.items
        left_s += typical * (len(contestants) - len(own))
    return left_s


def _line(name: str, found: Scores) -> str:
    """Returns what a task came to, on one line."""
    figure = found.metrics[found.main]
    line = f"  {name}: {found.main} {figure.value:.4g} over {found.items} items in {duration(found.seconds)}"
    if found.cut_short:
        line += f"; {found.cut_short} of {found.requests} requests were longer than the model reads: their end was read"
    return line


def _outcome(ready: _Ready, scores: dict[str, Scores]) -> Outcome:
    language = ready.task.language.short if ready.task.language else None
    if ready.why_not:
        return Outcome(ready.name, language, {}, why_not=ready.why_not)
    both = BASE in scores and ADAPTED in scores
    found = differences(scores[BASE], scores[ADAPTED]) if both else {}
    return Outcome(ready.name, language, scores, found, note=ready.task.note)
