"""The suites by name, each as it is asked for on the command line."""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages, which torch reads when it is imported

import torch

from benchmarks import suites
from benchmarks.evaluation import evaluation
from benchmarks.measure import Result

_AT_ONCE = 6


def measure(suite: str, args: argparse.Namespace) -> list[Result]:
    """Returns the results of a suite."""
    warnings.simplefilter("ignore", FutureWarning)
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return SUITES[suite](args, device, dtype)


def _train_step(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    setting = suites.Setting.parse(args.settings)
    title = f"train_step {setting}" if args.is_one_of_several else "train_step"
    found = suites.train_step(setting, device, dtype, ["frozen", *args.variants], args.rounds, title)
    return [result for result in found if args.is_first or result.variant != "frozen"]


def _operations(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    return suites.operations(suites.Setting.parse(args.settings), device, dtype)


def _plan(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    return suites.plan(suites.Setting.parse(args.settings), device, dtype)


def _profiling(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    setting = suites.Setting.parse(args.profiling)
    return suites.profiling(setting.shape, device, dtype, setting.tokens, args.rounds)


def _scaling(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    around = suites.Setting.parse(args.scaling)
    return suites.scaling(around, args.sizes.split(","), device, dtype, max(3, args.rounds - 2))


def pieces(suite: str, args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Yields the arguments of a suite's parts, each of which is measured and kept by itself.

    A part is one model and batch, and of the ways to train some that take turns, the bound among each: all of them at
    once would need more than 24 GiB at 95 M parameters.
    """
    key = {"train_step": "settings", "operations": "settings", "plan": "settings", "profiling": "profiling"}.get(suite)
    every = getattr(args, key).split(",") if key is not None else [""]
    ways = [each for each in dict.fromkeys(args.variants.split(",")) if each != "frozen"]
    starts = range(0, max(1, len(ways)), _AT_ONCE) if suite == "train_step" else [0]
    for value, start in ((value, start) for value in every for start in starts):
        own = {"variants": ways[start : start + _AT_ONCE], "is_one_of_several": len(every) > 1, "is_first": start == 0}
        yield argparse.Namespace(**{**vars(args), **own, **({key: value} if key is not None else {})})


SUITES: dict[str, Callable[[argparse.Namespace, torch.device, torch.dtype], list[Result]]] = {
    "train_step": _train_step,
    "operations": _operations,
    "plan": _plan,
    "loss": lambda args, device, dtype: suites.loss(device, dtype, args.rounds),
    "profiling": _profiling,
    "token_cache": lambda args, device, dtype: suites.token_cache(args.rounds),
    "evaluation": lambda args, device, dtype: evaluation(device, dtype, args.rounds),
    "scaling": _scaling,
}
"""How each is measured, by name."""
