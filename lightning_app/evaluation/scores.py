"""What a model scored in a task, item by item, as it is kept on disk."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lightning_app.errors import UserError
from lightning_app.files import JSON, UNREADABLE, one_line, write_json


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    Attributes:
        value: Over all items.
        stderr: Standard error; NaN where there is none.
        higher_is_better: Which way is up.
        items: What each item has, in the order of the items, where the value is their mean; None of a corpus's figure.
        weights: Of the items in that mean; equal where None.
        signature: What sacrebleu says of how it was computed.
    """

    value: float
    stderr: float = math.nan
    higher_is_better: bool = True
    items: Sequence[float] | None = None
    weights: Sequence[float] | None = None
    signature: str | None = None


@dataclass(frozen=True)
class Scores:
    """What one model scored in one task.

    Attributes:
        model: Identity of the model's weights.
        asked: Digest of the task, its items and the settings that it was run with.
        main: The metric that a table shows.
        metrics: All of them by name.
        answers: What the model said to each item, or the number of the choice that it preferred.
        expected: What was expected.
        seconds: What it took.
        cut_short: How many requests lost their beginning, because the model reads fewer tokens at once.
        requests: How many there were.
        left_out: Metrics that could not be computed, and why.
        made_by: Versions of the program and of what it measured with.
    """

    model: str
    asked: str
    main: str
    metrics: dict[str, Metric]
    answers: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cut_short: int = 0
    requests: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    made_by: dict[str, str] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """How many items there were."""
        return len(self.expected)

    def save(self, path: Path) -> None:
        """Writes them to a JSON file, atomically; a figure that is no number is null."""
        write_json(path, {key: _plain(value) for key, value in asdict(self).items()})

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Reads them.

        Raises:
            UserError: The file is damaged.
        """
        try:
            content: JSON = json.loads(path.read_text(encoding="utf-8"))
            metrics = {name: Metric(**_numbers(metric)) for name, metric in content.pop("metrics").items()}
            return cls(metrics=metrics, **content)
        except UNREADABLE as error:
            said = one_line(error)
            raise UserError(f"{path} does not hold the scores of a task ({said}); delete it and run again") from error


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(metric: JSON) -> JSON:
    figures = {key: math.nan if metric.get(key) is None else metric[key] for key in ("value", "stderr")}
    items = metric.get("items")
    return {**metric, **figures, "items": items and [math.nan if item is None else item for item in items]}
