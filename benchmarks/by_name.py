"""The suites by name, each as it is asked for on the command line."""

import argparse
import os
import warnings
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages, which torch reads when it is imported

import torch

from benchmarks import suites
from benchmarks.evaluation import evaluation
from benchmarks.measure import Result


def measure(suite: str, args: argparse.Namespace) -> list[Result]:
    """Returns the results of a suite."""
    warnings.simplefilter("ignore", FutureWarning)
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return SUITES[suite](args, device, dtype)


def _train_step(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    names = list(dict.fromkeys(["frozen", *args.variants.split(",")]))
    settings = [suites.Setting.parse(text) for text in args.settings.split(",")]
    results = []
    for setting in settings:
        title = "train_step" if len(settings) == 1 else f"train_step {setting}"
        results += suites.train_step(setting, device, dtype, names, args.rounds, title)
    return results


def _plan(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    settings = [suites.Setting.parse(text) for text in args.settings.split(",")]
    return [result for setting in settings for result in suites.plan(setting, device, dtype)]


def _profiling(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    results = []
    for setting in map(suites.Setting.parse, args.profiling.split(",")):
        results += suites.profiling(setting.shape, device, dtype, setting.tokens, args.rounds)
    return results


def _scaling(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[Result]:
    around = suites.Setting.parse(args.scaling)
    return suites.scaling(around, args.sizes.split(","), device, dtype, max(3, args.rounds - 2))


SUITES: dict[str, Callable[[argparse.Namespace, torch.device, torch.dtype], list[Result]]] = {
    "train_step": _train_step,
    "plan": _plan,
    "loss": lambda args, device, dtype: suites.loss(device, dtype, args.rounds),
    "profiling": _profiling,
    "token_cache": lambda args, device, dtype: suites.token_cache(args.rounds),
    "evaluation": lambda args, device, dtype: evaluation(device, dtype, args.rounds),
    "scaling": _scaling,
}
"""How each is measured, by name."""
