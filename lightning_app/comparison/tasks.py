"""What the evaluations of finished runs say, as far as a comparison needs it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, one_line
from lightning_app.run import RunFolder


class TaskScore(NamedTuple):
    """The main figure of a task.

    Attributes:
        base: Of the unadapted base.
        adapted: Of the best checkpoint.
        higher_is_better: Which way is up.
        metric: What the figure is.
        asked: Digest of the items and of how they were asked; empty where the file does not say.
    """

    base: float
    adapted: float
    higher_is_better: bool = True
    metric: str = ""
    asked: str = ""

    @property
    def shortfall(self) -> float:
        """The adapted model's figure so that lower is better, as losses are."""
        return -self.adapted if self.higher_is_better else self.adapted


def read_tasks(folder: RunFolder) -> dict[str, TaskScore]:
    """Returns the score of base and adapted model per task; nothing where the run was not evaluated.

    Raises:
        UserError: The evaluation is damaged, or of another checkpoint than the run's best.
    """
    path = folder.evaluation
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        both = {name: task for name, task in content["tasks"].items() if {"base", "adapted"} <= task.keys()}
        scores = {name: _score(task) for name, task in both.items()}
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); delete it and evaluate the run again") from error
    _require_best_checkpoint(folder, path, content.get("checkpoint"))
    return scores


def _score(task: JSON) -> TaskScore:
    base, adapted = (math.nan if task[name] is None else float(task[name]) for name in ("base", "adapted"))
    return TaskScore(
        base, adapted, bool(task.get("higher_is_better", True)), task.get("metric", ""), task.get("asked", "")
    )


def _require_best_checkpoint(folder: RunFolder, path: Path, evaluated: str | None) -> None:
    best = folder.best_checkpoint()
    if evaluated is not None and best is not None and evaluated != best.name:
        raise UserError(
            f"{path} is of checkpoint {evaluated}, and the run's best is {best.name}; evaluate the run again: "
            f"python main.py evaluate --source {folder}"
        )


def require_same_items(evaluated: Sequence[tuple[Path, Mapping[str, TaskScore]]]) -> None:
    """Raises `UserError` where two runs were measured on different items of a task, or by different metrics."""
    first: dict[str, tuple[Path, TaskScore]] = {}
    for folder, tasks in evaluated:
        for name, score in tasks.items():
            other_folder, other = first.setdefault(name, (folder, score))
            if (score.asked, score.metric) != (other.asked, other.metric):
                raise UserError(
                    f"{other_folder} and {folder} were not measured alike in task {name}: on other items, with another "
                    "--limit or by another metric; evaluate both with the same keys"
                )
