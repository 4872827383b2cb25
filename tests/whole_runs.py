"""Runs of the program for tests: started beside the tests, looked into, compared."""

import os
import subprocess
import sys

import torch

from lightning_app.languages import find_language
from tests.conftest import ROOT

TARGET = find_language("qah-Deva")


def start(arguments, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def best(folder):
    (path,) = (folder / "checkpoints").glob("best-*.ckpt")
    return path


def load(path):
    return torch.load(path, weights_only=True)


def before_of(checkpoint):
    """The target's loss before training."""
    return checkpoint["callbacks"]["Retention"]["before"]["qah-Deva"][0]


def assert_same_end(one, other, tolerance=0.0):
    for name, weights in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], weights, rtol=0, atol=tolerance)
