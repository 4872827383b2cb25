"""Experiment trackers, each by its own library where that is installed, without a network."""

import importlib.util
import json

import pytest

from callbacks.trackers import read_trackers
from lightning_app.cli import main
from tests.faults import refusal

KEYS = {"data__token_budget": 4096, "trainer__log_every_n_steps": 1}


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().strip().split("\n")
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    return {row["step"]: row["train/loss"] for row in rows}


def test_what_is_not_known_or_not_installed_is_refused(monkeypatch):
    assert read_trackers(None) == []
    with refusal("--track names weights; expected wandb, mlflow, trackio"):
        read_trackers("weights")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refusal("pip install mlflow"):
        read_trackers("mlflow")


def test_mlflow_has_the_same_losses_and_a_run_that_goes_on_is_the_same_one(workplace, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    arguments = [*workplace.adapt("mlflow", **KEYS), "--track=mlflow"]
    assert main([*arguments, "--trainer.max_steps=6"]) == 0
    assert main(arguments) == 0
    (run,) = mlflow.MlflowClient().search_runs([e.experiment_id for e in mlflow.MlflowClient().search_experiments()])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    expected = rows_of(workplace.folder / "mlflow/adapted")
    assert {each.step: each.value for each in history} == pytest.approx(expected)
    assert run.data.params["language"] == "qah-Deva"


def test_wandb_is_written_offline(workplace, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*workplace.adapt("wandb", **KEYS), "--track=wandb"]) == 0
    folder = workplace.folder / "wandb/adapted"
    (own,) = json.loads((folder / "trackers.json").read_text()).values()
    assert list(folder.glob(f"wandb/offline-run-*-{own}/run-{own}.wandb"))


def test_trackio_has_the_same_losses(workplace, monkeypatch, tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    assert main([*workplace.adapt("trackio", **KEYS), "--track=trackio"]) == 0
    (run,) = SQLiteStorage.get_runs("neuroglot")
    found = {row["step"]: row["train/loss"] for row in SQLiteStorage.get_logs("neuroglot", run) if "train/loss" in row}
    assert found == pytest.approx(rows_of(workplace.folder / "trackio/adapted"))
