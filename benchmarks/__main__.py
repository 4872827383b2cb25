"""``python -m benchmarks``: measures, prints a table and writes JSON."""

import argparse
from pathlib import Path

import torch

from benchmarks import suites
from benchmarks.measure import as_rows, machine, table
from benchmarks.subjects import SHAPES, VARIANTS
from lightning_app.files import write_json


def main() -> None:
    """Runs the suites that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shape", default="95m", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=2, help="sequences per step")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="ways to train; frozen is always measured")
    parser.add_argument("--suites", default="train_step,loss,profiling")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu.json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    names = list(dict.fromkeys(["frozen", *args.variants.split(",")]))
    results = []
    for suite in args.suites.split(","):
        if suite == "train_step":
            results += suites.train_step(args.shape, device, dtype, args.batch, args.tokens, names, args.rounds)
        elif suite == "loss":
            results += suites.loss(device, dtype, args.rounds)
        else:
            results += suites.profiling(args.shape, device, dtype, 2048, args.rounds)
    settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
    write_json(args.out, {"machine": machine(device), "settings": settings, "results": as_rows(results)})
    print(table(results))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
