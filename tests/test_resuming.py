"""Going on: with the settings of before, from the newest checkpoint that can be read, to the end of all its files."""

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.files import load_checkpoint
from lightning_app.resuming import choose_run
from lightning_app.run import RunFolder
from tests.conftest import ROOT
from tests.test_every_method import same, state

KEYS = {"data__token_budget": 4096, "trainer__validate_every": 4}  # 16 steps


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


def refused(capsys, arguments, pattern):
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(pattern, error), error
    assert len(error.split("\n")) == 1
    return error


@pytest.fixture(scope="module")
def cut(workplace):
    """A run that was stopped at step 8 of 16; beside it one that was not, whole."""
    before = sys.argv[:]
    assert main(workplace.adapt("resuming", **KEYS, name="cut", trainer__max_steps=8)) == 0
    assert main(workplace.adapt("resuming", **KEYS, name="whole")) == 0
    sys.argv[:] = before
    return RunFolder(workplace.folder / "resuming/cut")


@pytest.fixture(scope="module")
def later(workplace, cut):
    """What a save between validations leaves: the last checkpoint of step 11, where the best is of step 8."""
    before = sys.argv[:]
    command = workplace.adapt("resuming", **KEYS, name="later", trainer__max_steps=11, resume=cut.last_checkpoint)
    assert main(command) == 0
    sys.argv[:] = before
    return RunFolder(workplace.folder / "resuming/later").last_checkpoint.read_bytes()


def test_settings_that_decide_the_result_are_refused_by_name(workplace, cut, capsys):
    before = cut.config.read_text(), cut.last_checkpoint.read_bytes()
    changed = {**KEYS, "model__lr": 1e-4, "data__block_size": 32, "profiling__rate": 0.2}
    arguments = [each for each in workplace.adapt("resuming", **changed, name="cut") if each != "--data.block_size=64"]
    line = refused(capsys, arguments, "holds a run with another configuration: ")
    for part in ("--model.lr was 0.003 and is 0.0001", "--data.block_size was 64 and is 32",
                 "--profiling.rate was 0.1 and is 0.2"):  # fmt: skip
        assert part in line
    assert "max_steps" not in line
    assert (cut.config.read_text(), cut.last_checkpoint.read_bytes()) == before


def test_what_is_wrong_by_itself_is_said_before_that_it_is_another_configuration(workplace, cut, capsys):
    for changes, line in (
        ({"model__method": "subnetwrk"}, "did you mean 'subnetwork'"),
        ({"model__rank": 4}, "--model.method subnetwork has no such key"),
        ({"data__replay": '{"qab-Latn": 1.2}'}, "data.replay"),
    ):
        refused(capsys, workplace.adapt("resuming", **{**KEYS, **changes}, name="cut"), line)


def test_a_checkpoint_knows_its_settings_wherever_it_lies(workplace, cut, capsys, tmp_path):
    """The optimiser would take the rate of the checkpoint, whatever is asked for."""
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(cut.last_checkpoint.read_bytes())
    command = workplace.adapt("resuming", **{**KEYS, "model__lr": 1e-4}, name="elsewhere", resume=copy)
    refused(
        capsys, command, "copy.ckpt is a checkpoint of a run with another configuration: --model.lr was 0.003 and is"
    )
    assert not (workplace.folder / "resuming/elsewhere").exists()


def test_a_schedule_counts_the_steps_so_that_they_may_not_change(workplace, capsys):
    keys = {**KEYS, "model__schedule": "linear", "name": "linear"}
    assert main(workplace.adapt("resuming", **keys, trainer__max_steps=4)) == 0
    refused(capsys, workplace.adapt("resuming", **keys), "--trainer.max_steps was 4 and is -1")


