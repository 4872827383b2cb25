"""Places, names and surroundings that cannot be used, or that should make no difference."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_app.cli import main
from lightning_app.run import RunFolder
from tests.conftest import ROOT
from tests.faults import fault, note, refused, small_disk


def put_file(folder):
    (folder / "place").write_text("a file")


def put_loop(folder):
    (folder / "place").symlink_to(folder / "place")


PLACES = {"a file": put_file, "a loop of links": put_loop}


@pytest.mark.parametrize("key", ["run_dir", "data.cache_dir"])
@pytest.mark.parametrize("what", PLACES)
@fault("--{key} is {what}")
def test_a_place_that_is_no_folder(key, what, workplace, capsys, tmp_path):
    PLACES[what](tmp_path)
    refused(capsys, [*workplace.adapt("places"), f"--{key}={tmp_path / 'place'}"], "place")


@pytest.mark.parametrize(
    ("key", "value"), [("name", "n" * 300), ("run_dir", "r" * 300), ("data.cache_dir", "c" * 300), ("name", "a\x00b")]
)
@fault("--{key}={value}")
def test_a_name_that_no_file_can_have(key, value, workplace, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, [*workplace.adapt("places"), f"--{key}={value}"], key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["run_dir", "data.cache_dir"])
@fault("--{key} is on a read-only disk")
def test_a_read_only_place(key, workplace, capsys, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        refused(capsys, [*workplace.adapt("places"), f"--{key}={disk / 'new'}"], "disk/new.*(read-only|written)")


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        (["--trainer.num_nodes=2"], "nodes"),
        (["--data.block_size=1"], "block_size is 1; expected 2 or more"),
        (["--profiling.block_size=0"], "block_size is 0"),
        (["--data.batch_size=1000000000000"], "one step takes|batch_size"),
        (["--data.num_workers=-1"], "num_workers is -1"),
        (["--seed_everything=-1"], "seed"),
        (["--trainer.log_every_n_steps=0"], "log_every_n_steps is 0"),
        (['--profiling.languages=["qaa-Latn","qaa-Latn"]'], "twice"),
        (["--profiling.languages=[]"], "languages"),
        (["--model.method=full", "--model.subnetwork=x"], "trains no neurons"),
        (
            ["--data.files.qaf-Grek=x.txt", "--profiling.languages=[qaa-Latn,qah-Deva]"],
            "neither trained on nor profiled",
        ),
        (["--data.watch=[qaa-Latn,qaa-Latn]"], "twice|loss"),
    ],
)
@fault("{keys}")
def test_settings_that_make_no_run_are_one_line(keys, pattern, workplace, capsys):
    refused(capsys, [*workplace.adapt("none"), *keys], pattern)
    assert not (workplace.folder / "none/adapted").exists()


def write_flores(folder, sentences):
    for split in ("dev", "devtest"):
        for code in ("qah_Deva", "qaa_Latn"):
            path = folder / split / f"{code}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"text": pa.array(sentences, pa.string())}), path)


@pytest.mark.parametrize("sentences", [[], ["", "  "]], ids=["no rows", "empty sentences"])
@fault("FLORES with {id}")
def test_flores_without_text(sentences, workplace, capsys, tmp_path):
    write_flores(tmp_path, sentences)
    keys = [*workplace.adapt("empty"), f"--data.flores={tmp_path}", "--data.flores_overlap=keep"]
    refused(capsys, keys, "FLORES|sentence")
    assert not (workplace.folder / "empty/adapted").exists()


@fault("a damaged metrics.jsonl", lost="the lines that are damaged")
def test_a_damaged_metrics_file_does_not_keep_a_run_from_going_on(workplace, capsys):
    keys = {"data__token_budget": 4096, "trainer__validate_every": 4}
    assert main(workplace.adapt("damaged", **keys, trainer__max_steps=8)) == 0
    folder = RunFolder(workplace.folder / "damaged/adapted")
    rows = folder.metrics.read_bytes()
    folder.metrics.write_bytes(b"\xff\xfe{" + rows[:40] + b'\n[1]\n"a"\n{"step": "x"}\n{}\n' + rows)
    capsys.readouterr()
    assert main(workplace.adapt("damaged", **keys)) == 0
    note(next(line for line in capsys.readouterr().out.split("\n") if "going on from" in line))
    assert json.loads(folder.metrics.read_text().split("\n")[0])["step"] == 0


@pytest.mark.parametrize("locale", ["C", "POSIX"])
@fault("a locale {locale}, which is not UTF-8, and text of other scripts")
def test_a_locale_that_is_not_utf_8(locale, workplace, tmp_path):
    run = RunFolder(workplace.folder / "runs/adapted")
    (tmp_path / "prompts.txt").write_text("जिपो\n", encoding="utf-8")
    plain = {"LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    verb = ["predict", "--config", str(run.config), "--ckpt_path", str(run.best_checkpoint())]
    command = [sys.executable, str(ROOT / "main.py"), *verb, f"--data.prompts={tmp_path / 'prompts.txt'}"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **plain}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert json.loads(run.predictions.read_text(encoding="utf-8").split("\n")[0])["prompt"] == "जिपो"
    note(done.stdout.decode("utf-8", errors="replace").strip().split("\n")[-1])
