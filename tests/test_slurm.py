"""The sbatch files on a real SLURM of two nodes on this machine: jobs train, are told that time is over, go on."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from lightning_app.files import load_checkpoint
from lightning_app.neurons.atlas import Atlas
from lightning_app.run import RunFolder

ROOT = Path(__file__).resolve().parent.parent
ONE_EACH = "--ntasks-per-node=1"
IN_PARTS = (ONE_EACH, "--export=ALL,NEUROGLOT_STRATEGY=fsdp2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slurm(shared, tmp_path_factory):
    """Runs a command with a SLURM of two nodes and returns what it says."""
    if not all(shutil.which(name) for name in ("sbatch", "slurmctld", "slurmd", "munged")):
        pytest.skip("SLURM (slurm-wlm, munge) is not installed")
    folder = tmp_path_factory.mktemp("slurm")
    own = {**os.environ, "SLURM_LOCAL_DIR": str(folder), "SLURM_LOCAL_PORT": "17400"}
    tool = shared / "tools/slurm_local.sh"
    started = subprocess.run(["bash", tool, "start"], env=own, capture_output=True, text=True)
    assert started.returncode == 0, started.stdout + started.stderr
    env = {**own, "SLURM_CONF": str(folder / "slurm.conf"), "NEUROGLOT_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
           "NEUROGLOT_PYTHON": str(ROOT / ".venv/bin/python"), "HF_HUB_OFFLINE": "1",
           "MASTER_ADDR": "127.0.0.1"}  # fmt: skip

    def run(*command, cwd=ROOT):
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    subprocess.run(["scancel", "--full", "--signal=KILL", "--user", os.environ.get("USER", "root")], env=env)
    subprocess.run(["bash", tool, "stop"], env=own, capture_output=True)


@pytest.fixture(scope="module")
def submit(slurm, tmp_path_factory):
    """Submits slurm/train.sbatch, or another, without GPUs and returns the job's number and its log."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "main.py").symlink_to(ROOT / "main.py")  # what is written where the job was submitted is no part of ROOT

    def run(*arguments, options=(ONE_EACH,), file="train"):
        script, log = folder / f"{file}.sbatch", folder / f"{len(list(folder.iterdir()))}.out"
        lines = (ROOT / f"slurm/{file}.sbatch").read_text().split("\n")
        script.write_text("\n".join(line for line in lines if "gpus" not in line))
        asked = ("--cpus-per-task=1", f"--output={log}", *options)
        return slurm("sbatch", "--parsable", *asked, str(script), *arguments, cwd=folder).strip(), log

    return run


def state(slurm, job):
    found = re.search(r"JobState=(\S+).*?Restarts=(\d+)", slurm("scontrol", "show", "job", job), re.DOTALL)
    return found[1], int(found[2])


def hurry(slurm, job):
    """Lets a job that is queued again start soon; SLURM would let it wait for two minutes, and needs some seconds."""
    until = time.monotonic() + 60
    while (found := state(slurm, job))[1] == 0 or found[0] == "COMPLETING":
        assert time.monotonic() < until, found
        time.sleep(0.5)
    if found[0] == "PENDING":
        slurm("bash", "-c", f"scontrol update jobid={job} StartTime=now+10 || true")


def wait(log, pattern, seconds=150):
    """Returns where a job's log matches; its file is there once the job begins."""
    said, until = "nothing", time.monotonic() + seconds
    while time.monotonic() < until:
        said = log.read_text(errors="replace") if log.exists() else ""
        if found := re.search(pattern, said):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{pattern} did not come:\n{said}")


def arguments(workplace, run_dir, **changes):
    keys = {"trainer__validate_every": 40, "data__token_budget": 98304, "data__batch_size": 2, **changes}
    return workplace.adapt(run_dir, **keys, profiling__atlas=workplace.atlas)[1:]


def same(one, other):
    states = (load_checkpoint(RunFolder(each).last_checkpoint)["state_dict"] for each in (one, other))
    one, other = states
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(submit, workplace):
    """The folder of a run that nothing disturbed."""
    _, log = submit(*arguments(workplace, "slurm-whole"))
    wait(log, "done: ")
    return workplace.folder / "slurm-whole/adapted"


@pytest.mark.parametrize("way", ["told by the scheduler", "one rank is slow", "its time is over", "preempted"])
def test_a_job_that_is_ended_goes_on_by_itself_and_ends_as_if_nothing_had_been(slurm, submit, workplace, whole, way):
    options = (ONE_EACH, *(("--time=1", "--signal=B:USR1@20") if way == "its time is over" else ()))
    name = f"slurm-{way.replace(' ', '-')}"
    job, log = submit(*arguments(workplace, name), options=options)
    wait(log, r"step 40: ")
    if way == "its time is over":
        _stop_one_rank_for(slurm, name, seconds=30)
    elif way == "told by the scheduler":
        slurm("scancel", "--batch", "--signal=USR1", job)
    elif way == "one rank is slow":
        _stop_one_rank_for(slurm, name, seconds=2)
        slurm("scancel", "--batch", "--signal=USR1", job)
    elif way == "preempted":
        slurm("scontrol", "requeue", job)
    if way != "preempted":
        wait(log, r"ended by SIGUSR1 at step \d+ of \d+; saved, the same command goes on")
    hurry(slurm, job)
    wait(log, r"done: ", seconds=400)
    assert same(whole, workplace.folder / name / "adapted")
    assert state(slurm, job)[1] >= 1