def test_other_settings_may_change_and_are_told_in_a_line(workplace, cut, capsys):
    copy = workplace.folder / "resuming/changed"
    shutil.copytree(cut.path, copy)
    capsys.readouterr()
    keys = {**KEYS, "trainer__validate_every": 8}
    more = ["--data.num_workers=1", "--trainer.log_every_n_steps=4", "--trainer.save_every=5"]
    assert main([*workplace.adapt("resuming", **keys, name="changed"), *more]) == 0
    (line,) = (line for line in capsys.readouterr().out.split("\n") if line.startswith("other settings than before"))
    for part in ("--data.num_workers 1 (was 0)", "--trainer.log_every_n_steps 4 (was 10)",
                 "--trainer.save_every 5.0 (was 30.0)", "--trainer.validate_every 8 (was 4)"):  # fmt: skip
        assert part in line
    assert "cache_dir" not in line
    whole = state(RunFolder(workplace.folder / "resuming/whole"))
    assert same(whole["state_dict"], state(RunFolder(copy))["state_dict"])
    assert same(whole["optimizer_states"], state(RunFolder(copy))["optimizer_states"])


def flip(path, share=0.5):
    """A bit of what the file holds: beside its entries a zip file has padding that means nothing."""
    content = bytearray(path.read_bytes())
    held = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
            start = entry.header_offset + 30 + name + extra
            held += range(start, start + entry.compress_size)
    content[held[int(len(held) * share)]] ^= 16
    path.write_bytes(bytes(content))


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_last_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(workplace, cut, later, capsys, damage):
    """And what was made after that is made again, the same."""
    folder = RunFolder(workplace.folder / "resuming" / f"last-{damage}")
    shutil.copytree(cut.path, folder.path)
    folder.last_checkpoint.write_bytes(later)
    DAMAGES[damage](folder.last_checkpoint)
    assert main(workplace.adapt("resuming", **KEYS, name=folder.path.name)) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"last\.ckpt is damaged \(.*\); going on from the one before, best-step000008.*, at step 8\n", said
    )
    assert same(state(RunFolder(workplace.folder / "resuming/whole")), state(folder))


