"""The table of faults, docs/faults.md: what the tests marked `fault` do to the program, and what its user then sees.

A test (or a case of one) that puts a fault to the program is marked with what the fault is:

    @pytest.mark.fault("a configuration that is {content}")

Names in braces are the case's own parameters. The line that the user sees is not typed: `refused` and `refusal`, which
expect it, note it, and so does `note` for what is neither. `make faults` runs the marked tests and writes the page;
tests/test_faults.py compares the page with the tests that are there.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_app.cli import main
from lightning_app.errors import UserError

MARKED = pytest.StashKey[list[tuple[str, str, str]]]()  # file, function and fault of every marked test
COLLECTED = pytest.StashKey[set[str]]()  # files
_LONGEST_LINE, _LONGEST_VALUE = 400, 60
_noted: list[str] = []
_HEAD = """# Faults

{count} faults that the program is put to by its own tests, what its user then sees, and what is lost. The lines were
taken from the tests as they ran; paths, processes and ports are shortened. A line that begins with `neuroglot: error:`
stands on the terminal as it is here, with exit code 2 for bad input and 1 for anything else; any other is what an
error says, or what a run prints as it goes on. What comes of killed processes is tried by `make torture`.

Written by `make faults`.
"""


fault = pytest.mark.fault


def note(line: object) -> None:
    """Notes what the user of the fault under test sees."""
    _noted.append(str(line))


def refused(capsys, arguments, pattern, code=2):
    """Runs the command line, checks that it ends with one line that matches, and returns the line."""
    capsys.readouterr()
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.strip().split("\n") if "Warning" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("neuroglot: error: ")
    assert re.search(pattern, lines[0]), lines[0]
    note(lines[0])
    return lines[0]


@contextlib.contextmanager
def refusal(pattern: str, kind: type[Exception] = UserError) -> Iterator[pytest.ExceptionInfo]:
    """Expects that the block is refused in one line that matches."""
    with pytest.raises(kind, match=pattern) as found:
        yield found
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 900
    note(found.value)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mounts a disk of a size, "64k" say, at a new ``folder``; skips the test where that may not be done."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(autouse=True)
def _fault_under_test(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sends what a marked test noted to whoever collects the rows, in this process or another."""
    _noted.clear()
    yield
    if (marker := request.node.get_closest_marker("fault")) is not None:
        row = {
            "fault": described(request.node), "lost": marker.kwargs.get("lost", "nothing"),
            "theme": (request.module.__doc__ or "").strip().split("\n")[0].rstrip("."),
            "seen": [_shortened(line, tmp_path_factory.getbasetemp()) for line in _noted],
        }  # fmt: skip
        request.node.user_properties.append(("fault", json.dumps(row)))


def described(item: pytest.Item) -> str:
    """Returns the fault of a marked test, with its own parameters put in."""
    case = getattr(item, "callspec", None)
    text, values = item.get_closest_marker("fault").args[0], {**case.params, "id": case.id} if case else {}
    return re.sub(r"\{(\w+)\}", lambda name: _value(values[name[1]], item), text)


def _value(value: object, item: pytest.Item) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    text = (value if value.isprintable() else repr(value)[1:-1]) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _shortened(line: str, temporary: Path) -> str:
    """Returns a line without what differs from one run and one machine to the next."""
    root, host = Path(__file__).resolve().parent.parent, re.escape(platform.node())
    folder = rf"{re.escape(str(temporary.parent))}(/pytest-\d+)?(/popen-gw\d+)?/[\w.-]+"
    line = " ".join(line.split())
    for pattern, instead in (
        (folder, "..."), (re.escape(f"{root}/"), ""), (r"(?<=127\.0\.0\.1:)\d+", "PORT"),
        (r"(?<=process )\d+", "PID"), (rf" on {host} since [\d: -]*\d", " on HOST since TIME"),
        (r"\([\d.]+ MiB free\)", "(0 MiB free)"),
    ):  # fmt: skip
        line = re.sub(pattern, instead, line)
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=Path, metavar="FILE", help="run the tests marked fault and write their table")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what, lost='nothing'): puts a fault to the program: docs/faults.md")
    if config.getoption("--faults") is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Page(config.getoption("--faults")))


@pytest.hookimpl(tryfirst=True)  # before any of them is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Slow ones are not on the page, which make faults writes without them.
    marked = [item for item in items if item.get_closest_marker("fault") and not item.get_closest_marker("slow")]
    config.stash[COLLECTED] = {item.location[0] for item in items}
    config.stash[MARKED] = [(item.location[0], item.location[2].split("[")[0], described(item)) for item in marked]
    if config.getoption("--faults") is not None:
        config.hook.pytest_deselected(items=[item for item in items if item not in marked])
        items[:] = marked


class _Page:
    """Gathers the rows of the marked tests, and writes the page if all of them ran and passed."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.missing = path, [], []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped or report.failed:
            self.missing.append(report.nodeid)
        elif report.when == "teardown":
            rows = [json.loads(value) for name, value in report.user_properties if name == "fault"]
            self.rows += [{**row, "file": report.location[0], "test": report.location[2].split("[")[0]} for row in rows]
            self.missing += [report.nodeid for row in rows if not row["seen"]]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid in self.missing:
            terminalreporter.write_line(f"no row without it: {nodeid}")
        if self.rows and not self.missing:
            self.path.write_text(page(self.rows), encoding="utf-8")
            terminalreporter.write_line(f"{len(self.rows)} faults in {self.path}")


def page(rows: list[dict]) -> str:
    """Returns the table, by file; the rows of a file in the order of the tests."""
    lines = [_HEAD.format(count=len(rows))]
    for file in sorted({row["file"] for row in rows}):
        own = [row for row in rows if row["file"] == file]
        lines += [f"## {own[0]['theme']}", "", f"In `{file}`:", ""]
        lines += ["| fault | what the user sees | lost | test |", "| --- | --- | --- | --- |"]
        for row in own:
            seen = "<br>".join(f"`{cell(line).replace('&lt;', '<')}`" for line in dict.fromkeys(row["seen"]))
            lines.append(f"| {cell(row['fault'])} | {seen} | {row['lost']} | `{row['test']}` |")
        lines.append("")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Returns a text as it stands in a cell of the table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").strip()


def rows_of(text: str) -> list[tuple[str, str, str]]:
    """Returns file, function and fault of every row of a page."""
    found, file = [], ""
    for line in text.split("\n"):
        if named := re.fullmatch(r"In `(.+)`:", line):
            file = named[1]
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and (test := re.fullmatch(r"`(\w+)`", cells[3])):
            found.append((file, test[1], cells[0]))
    return found
