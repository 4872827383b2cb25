"""The crash test: kills the program at every change of its folder and at random moments, and looks at how it ends."""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch

import lightning_app.cli  # noqa: F401 - what every child begins with
from datamodules.invented import write_hub
from lightning_app.files import write_json, write_text
from tests.torture import report, scenes, trials
from tests.torture.ends import differences
from tests.torture.scenes import Scene
from tests.torture.traced import Attempt
from tests.torture.trials import Outcome

BASE, NEURONS, EXPORT = "base", "neurons", "export"
_MAKERS = {
    NEURONS: scenes.adapted, "adapter": scenes.adapter, "atlas": scenes.profiles, "comparison": scenes.comparison,
}  # fmt: skip
_RARER = 5  # kills at random moments are so many times fewer where a scene starts processes, which takes long


def main() -> int:
    """Returns 0 where every trial ended as the undisturbed run."""
    options = _options()
    torch.set_num_threads(1)  # a thread of the parent would be missing in its children
    root, started = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic()
    hub = root / "hub"
    write_hub(hub, megabytes=0.02, dev=12, devtest=12, seed=0)
    scenery = {BASE: scenes.new_base(hub)}  # always played: the others adapt what it makes
    scenery |= {name: make(hub, root / BASE / "whole/runs/base/model") for name, make in _MAKERS.items()}
    scenery[EXPORT] = scenes.exports(hub, root / NEURONS / "whole/runs/adapted")
    played = {BASE, *options.scenes, *([NEURONS] if EXPORT in options.scenes else [])}
    outcomes: list[Outcome] = []
    for name, scene in scenery.items():
        if name in played:
            trials.run_scene(scene, root / name / "first", root / name / "logs")
            _import_what_they_imported(root / name / "logs")
            whole = trials.run_scene(scene, root / name / "whole", root / name / "logs")
            if found := differences(root / name / "whole", root / name / "first"):
                raise RuntimeError(f"{scene.name}: two undisturbed runs differ: {found}")
            outcomes += _tried(scene, whole, root / name, options) if name in options.scenes else []
    minutes = round((time.monotonic() - started) / 60, 1)
    found = report.figures(outcomes, {"seed": options.seed, "jobs": options.jobs, "minutes": minutes})
    if options.out is not None:
        write_json(options.out, found)
    if options.page is not None:
        write_text(options.page, report.page(found))
    print(f"{found['kills']} kills in {found['trials']} trials, {found['equal']} ended as the undisturbed run")
    if found["problems"]:
        print(f"what differs is kept in {root}")
        return 1
    shutil.rmtree(root)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    every = [BASE, *_MAKERS, EXPORT]
    parser.add_argument("--scenes", nargs="*", choices=every, default=every)
    parser.add_argument("--changes", type=int, help="kills at changes, drawn for each scene; every one if not given")
    parser.add_argument("--random", type=int, default=40, help="kills at random moments of each scene")
    parser.add_argument("--phases", type=int, default=4, help="kills at random moments of each phase of each scene")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="trials side by side")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--page", type=Path, help="Markdown file for the page")
    return parser.parse_args()


def _import_what_they_imported(logs: Path) -> None:
    """Imports what the children of undisturbed runs have imported late, so that later children need not."""
    for listed in logs.glob("*.modules"):
        for name in listed.read_text().split():
            with contextlib.suppress(Exception):  # some names are no files; a child imports what is missing
                importlib.import_module(name)


def _tried(scene: Scene, whole: list[Attempt], folder: Path, options: argparse.Namespace) -> list[Outcome]:
    """Returns what came of all trials of a scene."""
    few = _RARER if scene.starts_processes else 1
    chosen = list(trials.every_change(whole))
    if options.changes is not None:
        chosen = random.Random(options.seed).sample(chosen, min(options.changes, len(chosen)))
    chosen += trials.random_moments(whole, options.random // few, options.seed)
    chosen += trials.moments_of_phases(whole, options.phases // few, options.seed + 1)
    print(f"{scene.name}: {sum(run.seconds for run in whole):.1f} s undisturbed, {len(chosen)} trials", flush=True)
    outcomes: list[Outcome] = []
    forks = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.jobs, mp_context=forks) as pool:
        waiting = {pool.submit(trials.run_trial, scene, trial, folder / "whole", folder / f"{index:05}"): trial
                   for index, trial in enumerate(chosen)}  # fmt: skip
        for done in as_completed(waiting):
            outcomes.append(done.result())
            if outcomes[-1].problems:
                print(f"  {waiting[done]}: {outcomes[-1].kills} {str(outcomes[-1].problems)[:400]}", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