def test_where_no_checkpoint_can_be_read_nothing_is_deleted(workplace, cut, capsys):
    folder = RunFolder(workplace.folder / "resuming/none")
    shutil.copytree(cut.path, folder.path)
    DAMAGES["cut"](folder.last_checkpoint)
    DAMAGES["flipped"](folder.best_checkpoint())
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    pattern = r"no checkpoint of .*none can be read: .*last\.ckpt is damaged .*best-.* is damaged .*checksum differs"
    refused(capsys, workplace.adapt("resuming", **KEYS, name="none"), pattern)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("byte", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_is_found_wherever_it_is(cut, tmp_path, byte):
    """torch.load itself takes it in silence, in the weights."""
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(cut.last_checkpoint.read_bytes())
    assert load_checkpoint(path)["global_step"] == 8
    flip(path, byte)
    for is_mapped in (False, True):
        with pytest.raises(UserError, match="is damaged"):
            load_checkpoint(path, is_mapped)


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(cut, tmp_path):
    content, whole = cut.last_checkpoint.read_bytes(), load_checkpoint(cut.last_checkpoint)
    path = tmp_path / "flipped.ckpt"
    unharmed = 0
    for at in range(0, len(content), len(content) // 60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with contextlib.suppress(UserError):
            assert same(load_checkpoint(path), whole)
            unharmed += 1
    assert unharmed < 30


KILL = """
import os, signal
from pathlib import Path
from lightning_app import files
plain = os.replace
def replace(source, target, **options):
    if Path(target).name == os.environ["WHAT"]:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(source, target, **options)
os.replace = replace
Path.replace = lambda source, target: replace(source, target)
Path.rename = lambda source, target: replace(source, target)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("what", "method"), [("summary.md", "subnetwork"), ("model", "full")])
def test_a_run_killed_while_it_writes_its_end_is_not_complete_and_writes_it_again(workplace, tmp_path, what, method):
    (tmp_path / "hook.py").write_text(KILL)
    command = workplace.adapt("ends", **KEYS, name=method, model__method=method)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOOK": str(tmp_path / "hook.py"), "WHAT": what}
    process = subprocess.run([sys.executable, str(ROOT / "tests/hooked.py"), *command], env=env, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process
    folder = RunFolder(workplace.folder / "ends" / method)
    assert folder.record()["status"] == "training"
    assert not (folder.path / what).exists()
    assert main(command) == 0
    assert main(workplace.adapt("ends", **KEYS, name=f"whole-{method}", model__method=method)) == 0
    whole = RunFolder(workplace.folder / f"ends/whole-{method}")
    assert folder.record()["status"] == "complete"
    assert folder.record()["files"] == ["summary.md", *(["model"] if method == "full" else [])]
    assert figures(folder) == figures(whole)
    for name in ("best", "last", "before"):
        assert folder.record()["result"][name] == whole.record()["result"][name]


def figures(folder):
    """The summary without what was measured by the clock."""
    return [line for line in folder.summary.read_text().split("\n") if not re.match(r"- (speed|\d+ steps)", line)]


def test_a_complete_run_that_lost_its_summary_writes_it_again(workplace, cut, capsys):
    folder = RunFolder(workplace.folder / "resuming/lost")
    command = workplace.adapt("resuming", **KEYS, name="lost", trainer__max_steps=8)
    shutil.copytree(cut.path, folder.path)
    folder.summary.unlink()
    assert main(command) == 0
    assert figures(folder) == figures(cut)
    capsys.readouterr()
    assert main(command) == 0
    assert "is complete" in capsys.readouterr().out


def test_a_longer_run_goes_on_where_the_shorter_was_complete(workplace, cut):
    folder = RunFolder(workplace.folder / "resuming/longer")
    shutil.copytree(cut.path, folder.path)
    assert folder.record()["status"] == "complete"
    assert main(workplace.adapt("resuming", **KEYS, name="longer")) == 0
    assert same(state(RunFolder(workplace.folder / "resuming/whole")), state(folder))


@pytest.mark.slow
def test_a_time_limit_is_of_each_start(workplace):
    """Or the same command would never get any further."""
    command = workplace.adapt("limited-again", data__token_budget=90000, trainer__validate_every=1000)
    folder = RunFolder(workplace.folder / "limited-again/adapted")
    steps = []
    for _ in range(2):
        assert main([*command, "--trainer.max_time=00:00:00:01"]) == 0
        steps.append(load_checkpoint(folder.last_checkpoint)["global_step"])
    assert 0 < steps[0] < steps[1]


def test_without_a_checkpoint_any_settings_will_do(tmp_path):
    (tmp_path / "cy/checkpoints").mkdir(parents=True)
    (tmp_path / "cy/run.json").write_text(json.dumps({"configuration": "other", "status": "training"}))
    run = choose_run(tmp_path, "cy", "c", "auto", True, {"model.lr": 1.0})
    assert (run.checkpoint, run.settings) == (None, {"model.lr": 1.0})


def test_the_same_digest_is_not_asked_for_its_settings(tmp_path):
    """A run of an earlier version goes on, which wrote none."""
    (tmp_path / "cy/checkpoints").mkdir(parents=True)
    torch.save({"global_step": 3}, tmp_path / "cy/checkpoints/last.ckpt")
    (tmp_path / "cy/run.json").write_text(json.dumps({"configuration": "c", "status": "training"}))
    assert choose_run(tmp_path, "cy", "c", "auto", True, {"model.lr": 1.0}).checkpoint is not None


def test_other_settings_start_another_run_beside_one_that_is_not_complete_and_say_so(workplace, capsys):
    keys = {**KEYS, "name": "null", "data__token_budget": 1024}
    assert main(workplace.adapt("beside", **keys)) == 0
    (path,) = (workplace.folder / "beside").glob("qah-Deva-base-??????")
    record = path / "run.json"
    record.write_text(record.read_text().replace('"complete"', '"training"'))
    capsys.readouterr()
    assert main(workplace.adapt("beside", **{**keys, "model__lr": 1e-3})) == 0
    line = rf"{path} is another run, which is not complete: --model.lr was 0.003 and is 0.001; --name {path.name} with"
    assert line in capsys.readouterr().out
    assert len(list((workplace.folder / "beside").glob("qah-Deva-base-??????"))) == 2
