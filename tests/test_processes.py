"""Where one process of a run ends before its time, all end: at once, with its reason and its exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lightning_app.cli import main
from lightning_app.files import load_checkpoint
from lightning_app.run import RunFolder
from tests.conftest import ROOT
from tests.test_every_method import same, state

PROCESS = """
import json, os, signal, sys, time
from pathlib import Path
from lightning_app.peers import PeerEnded, company, conclude, is_of_another, join
own = sys.modules["lightning_app.peers.company"]
own._GRACE_S, own._CTRL_C_S = 1.5, 0.5
rank, count, folder, act = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]

def broadcast(value):
    there = folder / "address"
    if rank == 0:
        there.with_suffix(".new").write_text(json.dumps(value))
        there.with_suffix(".new").rename(there)
    while not there.exists():
        time.sleep(0.01)
    return json.loads(there.read_text())

def say(teller, line):
    print(f"[{teller}] {line}", flush=True)

def work():
    join(rank, count, broadcast)
    (folder / f"joined{rank}").touch()
    if act == "wait":
        while not (folder / "go").exists():
            time.sleep(0.01)
    if act == "block":
        (folder / "blocked.fifo").exists() or os.mkfifo(folder / "blocked.fifo")
        os.open(folder / "blocked.fifo", os.O_RDONLY)  # never returns to the interpreter
    while act in ("raise", "kill", "exit", "quit") and len(list(folder.glob("joined*"))) < count:
        time.sleep(0.01)
    if act == "raise":
        raise ValueError("the third block is bad")
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "exit":
        raise SystemExit(5)
    if act == "quit":
        raise KeyboardInterrupt

try:
    with company(say):
        work()
except (Exception, PeerEnded) as error:
    sys.exit(conclude("" if is_of_another(error) else str(error), 2))
"""


@pytest.fixture
def together(tmp_path):
    """Runs processes that act as named; returns what each printed and its exit code, and the seconds it all took."""
    started = []

    def run(*acts):
        script = tmp_path / "process.py"
        script.write_text(PROCESS)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
        for rank, act in enumerate(acts):
            command = [sys.executable, str(script), str(rank), str(len(acts)), str(tmp_path), act]
            started.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
            )
        begun = time.monotonic()
        if set(acts) <= {"wait", "done"}:
            while len(list(tmp_path.glob("joined*"))) < len(acts):
                time.sleep(0.01)
            time.sleep(0.5)
            (tmp_path / "go").touch()
        said = [process.communicate(timeout=60)[0] for process in started]
        return said, [process.returncode for process in started], time.monotonic() - begun

    yield run
    for process in started:
        process.kill()


def test_processes_that_end_well_disturb_nobody(together):
    said, codes, _ = together("wait", "done", "wait")
    assert (said, codes) == (["", "", ""], [0, 0, 0])


@pytest.mark.parametrize("acts", [("wait", "wait", "raise"), ("raise", "wait", "wait"), ("block", "block", "raise")])
def test_the_reason_of_the_first_is_said_once_and_its_code_is_everyones(together, acts):
    """Also where the others wait for something that never comes, outside of the interpreter."""
    said, codes, seconds = together(*acts)
    assert (said, codes) == ([f"[{acts.index('raise')}] the third block is bad\n", "", ""], [2, 2, 2])
    assert seconds < 60


@pytest.mark.parametrize("killed", [0, 2])
def test_a_process_that_is_killed_ends_the_others_who_say_so(together, killed):
    acts = ["wait", "wait", "wait"]
    acts[killed] = "kill"
    said, codes, seconds = together(*acts)
    others = [rank for rank in range(3) if rank != killed]
    assert codes[killed] == -signal.SIGKILL
    assert [codes[rank] for rank in others] == [1, 1]
    tellers = [0] if killed else [1, 2]  # the first process, or all where that is the one
    for rank in others:
        line = rf"\[{rank}\] process {killed} ended without a word: .*the same command goes on\n"
        assert re.fullmatch(line if rank in tellers else "", said[rank]), said
    assert seconds < 60


@pytest.mark.parametrize(("act", "code"), [("exit", 5), ("quit", 130)])
def test_an_exit_code_is_everyones_without_a_word(together, act, code):
    said, codes, _ = together("wait", act)
    assert (said, codes) == (["", ""], [code, code])


FAULT = """
import os, signal
from lightning_app.errors import UserError
kind, where, rank = os.environ["FAULT"].split()
def fail(*args, **kwargs):
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    raise UserError("the files of this machine are bad") if kind == "refuse" else RuntimeError("a defect")
if os.environ.get("LOCAL_RANK", "0") == rank:
    from lightning_app.cli import fit
    from lightning_app.profiling.profiler import Profiler
    from lightning_app.training import module
    if where == "check":
        fit.require_checks = fail
    if where == "load":
        module.load_under = fail
    if where == "profile":
        Profiler._finish = fail
    name = {"train": "training_step", "validate": "validation_step"}.get(where)
    if name is not None:
        plain = getattr(module.SparseSubnetModule, name)
        def step(self, *args):
            return fail() if self.global_step == 10 else plain(self, *args)
        setattr(module.SparseSubnetModule, name, step)