def _stop_one_rank_for(slurm, name, seconds):
    processes = subprocess.run(["pgrep", "-f", f"main.py fit.*{name}"], capture_output=True, text=True).stdout.split()
    ranks = [each for each in processes if b"SLURM_PROCID=1\0" in Path(f"/proc/{each}/environ").read_bytes()]
    for each in ranks:
        subprocess.run(["kill", "-STOP", each], check=True)
    assert ranks
    subprocess.Popen(["bash", "-c", f"sleep {seconds}; kill -CONT {' '.join(ranks)}"])


@pytest.fixture(scope="module")
def whole_in_parts(submit, workplace):
    """The same under FSDP2."""
    _, log = submit(*arguments(workplace, "slurm-parts"), options=IN_PARTS)
    wait(log, "done: ")
    return workplace.folder / "slurm-parts/adapted"


@pytest.mark.parametrize("way", ["told by the scheduler", "its time is over"])
def test_two_nodes_with_a_part_of_the_base_each_go_on_too(slurm, submit, workplace, whole, whole_in_parts, way):
    ended = ("--time=1", "--signal=B:USR1@20") if way == "its time is over" else ()
    name = f"slurm-parts-{way.replace(' ', '-')}"
    job, log = submit(*arguments(workplace, name), options=(*IN_PARTS, *ended))
    wait(log, r"step 40: ")
    if way == "its time is over":
        _stop_one_rank_for(slurm, name, seconds=30)
    else:
        slurm("scancel", "--batch", "--signal=USR1", job)
    wait(log, r"ended by SIGUSR1 at step \d+ of \d+; saved, the same command goes on")
    hurry(slurm, job)
    wait(log, r"done: ", seconds=400)
    assert state(slurm, job)[1] >= 1
    assert same(whole_in_parts, workplace.folder / name / "adapted")
    ends = (load_checkpoint(RunFolder(each).last_checkpoint)["state_dict"] for each in (whole, whole_in_parts))
    one, other = ends
    for rows in one:
        torch.testing.assert_close(other[rows], one[rows], rtol=0, atol=1e-5)


def test_a_comparison_is_an_array_of_runs_each_of_which_goes_on_by_itself(slurm, submit, workplace):
    keys = [*arguments(workplace, "slurm-compared", name="compared"), "--methods=subnetwork,lora"]
    logs = [workplace.folder / f"compared-{task}.out" for task in (0, 1)]
    own = ("--array=0-1", f"--output={workplace.folder}/compared-%a.out")
    job, _ = submit(*keys, options=own, file="compare")
    wait(logs[0], r"step 40: ")
    slurm("scancel", "--batch", "--signal=USR1", f"{job}_0")
    wait(logs[0], r"saved, the same command goes on")
    hurry(slurm, f"{job}_0")
    for log in logs:
        wait(log, r"done: ", seconds=400)
    assert "going on from step" in logs[0].read_text()
    gathered = slurm(str(sys_python()), "main.py", "compare", *keys)
    assert "2 runs, 2 complete before" in gathered


def test_many_languages_are_counted_by_an_array_and_make_one_atlas(slurm, submit, workplace, tmp_path):
    keys = [key for key in arguments(workplace, "none") if not key.startswith("--profiling.atlas")]
    keys = ["--languages=qaa-Latn,qab-Latn,qah-Deva", *keys]
    _, log = submit(*keys, options=("--array=1-2",), file="profile")
    wait(log, "(?s)select with: .*select with: ")
    parts, merged, alone = log.parent / "atlases/*.safetensors", tmp_path / "merged.safetensors", tmp_path / "one"
    slurm(str(sys_python()), "main.py", "atlas", "--atlas", str(parts), "--write", str(merged))
    slurm(str(sys_python()), "main.py", "profile", *keys, "--profiling.atlas", str(alone))
    one, other = Atlas.load(merged), Atlas.load(alone)
    assert one.tokens == other.tokens
    assert all(torch.equal(one.counts[code], other.counts[code]) for code in one.counts)


def test_a_finished_job_is_not_run_again(slurm, submit, workplace, whole):
    before = RunFolder(whole).last_checkpoint.stat().st_mtime_ns
    _, log = submit(*arguments(workplace, "slurm-whole"))
    wait(log, "is complete")
    assert RunFolder(whole).last_checkpoint.stat().st_mtime_ns == before


def test_launch_mistakes_are_one_line_within_seconds(slurm, submit, workplace):
    began = time.monotonic()
    _, log = submit(*arguments(workplace, "slurm-more"), options=("--ntasks-per-node=2", "--ntasks=3"))
    assert "srun started 3 tasks" in wait(log, r"error: .*")[0]
    keys = [f"{sys_python()}", "main.py", "fit", *arguments(workplace, "slurm-alone")]
    alone = log.with_name("alone.out")
    slurm("sbatch", "--nodes=2", "--ntasks=2", f"--output={alone}", "--wrap", _quoted(keys))
    wait(alone, "put srun in front of the command")
    assert time.monotonic() - began < 60


def sys_python():
    return ROOT / ".venv/bin/python"


def _quoted(words):
    return " ".join(f"'{word}'" for word in words)
