"""``compare``: methods x learning rates x seeds as ordinary runs, or finished runs, in one table and two plots."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from lightning_app.cli.lightning_cli import ParsedCLI, require_seed, resolved
from lightning_app.cli.verb import Verb, say
from lightning_app.comparison.grid import GridRun, check_grid, make_grid
from lightning_app.comparison.ranking import best_groups, group_results
from lightning_app.comparison.results import RunResult, read_result, require_comparable, shorten_labels
from lightning_app.comparison.scaled import require_scales, scaled_losses, scaled_point
from lightning_app.errors import UserError
from lightning_app.files import JSON, write_text
from lightning_app.peers import end_with_parent
from lightning_app.progress import duration
from lightning_app.reports.comparison import describe_comparison, format_terminal, write_comparison
from lightning_app.run import RunFolder, configuration_digest, run_name

_MAIN = Path(__file__).resolve().parent.parent.parent / "main.py"  # of a checkout; an installed package has none

COMPARE = Verb(
    "compare",
    "Train a language by several methods, at several learning rates and seeds, as ordinary runs, and say which gains "
    "what at whose cost. What is done is skipped: the same command goes on. With --runs it gathers finished runs.",
    (
        "language", "model.base", "methods", "lrs", "seeds", "scale", "runs", "name", "run_dir", "task", "list",
        "data.token_budget", "data.watch",
    ),
    {
        "methods": (str, "subnetwork,random_per_layer,lora,ffn", "Methods, as --model.method names them."),
        "lrs": (str, "1x", "Learning rates, 1e-4,3e-4, or multiples of each method's own, 0.3x,1x,3x."),
        "seeds": (str, "0", "Seeds: 0,1,2. One gives no interval."),
        "scale": (str | None, None, "Also shrink or stretch each method's change: 0,0.25,0.5,0.75,1,1.25."),
        "runs": (str | list[str] | None, None, "Folders of finished runs to gather instead of training."),
        "task": (int | None, None, "Make only this run of the list, from 0 on: the index of a SLURM array."),
        "list": (bool, False, "List the runs and what is done of them; make none."),
    },
)  # fmt: skip


def compare(arguments: list[str], shows_all: bool) -> None:
    """Makes what is missing of the grid, one run after another, and compares what is complete."""
    cli = ParsedCLI(COMPARE, arguments, shows_all)  # the keys are several methods'; each run instantiates its own
    settings, scales = cli.config, _numbers("--scale", cli.config.scale)
    require_scales(scales)
    if settings.runs is not None:
        given = [settings.runs] if isinstance(settings.runs, str) else settings.runs
        found = {path: read_result(RunFolder(path)) for path in map(Path, given)}
        if unfinished := [str(path) for path, result in found.items() if result is None]:
            raise UserError(f"{unfinished[0]} holds no finished run; finish it with its fit command, or leave it out")
        _report(Path(settings.run_dir) / (settings.name or "comparison"), [*filter(None, found.values())], scales)
        return
    seeds = [require_seed("--seeds", seed) for seed in _numbers("--seeds", settings.seeds)]
    grid = make_grid(_words(settings.methods), _words(settings.lrs), seeds)
    config = resolved(cli)
    check_grid(grid, config)
    folder = Path(settings.run_dir) / (settings.name or f"compare-{run_name(config)}")
    runs = [(run, run.configure(config, str(folder))) for run in grid]
    if settings.list:
        for index, (run, own) in enumerate(runs):
            state = "complete" if _is_complete(folder / run.name, own) else "to do"
            say(f"{index:>4}  {run.name:<44}{state}")
        return
    if settings.task is not None:
        _make_one(folder, runs, settings.task)
        return
    failed = _make(folder, runs)
    _report(folder, [*filter(None, (read_result(RunFolder(folder / run.name)) for run in grid))], scales)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(grid)} runs did not finish ({failed[0]} says why); the same command goes on"
        )


def _make(folder: Path, runs: Sequence[tuple[GridRun, JSON]]) -> list[Path]:
    """Makes the runs that are not complete, and returns the logs of those that failed."""
    missing = [(run, own) for run, own in runs if not _is_complete(folder / run.name, own)]
    say(f"comparison {folder}: {len(runs)} runs, {len(runs) - len(missing)} complete before")
    failed, started = [], time.monotonic()
    for index, (run, own) in enumerate(missing):
        log = RunFolder(folder / run.name).log
        say(f"[{index + 1}/{len(missing)}] {run.name} ({log})")
        code = _fit(folder / run.name, own, log)
        if code != 0:
            failed.append(log)
            say(f"{'':8}failed with exit code {code}: {_last_line(log)}")
            continue
        result = read_result(RunFolder(folder / run.name))
        left_s = (time.monotonic() - started) / (index + 1) * (len(missing) - index - 1)
        if result is not None:
            left = f"; {duration(left_s)} left" if left_s else ""
            rise = f", of watched languages {result.mean_retention:+.4f} on average" if result.watched else ""
            say(f"{'':8}target loss {result.target_loss:.4f} ({-result.gain:+.4f}){rise}{left}")
    return failed


def _make_one(folder: Path, runs: Sequence[tuple[GridRun, JSON]], index: int) -> None:
    if not 0 <= index < len(runs):
        raise UserError(f"--task is {index}, but the comparison has the runs 0 to {len(runs) - 1}; see --list")
    run, own = runs[index]
    if _is_complete(folder / run.name, own):
        say(f"run {folder / run.name} is complete")
        return
    command = _fit_command(folder / run.name, own)
    sys.stdout.flush()
    os.execv(command[0], command)  # from here on this is the run: the scheduler's signals and the exit code are its own


def _is_complete(path: Path, config: JSON) -> bool:
    record = RunFolder(path).record()
    return record.get("status") == "complete" and record.get("configuration") == configuration_digest(config)


def _fit_command(path: Path, config: JSON) -> list[str]:
    """Returns the command that makes a run, whose configuration it writes."""
    file = RunFolder(path).given_config
    write_text(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    program = [str(_MAIN)] if _MAIN.is_file() else ["-P", "-m", "neuroglot"]
    return [sys.executable, *program, "fit", "--config", str(file)]


def _fit(path: Path, config: JSON, log: Path) -> int:
    """Runs ``fit`` in a process of its own, which leaves nothing behind and ends with this one; returns its code."""
    command = _fit_command(path, config)
    with log.open("a", encoding="utf-8") as output:
        return subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=end_with_parent, check=False
        ).returncode


def _report(folder: Path, results: list[RunResult], scales: Sequence[float]) -> None:
    """Writes table and plots, and prints the table."""
    require_comparable(results)
    results = shorten_labels(results)
    scaled = {}
    for group in best_groups(group_results(results)) if scales else []:
        run = min(group.runs, key=lambda each: each.seed)
        say(f"scaling the change of {run.folder}")
        losses = scaled_losses(RunFolder(run.folder), scales)
        scaled[run.folder] = [scaled_point(run, scale, own) for scale, own in losses.items()]
    files = write_comparison(folder, results, scaled)
    say("\n" + format_terminal(describe_comparison(results, scaled)))
    say(f"\nfiles of the comparison: {', '.join(str(file) for file in files)}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(key: str, text: str | None) -> list[float]:
    words = _words(text or "")
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"{key} is {text}; expected numbers with commas between") from error
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{key} is {text}; expected finite numbers with commas between")
    return numbers


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