"""


KILLED = "neuroglot: error: process 1 was ended by SIGKILL, perhaps for want of memory; the same command goes on"


def start(tmp_path, arguments, fault, launcher=()):
    hook = tmp_path / "hook.py"
    hook.write_text(FAULT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOOK": str(hook), "FAULT": fault}
    command = [*(launcher or [sys.executable]), str(ROOT / "tests/hooked.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def on_two(workplace, tmp_path, run_dir, **changes):
    keys = {"trainer__validate_every": 10, "data__token_budget": 12288, "data__batch_size": 2, **changes}
    arguments = [each for each in workplace.adapt(f"ranks/{run_dir}", **keys) if each != "--data.batch_size=4"]
    return [*arguments, f"--profiling.atlas={tmp_path}/atlas.safetensors"], [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]


def test_a_killed_process_ends_the_run_with_a_line_and_the_same_command_goes_on(workplace, tmp_path):
    """On one process then: what is left of the text, and all of it."""
    command, two = on_two(workplace, tmp_path, "killed", name="killed")
    process = start(tmp_path, [*command, *two], "kill validate 1")
    began = time.monotonic()
    output = process.communicate(timeout=200)[0]
    assert output.strip().split("\n")[-1] == KILLED
    assert "Traceback" not in output
    assert "gloo" not in output
    assert process.returncode == 1
    assert time.monotonic() - began < 150
    assert main(command) == 0
    assert RunFolder(workplace.folder / "ranks/killed/killed").record()["status"] == "complete"


CASES = ["refuse train 1", "refuse train 0", "defect train 1", "kill train 1", "kill profile 1", "refuse profile 1",
         "kill load 1", "refuse check 1", "defect validate 1", "kill load 0", "interrupt load 0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", CASES)
def test_every_phase_ends_with_the_first_that_ends(workplace, tmp_path, fault):
    kind, where, rank = fault.split()
    command, two = on_two(workplace, tmp_path, where, name=fault.replace(" ", "-"))
    process = start(tmp_path, [*command, *two], fault)
    output = process.communicate(timeout=200)[0]
    said = [line for line in output.split("\n") if line.startswith("neuroglot")]
    prefix = f"neuroglot{' [1]' if rank == '1' else ''}: error: "
    expected = {
        "refuse": (2, [f"{prefix}the files of this machine are bad"]),
        "defect": (1, [f"{prefix}RuntimeError: a defect; the same command with --debug shows where"]),
        "kill": (1, [KILLED]),
        "interrupt": (130, []),
    }[kind]  # fmt: skip
    if fault == "kill load 0":  # its children end with it, and a shell says the rest
        expected = (-signal.SIGKILL, [])
    assert (process.returncode, said) == expected, output
    assert ("interrupted; nothing is lost, the same command goes on" in output) == (kind == "interrupt")
    assert "Traceback" not in output
    assert "onnection closed by peer" not in output


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuse train 1", "kill train 1", "kill train 0"])
def test_torchruns_processes_end_with_the_first_that_ends(workplace, tmp_path, fault):
    """torchrun itself tells of it at length; its exit code is its own, those of the processes stand in what it says."""
    command, two = on_two(workplace, tmp_path, "torchrun", name=fault.replace(" ", "-"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533"]
    output = start(tmp_path, [*command, *two], fault, torchrun).communicate(timeout=200)[0]
    kind, _, rank = fault.split()
    said = [line for line in output.split("\n") if line.startswith("neuroglot")]
    assert len(said) == 1, output
    assert re.search(
        "files of this machine are bad" if kind == "refuse" else f"process {rank} ended without a word", said[0]
    )
    codes = set(re.findall(r"exitcode  : (-?\d+)", output))
    assert codes == ({"2"} if kind == "refuse" else {"1", "-9"})
    assert "onnection closed by peer" not in output


LOG = """
import os, json, torch
from lightning_app.training.module import SparseSubnetModule
plain = SparseSubnetModule.training_step
def step(self, batch, batch_idx):
    rows = self.data.trace([batch_idx])
    where = [[row["position"], row["block"], int(ids.sum())] for row, ids in zip(rows, batch["input_ids"], strict=True)]
    with open(f'{os.environ["LOG"]}-{self.global_rank}', "a") as file:
        file.write(json.dumps([self.global_step, where]) + "\\n")
    return plain(self, batch, batch_idx)
