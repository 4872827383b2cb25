"""``python -m benchmarks``: measures, prints a table, writes JSON and draws how things scale."""

import argparse
import gc
import os
import warnings
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages, which torch reads when it is imported

import torch

from benchmarks import suites
from benchmarks.evaluation import evaluation
from benchmarks.measure import Result, as_rows, machine, table
from benchmarks.plots import draw_scaling
from benchmarks.subjects import VARIANTS
from lightning_app.files import write_json


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
    parser.add_argument("--suites", default="train_step,plan,loss,profiling,token_cache,evaluation,scaling")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    results = measure(args)
    settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
    device = torch.device(args.device)
    write_json(args.out, {"machine": machine(device), "settings": settings, "results": as_rows(results)})
    print(table([result for result in results if not result.benchmark.startswith("scaling")]))
    print(f"written to {args.out}")
    if plot := draw_scaling(results, args.out.with_name(f"{args.out.stem}-scaling.png")):
        print(f"written to {plot}")


def measure(args: argparse.Namespace) -> list[Result]:
    """Returns the results of every suite in turn."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    names = list(dict.fromkeys(["frozen", *args.variants.split(",")]))
    settings = [suites.Setting.parse(text) for text in args.settings.split(",")]
    results: list[Result] = []
    for suite in args.suites.split(","):
        print(f"measuring {suite}", flush=True)
        gc.collect()  # the models of the suite before refer to themselves, and some have gigabytes of states
        if suite == "train_step":
            for setting in settings:
                title = "train_step" if len(settings) == 1 else f"train_step {setting}"
                results += suites.train_step(setting, device, dtype, names, args.rounds, title)
        elif suite == "plan":
            for setting in settings:
                results += suites.plan(setting, device, dtype)
        elif suite == "loss":
            results += suites.loss(device, dtype, args.rounds)
        elif suite == "profiling":
            for setting in map(suites.Setting.parse, args.profiling.split(",")):
                results += suites.profiling(setting.shape, device, dtype, setting.tokens, args.rounds)
        elif suite == "token_cache":
            results += suites.token_cache(args.rounds)
        elif suite == "evaluation":
            results += evaluation(device, dtype, args.rounds)
        elif suite == "scaling":
            around = suites.Setting.parse(args.scaling)
            results += suites.scaling(around, args.sizes.split(","), device, dtype, max(3, args.rounds - 2))
        else:
            raise SystemExit(
                f"there is no suite {suite}; expected {', '.join(('train_step', 'plan', 'loss'))} and so on"
            )
    return results


if __name__ == "__main__":
    main()
