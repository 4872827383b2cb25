"""Processes of one run that are started once and make several runs, as importing takes longer than most of them."""

import json
import os
import socket
import subprocess
import sys

from tests.conftest import ROOT

RUNS = """
import json, sys
import torch
torch.set_num_threads(1)
from lightning_app.cli import main
for arguments in json.load(open(sys.argv[1])):
    if code := main(arguments):
        sys.exit(code)
"""


def run_together(tmp_path, processes, *runs):
    """Makes runs, each by all processes together, one after the other; returns what the first process printed."""
    (tmp_path / "runs.json").write_text(json.dumps([list(map(str, arguments)) for arguments in runs]))
    said, codes = start_together(processes, ["-c", RUNS], tmp_path / "runs.json")
    assert codes == [0] * processes, "\n".join(said)
    return said[0]


def start_together(processes, command, *arguments):
    """Runs Python in several processes as torchrun would; returns what each printed, and their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
    }  # fmt: skip
    command = [sys.executable, *command, *map(str, arguments)]
    started = [
        subprocess.Popen(
            command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return said, [process.returncode for process in started]