SparseSubnetModule.training_step = step
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_two_four_and_one_processes_read_the_text_of_one_in_its_order(workplace, tmp_path):
    """What is read is what one process reads, in its order and once, whatever the processes and workers."""
    hook = tmp_path / "log.py"
    hook.write_text(LOG)

    def read(log, *arguments):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HOOK": str(hook), "LOG": str(tmp_path / log)}
        subprocess.run([sys.executable, str(ROOT / "tests/hooked.py"), *arguments], env=env, check=True, timeout=250)
        rows = [json.loads(line) for path in tmp_path.glob(f"{log}-*") for line in path.read_text().splitlines()]
        return [tuple(each) for each in sorted(each for _, where in rows for each in where)]

    keys = {"data__token_budget": 12288, "trainer__validate_every": 1000}
    whole = read("whole", *workplace.adapt("many-processes", **keys, name="whole"))
    assert [position for position, _, _ in whole] == list(range(12288 // 64))
    ways = [(1, 0, 4), (2, 1, 8), (4, 0, 12), (1, 2, -1)]  # processes, workers, steps in all
    again = []
    for processes, workers, steps in ways:
        many = ["--trainer.strategy=ddp"] if processes > 1 else []
        command = workplace.adapt(
            "many-processes", **keys, name="many", trainer__max_steps=steps, data__num_workers=workers
        )
        again += read(f"on{len(again)}", *command, *many, f"--trainer.devices={processes}")
    assert again == whole
    assert RunFolder(workplace.folder / "many-processes/many").record()["status"] == "complete"


@pytest.mark.slow
def test_a_second_and_a_third_resume_end_bit_equal(workplace, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    keys = {"data__token_budget": 12288, "trainer__validate_every": 10}
    assert main(workplace.adapt("thrice", **keys, name="whole")) == 0
    for steps, workers in ((7, 0), (19, 2), (33, 0), (-1, 1)):
        command = workplace.adapt("thrice", **keys, name="parts", trainer__max_steps=steps, data__num_workers=workers)
        assert main(command) == 0
    whole, parts = (RunFolder(workplace.folder / "thrice" / name) for name in ("whole", "parts"))
    assert same(state(whole), state(parts))
    assert whole.best_checkpoint().name == parts.best_checkpoint().name
    assert load_checkpoint(parts.last_checkpoint)["global_step"] == 48
