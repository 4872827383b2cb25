"""The figures of a crash test, and the page that shows them."""

import platform
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from lightning_app import __version__
from tests.torture.trials import Outcome

_PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "safetensors")
_PAGE = """# Killed {kills} times

`make torture` runs the program's own commands on invented languages and ends them with SIGKILL, which no program can
catch: before and after every change of a file or folder (a file put in its place by a rename, written through,
removed, cut; a folder made or removed), in every phase, and at random moments over the whole length, several times in
a row in some trials. The same command is given again until it ends. Then everything is compared with the same commands
undisturbed, bit for bit: weights and optimiser state, every other part of the checkpoints, the name of the best one,
token caches and their manifests, atlases, neuron files, results as transformers and PEFT load them, `metrics.jsonl`,
TensorBoard's curves, `run.json`, `summary.md`, tables and plots of a comparison, and which files there are. Only what
a clock or a memory counter says may differ: times, speeds, peak memory.

**{kills} kills in {trials} trials; {equal} of {trials} ended as the undisturbed runs.** Seed {seed}, {minutes:.0f}
minutes with {jobs} trials side by side, Python {python}, {versions}.

| scene | trials | kills | ended the same |
| --- | ---: | ---: | ---: |
{scenes}

| killed while | kills | of them at a change | ended the same |
| --- | ---: | ---: | ---: |
{phases}

| killed before or after | kills | ended the same |
| --- | ---: | ---: |
{changes}
{problems}
Written by `make torture`; [torture.json](torture.json) has the figures. `make test` has a short form of it.
"""


def figures(outcomes: Sequence[Outcome], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what a crash test found, as plain data."""
    versions = {"neuroglot": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    phases, changes = {}, {}
    for outcome in outcomes:
        for phase, change in outcome.kills:
            row = phases.setdefault(phase, Counter(kills=0, at_changes=0, equal=0))
            row.update(kills=1, at_changes=bool(change), equal=not outcome.problems)
            if change:
                row = changes.setdefault(" ".join(change.split()[:2]), Counter(kills=0, equal=0))
                row.update(kills=1, equal=not outcome.problems)
    scenes = {}
    for outcome in outcomes:
        row = scenes.setdefault(outcome.scene, Counter(trials=0, kills=0, equal=0))
        row.update(trials=1, kills=len(outcome.kills), equal=not outcome.problems)
    return {
        **settings,
        "versions": versions,
        "trials": len(outcomes),
        "kills": sum(len(outcome.kills) for outcome in outcomes),
        "equal": sum(not outcome.problems for outcome in outcomes),
        "scenes": {name: dict(row) for name, row in scenes.items()},
        "phases": {name: dict(row) for name, row in sorted(phases.items())},
        "changes": {name: dict(row) for name, row in sorted(changes.items())},
        "problems": [
            {"scene": each.scene, "kills": each.kills, "found": each.problems} for each in outcomes if each.problems
        ],
    }


def page(found: dict[str, Any]) -> str:
    """Returns the figures as a page for people."""
    problems = "".join(
        f"- {each['scene']}, killed {'; '.join(' '.join(kill) for kill in each['kills'])}: {'; '.join(each['found'])}\n"
        for each in found["problems"]
    )
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in _PACKAGES)
    return _PAGE.format(
        **{key: found[key] for key in ("kills", "trials", "equal", "seed", "minutes", "jobs")},
        python=found["versions"]["python"],
        versions=versions,
        scenes=_rows(found["scenes"]),
        phases=_rows(found["phases"]),
        changes=_rows(found["changes"]),
        problems=f"\nWhat differed:\n\n{problems}" if problems else "",
    )


def _rows(table: dict[str, dict[str, int]]) -> str:
    return "\n".join(f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in table.items())
