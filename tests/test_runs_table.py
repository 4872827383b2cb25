"""The table of runs says what each run says of itself, and no folder, however damaged, keeps it from the others."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_app.cli import main
from lightning_app.comparison.results import read_result
from lightning_app.run import RunFolder, occupied
from tests.conftest import ROOT


@pytest.fixture
def root(workplace, tmp_path):
    """A folder with a finished run, one that was killed in its middle, and one in a comparison with another rate."""
    made = workplace.folder / "runs/adapted"
    for name in ("done", "killed", "compare/lora-lr0.01-seed0"):
        shutil.copytree(made, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    change(tmp_path / "killed", lambda record: record.update(status="training", result=None) or record)
    change(tmp_path / "compare/lora-lr0.01-seed0", lambda record: record | {"method": "lora", "lr": 0.01})
    config = tmp_path / "compare/lora-lr0.01-seed0/config.yaml"
    config.write_text(config.read_text().replace("lr: 0.003", "lr: 0.01").replace("method: subnetwork", "method: lora"))
    metrics = tmp_path / "killed/metrics.jsonl"
    kept = [line for line in metrics.read_text().split("\n") if line and json.loads(line)["step"] <= 30]
    metrics.write_text("\n".join([*kept, '{"step": 40, "val/lo']))
    return tmp_path


def change(folder, how):
    path = folder / "run.json"
    path.write_text(json.dumps(how(json.loads(path.read_text()))))


def listed(capsys, root, *more):
    """The rows as JSON, by name, in the order that was asked for."""
    capsys.readouterr()
    assert main(["runs", f"--run_dir={root}", "--json", *more]) == 0
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}


def shown(capsys, root, *more):
    capsys.readouterr()
    assert main(["runs", "--run_dir", str(root), *more]) == 0
    return capsys.readouterr().out


def test_a_finished_run_is_listed_with_what_it_says_of_itself(root, capsys):
    row, result = listed(capsys, root)["done"], read_result(RunFolder(root / "done"))
    assert (row["gain"], row["bits_gain"]) == (result.gain, result.bits_gain)
    assert row["gain"] > 0.01
    assert row["worst"] == {"language": "qaa-Latn", "rise": result.retention["qaa-Latn"]}
    assert (row["steps"], row["steps_in_all"], row["tokens"]) == (result.steps, result.steps, result.tokens)
    assert (row["state"], row["language"], row["method"]) == ("complete", ["qah-Deva"], "subnetwork")


def test_a_killed_run_has_the_figures_of_its_best_validation_so_far(root, capsys):
    rows = listed(capsys, root)
    row, length = rows["killed"], json.loads((root / "done/run.json").read_text())["length"]
    lines = (root / "killed/metrics.jsonl").read_text().split("\n")[:-1]
    losses = [r for r in map(json.loads, lines) if "val/loss/qah-Deva" in r]
    first, last = losses[0], losses[-1]
    assert (first["step"], last["step"]) == (0, 20)
    for key, kind in (("gain", "loss"), ("bits_gain", "bits_per_byte")):
        assert row[key] == pytest.approx(first[f"val/{kind}/qah-Deva"] - last[f"val/{kind}/qah-Deva"], abs=1e-12)
    assert row["rises"]["qaa-Latn"] == pytest.approx(last["val/loss/qaa-Latn"] - first["val/loss/qaa-Latn"], abs=1e-12)
    assert (row["state"], row["steps"], row["steps_in_all"]) == ("stopped", 30, length["steps"])
    assert row["tokens"] == round(length["tokens"] * 30 / length["steps"]) < row["tokens_in_all"] == length["tokens"]
    assert f"stopped at step 30 of {length['steps']}" in shown(capsys, root)


def test_the_best_validation_so_far_keeps_to_the_limit_of_the_run(root, capsys):
    config, losses = root / "killed/config.yaml", [(3.0, 2.0), (2.5, 2.01), (2.0, 2.5)]
    config.write_text(config.read_text().replace("max_retention_loss: null", "max_retention_loss: 0.05"))
    rows = [
        {"step": 10 * n, "val/loss/qah-Deva": target, "val/loss/qaa-Latn": watched}
        for n, (target, watched) in enumerate(losses)
    ]
    (root / "killed/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = listed(capsys, root)["killed"]
    assert (row["gain"], row["rises"]["qaa-Latn"]) == (0.5, pytest.approx(0.01))


def test_only_settings_that_differ_are_shown(root, capsys):
    rows = listed(capsys, root)
    assert {name: row["settings"] for name, row in rows.items()} == {
        "compare/lora-lr0.01-seed0": {"model.lr": 0.01},
        "done": {"model.lr": 0.003},
        "killed": {"model.lr": 0.003},
    }
    assert "lr 1e-2" in shown(capsys, root)
    shutil.rmtree(root / "compare")
    assert listed(capsys, root)["done"]["settings"] == {}
    assert "settings" not in shown(capsys, root)


def test_a_run_is_running_while_its_process_has_it(root, capsys):
    with occupied(RunFolder(root / "killed")), occupied(RunFolder(root / "profiling")):
        rows = listed(capsys, root)
        assert rows["killed"]["state"] == rows["profiling"]["state"] == "running"
        assert f"process {os.getpid()} on " in rows["killed"]["note"]
        assert rows["done"]["state"] == "complete"
        assert f"killed: running, by process {os.getpid()} on" in shown(capsys, root)
    assert listed(capsys, root)["killed"]["state"] == "stopped"


def test_a_run_whose_process_was_killed_is_not_running(root, capsys):
    code = (
        f"import time; from pathlib import Path; from lightning_app.run import RunFolder, occupied\n"
        f"with occupied(RunFolder(Path({str(root / 'killed')!r}))): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert listed(capsys, root)["killed"]["note"].startswith(f"process {process.pid} on ")
        process.kill()
    assert (root / ".killed.running").exists()
    assert listed(capsys, root)["killed"]["state"] == "stopped"
    with occupied(RunFolder(root / "killed")):  # having looked keeps nobody from going on
        pass


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b""),
        ("run.json", b"\xff\xfe"),
        ("run.json", b"[1, 2]"),
        ("run.json", b"[" * 100_000),
        ("run.json", b'{"status": "complete"}'),
        ("run.json", b'{"status": "complete", "targets": {"cy": "x"}, "result": {}}'),
        ("run.json", b'{"status": "training", "base": 7}'),
        ("run.json", b'{"status": "training", "length": {"steps": "many"}}'),
        ("config.yaml", b""),
        ("config.yaml", b"model: [\n"),
        ("config.yaml", b"\xff\xfe"),
        ("config.yaml", b"language: cy\nmodel: 3\n"),
        ("metrics.jsonl", b'\x00\xff\nnull\n{"step": null, "val/loss/qah-Deva": 1}\n{"step": 1e99, "val/loss/'),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_a_row_and_hides_no_other(name, content, root, capsys):
    before = listed(capsys, root)
    (root / "killed" / name).write_bytes(content)
    rows = listed(capsys, root)
    assert rows.keys() == before.keys()
    assert rows["done"]["gain"] == before["done"]["gain"]
    assert shown(capsys, root)
    if name != "metrics.jsonl":
        assert rows["killed"]["state"] == "damaged"
        assert "\n" not in rows["killed"]["note"]
        assert f"killed: damaged: {rows['killed']['note']}" in shown(capsys, root)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), file=st.sampled_from(["run.json", "config.yaml"]), value=ANY)
def test_whatever_a_file_holds_in_any_place_is_a_row(data, file, value, root, capsys):
    """One part of run.json or of config.yaml, at any depth, is replaced by anything."""
    for state in ("done", "killed"):
        path = root / state / file
        whole = path.read_text()
        content = part = yaml.safe_load(whole)
        while True:
            key = data.draw(st.sampled_from(sorted(part)))
            if not isinstance(part[key], dict) or not part[key] or data.draw(st.booleans()):
                break
            part = part[key]
        part[key] = value
        path.write_text(json.dumps(content))
        try:
            assert listed(capsys, root).keys() == {"done", "killed", "compare/lora-lr0.01-seed0"}
            assert shown(capsys, root)
        finally:
            path.write_text(whole)


def test_folders_that_are_no_runs_and_links_in_a_circle_are_passed_over(root, capsys):
    (root / "cache/tokens").mkdir(parents=True)
    (root / "circle").symlink_to(root / "circle")
    (root / "a file").write_text("")
    assert listed(capsys, root).keys() == {"done", "killed", "compare/lora-lr0.01-seed0"}


def test_a_run_of_a_comparison_that_failed_says_why(root, capsys):
    folder = root / "compare/ffn-lr1-seed0"
    folder.mkdir()
    shutil.copy(root / "done/config.yaml", folder / "configuration.yaml")
    (folder / "log.txt").write_text("run folder\nneuroglot: error: --model.lr is 1e9; lower it\n")
    row = listed(capsys, root)["compare/ffn-lr1-seed0"]
    assert (row["state"], row["note"], row["gain"]) == ("not trained", "--model.lr is 1e9; lower it", None)


def test_sorting_puts_the_best_first_and_what_is_not_known_last(root, capsys):
    (root / "empty/checkpoints").mkdir(parents=True)
    change(root / "compare/lora-lr0.01-seed0", better)
    by_gain = ["compare/lora-lr0.01-seed0", "done", "killed", "empty"]
    assert list(listed(capsys, root, "--sort=gain")) == by_gain
    assert list(listed(capsys, root, "--sort=lr"))[2:] == ["compare/lora-lr0.01-seed0", "empty"]
    assert list(listed(capsys, root, "--sort=model.lr"))[3] == "empty"
    assert list(listed(capsys, root, "--sort", "run")) == sorted(by_gain)
    os.utime(root / "killed/metrics.jsonl", (time.time() + 60, time.time() + 60))
    assert next(iter(listed(capsys, root))) == "killed"


def better(record):
    record["result"]["best"]["losses"]["qah-Deva"][0] -= 1
    return record


def test_an_unknown_column_is_one_line_with_the_nearest(root, capsys):
    assert main(["runs", f"--run_dir={root}", "--sort=gian"]) == 2
    assert "--sort is gian; expected a column (run, " in (line := capsys.readouterr().err)
    assert "did you mean 'gain'?" in line


def test_lines_fit_and_long_names_are_cut(root, capsys):
    shutil.copytree(root / "done", root / ("x" * 100))
    table = shown(capsys, root)
    assert max(map(len, table.split("\n"))) <= 118
    assert f"{'x' * 59}…" in table
    tables = [line for line in table.split("\n") if line.startswith("run ")]
    for name in ("done", "killed"):
        assert table.count(f"\n{name} ") == len(tables)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_no_runs_are_one_line_that_says_how_to_make_one(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = f"there are no runs under {tmp_path / name}/; make one with: python main.py fit --config cy.yaml\n"
    assert shown(capsys, tmp_path / name) == line
    assert listed(capsys, tmp_path / name) == {}


def test_the_table_needs_no_torch(root):
    code = "import sys; from lightning_app.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "runs", f"--run_dir={root}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nFalse\n")
