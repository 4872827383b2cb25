"""Whether two folders hold the same end of the same commands, bit for bit, whatever happened on the way.

Left out is what a clock or a counter of memory says: times, speeds, peak memory. Absolute paths are read as relative.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_app.files import load_checkpoint

MEASURED = ("time", "seconds", "tokens_per_second", "peak_gib", "share_of_limit", "data_wait_share")
# A log is of every start, a lock of none; what tensorboard shows is compared, not how many files it is in.
_OF_A_START = re.compile(r"\.(lock|running)$|(^|/)log\.txt$|/hparams\.yaml$")
_MEASURED_IN_A_REPORT = re.compile(
    r"<dt>(Throughput|Of the limit|Peak memory|Time of training)</dt><dd>[^<]*</dd>\s*"
    # Of a comparison: time and tokens/s, which a run that was killed at its end does not know, and memory.
    r"|<td>([\d.]+ (s|min)[^<]*)?</td><td>[\d.]*[kM]?</td><td>[\d.]*</td>(?=</tr>)"
    r"| on \d{4}-\d\d-\d\d \d\d:\d\d(?=, from )"
)
_EVENTS = "events.out.tfevents"
logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of the events of steps that are made again


def differences(whole: Path, other: Path) -> list[str]:
    """Returns what differs in ``other``, a line a file; nothing where both folders hold the same."""
    files = [_files(folder) for folder in (whole, other)]
    found = [f"there is no {name}" for name in sorted(files[0] - files[1])]
    found += [f"there is {name} too" for name in sorted(files[1] - files[0])]
    for name in sorted(files[0] & files[1]):
        contents = [_reader(name)(folder / name, folder) for folder in (whole, other)]
        if where := _difference(*contents):
            found.append(f"{name} differs{where}")
    return found


def _files(folder: Path) -> set[str]:
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    kept = {name for name in paths if not _OF_A_START.search(name) and _EVENTS not in name}
    return kept | {str(Path(name).parent) for name in paths if _EVENTS in name}


def _reader(name: str) -> Callable[[Path, Path], Any]:
    path = Path(name)
    readers = {"run.json": _record, "comparison.json": _record, "comparison.csv": _table, "comparison.md": _page}
    kinds = {".ckpt": _checkpoint, ".jsonl": _rows, ".safetensors": _tensors, ".html": _report}
    if path.name == "tensorboard":
        return _scalars
    return readers.get(path.name) or kinds.get(path.suffix) or (_summary if path.name == "summary.md" else _bytes)


def _bytes(path: Path, root: Path) -> bytes:
    return path.read_bytes().replace(f"{root.resolve()}/".encode(), b"")


def _checkpoint(path: Path, root: Path) -> Any:
    return _relative(load_checkpoint(path), f"{root.resolve()}/")


def _relative(value: Any, root: str) -> Any:
    if isinstance(value, str):
        return value.replace(root, "")
    if isinstance(value, dict):
        return {_relative(key, root): _relative(each, root) for key, each in value.items()}
    return [_relative(each, root) for each in value] if isinstance(value, list | tuple) else value


def _tensors(path: Path, root: Path) -> Any:
    """The order of a header's entries is the library's, and another one in each process."""
    with safe_open(path, framework="pt") as file:
        metadata = _relative(file.metadata() or {}, f"{root.resolve()}/")
        return {"metadata": metadata, **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118


def _rows(path: Path, root: Path) -> Any:
    return [_unmeasured(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _record(path: Path, root: Path) -> Any:
    return _unmeasured(json.loads(_bytes(path, root)))


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key.rpartition("/")[2] not in MEASURED}
        return {key: _unmeasured(each) for key, each in kept.items()}
    return [_unmeasured(each) for each in value] if isinstance(value, list) else value


def _table(path: Path, root: Path) -> Any:
    return [_unmeasured(row) for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))]


def _page(path: Path, root: Path) -> list[str]:
    """A page whose table ends with time, tokens/s and peak memory."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.rsplit("|", 4)[0] if line.startswith("|") else line for line in lines]


def _report(path: Path, root: Path) -> str:
    """A page without what was measured, nor the minute it was made in."""
    page = re.sub(rf"{re.escape(str(root.resolve()))}/", "", path.read_text(encoding="utf-8"))
    return _MEASURED_IN_A_REPORT.sub("", page)


def _summary(path: Path, root: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if not line.startswith("- speed: ") and line != "- "]
    return [re.sub(r", [^,]* since this process started", "", line) for line in lines]


def _scalars(path: Path, root: Path) -> Any:
    events = EventAccumulator(str(path))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def _difference(one: Any, other: Any) -> str:
    """Returns where two values differ, as a part of a sentence; nothing where they are the same."""
    if type(one) is not type(other):
        return f": {_short(one)} and {_short(other)}"
    if isinstance(one, torch.Tensor):
        return "" if _bits(one) == _bits(other) else f": {_short(one)} and {_short(other)}"
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f": keys {_short(sorted(map(str, one)))} and {_short(sorted(map(str, other)))}"
        pairs = ((key, one[key], other[key]) for key in one)
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            return f": {len(one)} and {len(other)} parts"
        pairs = ((index, *pair) for index, pair in enumerate(zip(one, other, strict=True)))
    else:
        same = one == other or (one != one and other != other)
        return "" if same else f": {_short(one)} and {_short(other)}"
    return next((f" in {key}{where}" for key, a, b in pairs if (where := _difference(a, b))), "")


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 160 else f"{text[:160]}..."
