"""The verb apply: deltas onto a base on the disk and off again, whole or not at all, refusals in a line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app.cli import main
from lightning_app.evaluation.contestants import find_contest
from lightning_app.export.applied import Applied
from lightning_app.export.stack import Stack
from lightning_app.export.whole import new_whole
from lightning_app.files import size_on_disk
from tests.deltas import saved
from tests.faults import fault, refusal, refused, small_disk
from tests.test_stacking import CODES, contents, two_deltas

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place(tmp_path):
    """A folder with a base and three deltas, of which each two in a row share some neurons."""
    _, deltas = two_deltas(tmp_path, count=3)
    for code, delta in zip(CODES, deltas, strict=True):
        delta.save(tmp_path / f"{code[:3]}.safetensors")
    return tmp_path


def apply(place, *keys, base="base", out="out"):
    words = [str(place / key) if key.endswith(".safetensors") else key for key in keys]
    return ["apply", *words, f"--base={place / base}", f"--out={place / out}"]


def test_two_languages_go_on_and_come_off_by_name_or_by_file(place, capsys):
    assert main(apply(place, "cym.safetensors", "mlt.safetensors", "--policy=ordered", out="both")) == 0
    said = capsys.readouterr().out
    assert "cym-Latn, mlt-Latn               6        50.0 %         50.0 %" in said
    assert "with cym-Latn, mlt-Latn: " in said
    assert main(apply(place, "cym.safetensors", out="welsh")) == 0
    assert main(apply(place, "--remove", "mt", base="both", out="by-name")) == 0
    assert main(apply(place, "mlt.safetensors", "--remove", base="both", out="by-file")) == 0
    assert main(apply(place, "--remove", base="both", out="bare")) == 0
    assert contents(place / "by-name") == contents(place / "by-file") == contents(place / "welsh")
    assert contents(place / "bare") == contents(place / "base") != contents(place / "welsh")


def test_the_size_is_as_predicted(place, capsys):
    assert main(apply(place, "cym.safetensors", "gla.safetensors")) == 0
    there = Applied.find(str(place / "out"), None)
    predicted = there.files.bytes + there.record_bytes(there.stack)
    headers = 12_000
    beside = sum(path.stat().st_size for path in (place / "base").iterdir() if path.suffix != ".safetensors")
    assert abs(size_on_disk(place / "out") - beside - predicted) < headers


def test_a_folder_with_languages_is_a_model_to_evaluate(place):
    assert main(apply(place, "cym.safetensors", "gla.safetensors")) == 0
    contest = find_contest(place / "out", place / "cache", "cpu")
    assert [each.name for each in contest.contestants] == ["base"]


@fault("apply: nothing to do, another base, shared neurons, a target that exists, what is not on it, a damaged delta")
def test_what_apply_refuses_is_one_line_and_leaves_nothing(place, capsys):
    saved(place / "other", seed=5)
    (place / "there").mkdir()
    (place / "file").write_text("")
    whole = (place / "mlt.safetensors").read_bytes()
    (place / "cut.safetensors").write_bytes(whole[:-100])
    (place / "flipped.safetensors").write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    before = sorted(path.name for path in place.iterdir())
    two = ("cym.safetensors", "mlt.safetensors")
    for arguments, line in (
        (apply(place), "nothing to apply: name deltas"),
        (["apply", str(place / "cym.safetensors")], "give --out FOLDER"),
        (apply(place, *two), "cym-Latn and mlt-Latn share 6 neurons; say what becomes of shared ones by --policy"),
        (apply(place, *two, "--policy=weighted", "--weights=1"), "--weights has 1 numbers for 2 deltas"),
        (apply(place, *two, "--policy=weighted", "--weights=a,b"), "--weights is a,b; expected a number for each"),
        (apply(place, *two, "--policy=mean"), "policy"),
        (apply(place, two[0], two[0]), "cym-Latn is there twice"),
        (apply(place, two[0], base="other"), "is not that of .*, which the delta was made for"),
        (apply(place, two[0], base="nowhere"), "nowhere"),
        (apply(place, two[0], out="there"), "exists; choose another --out"),
        (apply(place, two[0], out="file/out"), "cannot be written: .*; choose another --out"),
        (apply(place, "cut.safetensors"), "damaged or cut short"),
        (apply(place, "flipped.safetensors"), "its vectors are not what was written"),
        (apply(place, "nothing.safetensors"), "there is no delta at .*nothing"),
        (apply(place, "--remove"), "does not say that deltas are on it"),
    ):
        refused(capsys, arguments, line)
    assert main(apply(place, two[0], out="on")) == 0
    refused(capsys, apply(place, "--remove", "mt", base="on"), "mt is not on .*; on it are cym-Latn")
    refused(capsys, apply(place, two[0], base="on"), "cym-Latn is there twice")
    assert sorted(path.name for path in place.iterdir()) == sorted([*before, "on"])


@fault("a disk too small for what apply writes")
def test_a_small_disk_is_refused_before_anything_is_written(place, tmp_path):
    with small_disk(tmp_path / "small", "64k") as disk, refusal("takes .*B and .*B are free there; free some space"):
        Applied.find(str(place / "base"), None).write(Stack(()), disk / "out")


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own, others = tmp_path / f".out.{ended.pid}.partial", tmp_path / f".out.{os.getppid()}.partial"
    for each in (own, others):
        each.mkdir()
    with new_whole(tmp_path / "out") as temporary:
        temporary.mkdir()
    assert not own.exists()
    assert others.exists()
    assert (tmp_path / "out").is_dir()


_KILLED = """
import os, signal, sys
from lightning_app.export import whole
from lightning_app.model import base_files
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "before": whole.sync = kill
else: base_files._patch_file = kill
from lightning_app.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_kill_leaves_nothing_and_the_same_command_writes_the_whole(place, moment):
    command = apply(place, "cym.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", _KILLED, moment, *command], env=environment, check=False, cwd=ROOT)
    assert ran.returncode == -signal.SIGKILL
    assert not (place / "out").exists()
    assert main(command) == 0
    Applied.find(str(place / "out"), None).require_unchanged()
    assert not list(place.glob(".*"))
