"""Sheets that judges filled in, by browser or spreadsheet, and the key that says whose answers they chose."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_app.errors import UserError
from lightning_app.evaluation.preferences import Judgement, Side, judged
from lightning_app.files import require_no_later_version

_CHOICES: dict[str, Side | None] = {"a": "A", "b": "B", "tie": None}
_SEPARATORS = ",;\t"  # spreadsheets write the one of their user's country


@dataclass(frozen=True)
class Key:
    """What key.json says.

    Attributes:
        adapted: By pair, which answer is the adapted model's.
        same: Prompts that both models answered the same, which are not on the sheet.
    """

    adapted: dict[str, Side]
    same: int

    @classmethod
    def load(cls, path: Path) -> "Key":
        """Reads it; raises `UserError` where it is missing or damaged."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            require_no_later_version(path, said["version"])
            adapted = {str(pair): side for pair, side in said["adapted"].items() if side in ("A", "B")}
            if not adapted or len(adapted) < len(said["adapted"]):
                raise ValueError("an answer that is neither A nor B")
            return cls(adapted, int(said["same"]))
        except FileNotFoundError as error:
            raise UserError(f"there is no key at {path}; give the sheet's with --key KEY.json") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not the key of a sheet ({' '.join(str(error).split())[:100]})") from error


def read_judged(path: Path, key: Key) -> tuple[dict[str, Judgement], list[str]]:
    """Returns what a judge says of each pair, and a line on every row that cannot be counted.

    Rows without a choice are pairs that were not judged, which is allowed.

    Args:
        path: A CSV file with the columns ``pair`` and ``better``, by commas, semicolons or tabs.
        key: Of the sheet.

    Raises:
        UserError: It cannot be read, or lacks a column.
    """
    found: dict[str, Judgement] = {}
    problems = []
    for number, row in _rows(path):
        pair, better = (row.get("pair") or "").strip(), (row.get("better") or "").strip()
        where = f"{path}, row {number}"
        if pair not in key.adapted:
            problems.append(f"{where}: there is no pair {pair[:40]!a} in the key; is it of another sheet?")
        elif better and better.casefold() not in _CHOICES:
            problems.append(f"{where}: better is {better[:40]!a}; expected A, B or tie, or nothing where not judged")
        elif better and pair in found:
            problems.append(f"{where}: pair {pair} is judged twice; keep one row")
        elif better:
            found[pair] = judged(key.adapted[pair], _CHOICES[better.casefold()])
    return found, problems


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows by their headings, with their number as a spreadsheet counts them."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the judged sheet {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the judged sheet {path} is not UTF-8; save it as CSV in UTF-8") from error
    head = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise UserError(f"the judged sheet {path} is no CSV: {error}") from error
    heading = [name.strip().casefold() for name in rows[0]] if rows else []
    if missing := [name for name in ("pair", "better") if name not in heading]:
        raise UserError(f"the judged sheet {path} has no column {' and '.join(missing)}; expected those of sheet.csv")
    for number, row in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in row):
            yield number, dict(zip(heading, row, strict=False))
