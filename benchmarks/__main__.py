"""``python -m benchmarks``: measures, prints a table, writes JSON and draws how things scale."""

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages, which torch reads when it is imported

import torch

from benchmarks.by_name import SUITES, measure, pieces
from benchmarks.measure import Result, as_rows, machine, table
from benchmarks.plots import draw_scaling
from benchmarks.subjects import VARIANTS
from lightning_app.files import write_json
from lightning_app.peers import end_with_parent


def main() -> None:
    """Runs the suites that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--settings",
        default="95m:2x512",
        help="models, batches and shares of neurons, as 95m:2x512,llama-8b:1x4096@0.0131",
    )
    parser.add_argument("--variants", default=",".join(VARIANTS), help="ways to train; frozen is always measured")
    parser.add_argument("--profiling", default="95m:1x2048", help="models and batches to profile")
    parser.add_argument("--scaling", default="13m:1x512", help="model and batch around which things are scaled")
    parser.add_argument("--sizes", default="3m,13m,37m,95m", help="models to scale over")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.json"))
    args = parser.parse_args()
    names = args.suites.split(",")
    if unknown := [name for name in names if name not in SUITES]:
        raise SystemExit(f"there is no suite {unknown[0]}; expected {', '.join(SUITES)}")
    settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
    results: list[Result] = []
    for name, piece in ((suite, piece) for suite in names for piece in pieces(suite, args)):
        print(f"measuring {name}{f' {piece.settings}' * (name in ('train_step', 'plan'))}", flush=True)
        # Compiled models are never let go, and have gigabytes of states: a process of its own ends with them.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as apart:
            results += apart.submit(measure, name, piece).result()
        report = {"machine": machine(torch.device(args.device)), "settings": settings, "results": as_rows(results)}
        write_json(args.out, report)  # after each, for a machine that is lent for less time than all of them take
    print(table([result for result in results if not result.benchmark.startswith(("scaling", "operations"))]))
    print(f"written to {args.out}")
    if plot := draw_scaling(results, args.out.with_name(f"{args.out.stem}-scaling.png")):
        print(f"written to {plot}")


if __name__ == "__main__":
    main()
