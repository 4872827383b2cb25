"""Trials: a scene, killed at a moment or at several, run again until it ends, and compared with the undisturbed one."""

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.ends import differences
from tests.torture.scenes import Scene
from tests.torture.traced import WRITTEN, Attempt, Moment, attempt

_MOST_KILLS = 3  # of one trial, at random moments


@dataclass(frozen=True)
class Trial:
    """What to do: the command of a scene that is killed, and at which moments, one start after another."""

    command: int
    moments: tuple[Moment, ...]


@dataclass
class Outcome:
    """What came of a trial.

    Attributes:
        kills: Phase, and the change that the process was killed before or after; "" where by time.
        problems: What differs, or how the scene failed to end; nothing where all is the same.
    """

    scene: str
    kills: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run_scene(scene: Scene, folder: Path, logs: Path) -> list[Attempt]:
    """Runs a scene undisturbed; raises `RuntimeError` where a command fails."""
    folder.mkdir(parents=True)
    logs.mkdir(parents=True, exist_ok=True)
    found = []
    for index, command in enumerate(scene.commands):
        found.append(attempt([*command], folder, logs / f"{index}.log"))
        if found[-1].code != 0:
            raise RuntimeError(f"{scene.name}: {command[0]} ended with {found[-1].code}:\n{found[-1].output[-3000:]}")
    return found


def every_change(whole: Sequence[Attempt]) -> Iterator[Trial]:
    """Yields a trial before and one after every change of the undisturbed run, where a file is written one before."""
    for command, run in enumerate(whole):
        for number, (name, _) in enumerate(run.changes):
            for is_after in (False, True) if name != WRITTEN else (False,):
                yield Trial(command, (Moment(number, is_after),))


def random_moments(whole: Sequence[Attempt], count: int, seed: int) -> Iterator[Trial]:
    """Yields trials with a kill in each of ``count`` equal parts of the scene's length, some with more after it."""
    draw, lengths = random.Random(seed), [run.seconds for run in whole]
    for part in range(count):
        at, command = (part + draw.random()) / count * sum(lengths), 0
        while at > lengths[command] and command < len(lengths) - 1:
            at, command = at - lengths[command], command + 1
        more = [draw.random() * lengths[command] for _ in range(draw.randrange(_MOST_KILLS))]
        yield Trial(command, tuple(Moment(seconds=seconds) for seconds in (at, *more)))


def moments_of_phases(whole: Sequence[Attempt], count: int, seed: int) -> Iterator[Trial]:
    """Yields ``count`` trials with a kill in each phase, at random moments of the time that was spent in it."""
    draw = random.Random(seed)
    spans: dict[str, list[tuple[int, float, float]]] = {}
    for command, run in enumerate(whole):
        ends = [*(at for at, _ in run.phases[1:]), run.seconds]
        for (begin, phase), end in zip(run.phases, ends, strict=True):
            spans.setdefault(phase, []).append((command, begin, end))
    for own in spans.values():
        for _ in range(count):
            command, begin, end = draw.choices(own, [end - begin for _, begin, end in own])[0]
            yield Trial(command, (Moment(seconds=draw.uniform(begin, end)),))


def run_trial(scene: Scene, trial: Trial, whole: Path, folder: Path) -> Outcome:
    """Returns what came of a trial; its folder stays only where something is wrong."""
    outcome, logs = Outcome(scene.name), folder.with_name(f"{folder.name}-logs")
    folder.mkdir(parents=True)
    logs.mkdir(parents=True)
    for index, command in enumerate(scene.commands):
        waiting = list(trial.moments) if index == trial.command else []
        for start in range(len(waiting) + 1):
            moment = waiting[start] if start < len(waiting) else None
            run = attempt([*command], folder, logs / f"{index}-{start}.log", moment)
            is_whole = start > 0 and scene.whole is not None and scene.whole in run.output
            if run.code == 0 or is_whole:
                break
            if run.code != -9 or moment is None:
                outcome.problems.append(f"{command[0]} ended with {run.code}: {_last_lines(run.output)}")
                return outcome
            outcome.kills.append((run.phase, _change(run, moment)))
    outcome.problems += differences(whole, folder)
    if not outcome.problems:
        shutil.rmtree(folder)
        shutil.rmtree(logs)
    return outcome


def _change(run: Attempt, moment: Moment | None) -> str:
    if moment is None or moment.change is None:
        return ""
    name, path = run.changes[-1]
    return f"{'after' if moment.is_after else 'before'} {name} {path}"


def _last_lines(output: str) -> str:
    return " / ".join(output.strip().split("\n")[-3:])[-600:]
