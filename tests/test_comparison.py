"""Comparisons of finished runs: what is read, and what is refused."""

import json

import pytest

from lightning_app.comparison.results import read_result, require_comparable
from lightning_app.reports.comparison import describe_comparison
from lightning_app.run import RunFolder
from tests.faults import fault, refusal
from tests.runs_by_hand import write_run


def test_a_run_says_what_it_gained_and_kept(tmp_path):
    result = read_result(write_run(tmp_path / "a", gain=0.3, rise=0.1, settings={"rank": 8}))
    assert result.label == "lora (rank 8)"
    assert result.gain == pytest.approx(0.3)
    assert result.bits_gain == pytest.approx(0.1)
    assert result.retention == pytest.approx({"en": 0.1, "fr": 0.05})
    assert result.mean_retention == pytest.approx(0.075)
    assert result.share_of_model == pytest.approx(0.012)
    assert result.curve[0] == (0, 2.5)
    assert [step for step, _ in result.curve] == list(range(0, 601, 60))


def test_targets_count_by_share(tmp_path):
    losses = {"cy": [2.0, 0.5], "fr": [1.9, 0.8], "en": [2.2, 0.8]}
    folder = write_run(tmp_path / "a", targets={"cy": 3.0, "fr": 1.0}, best={"step": 1, "losses": losses})
    result = read_result(folder)
    assert result.gain == pytest.approx(0.75 * 0.5 + 0.25 * 0.2)
    assert result.watched == ("en",)


def test_an_unfinished_run_is_no_result(tmp_path):
    assert read_result(write_run(tmp_path / "a", status="training")) is None
    assert read_result(RunFolder(tmp_path / "nothing")) is None


def test_a_damaged_line_of_metrics_is_skipped_and_a_later_line_counts(tmp_path):
    folder = write_run(tmp_path / "a")
    before = read_result(folder).curve
    with folder.metrics.open("a") as file:
        file.write('{"step": 120, "val/loss/cy": 1.25}\n{"step": 180, "val/lo\n[1, 2]\nnull\n{"val/loss/cy": 3.0}\n')
    assert dict(read_result(folder).curve) == {**dict(before), 120: 1.25}


@pytest.mark.parametrize(
    "changes",
    [
        {"result": None}, {"best": {"losses": {"cy": [1.0, 1.0]}}}, {"lr": "fast"}, {"targets": {"ka": 1.0}},
        {"targets": {}}, {"before": {"cy": [1.0]}}, {"base": "tiny"},
    ],
)  # fmt: skip
@fault("a run.json that was changed by hand: {changes}")
def test_a_damaged_record_is_one_line(tmp_path, changes):
    folder = write_run(tmp_path / "a")
    record = json.loads(folder.record_file.read_text())
    for key, value in changes.items():
        (record["result"] if key in record["result"] and key != "result" else record)[key] = value
    folder.record_file.write_text(json.dumps(record))
    with refusal(r"a/run\.json does not say what a comparison needs"):
        read_result(folder)


@fault("an evaluation.json that was changed by hand")
def test_a_damaged_evaluation_is_one_line(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder.path / "evaluation.json").write_text('{"tasks": {"sib200": {"base": 1.0, "adapted": "high"}}}')
    with refusal(r"evaluation\.json is damaged"):
        read_result(folder)


# Refusals


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"base": {"name": "other", "fingerprint": "f2"}}, "different bases, tiny .f1. and other .f2."),
        ({"validation": {"cy": "another", "en": "text of en"}}, "different texts of cy"),
        ({"targets": {"fr": 1.0}}, "different targets, cy and fr"),
        ({"targets": {"cy": 0.5, "fr": 0.5}}, "different targets, cy and cy 0.5 fr 0.5"),
        ({"before": {"cy": [2.5, 1.0], "en": [2.0, 0.8]},
          "best": {"losses": {"cy": [2.0, 1.0], "en": [2.0, 0.8]}}}, "watch different languages, en fr and en"),
        ({}, "are both lora at 0.0001 with seed 0"),
    ],
)  # fmt: skip
@fault("runs that cannot be compared: {changes}")
def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path, changes, reason):
    ours, theirs = (read_result(write_run(tmp_path / name, **more)) for name, more in (("a", {}), ("b", changes)))
    with refusal(reason) as error:
        require_comparable([ours, theirs])
    assert f"{ours.folder} and {theirs.folder}" in str(error.value)


def test_a_validation_text_that_only_one_run_has_is_no_reason(tmp_path):
    validation = {"cy": "text of cy", "en": "text of en"}
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, validation=validation)]
    require_comparable([read_result(run) for run in runs])


@fault("a comparison without a finished run")
def test_no_finished_run_says_what_to_do():
    with refusal(r"no finished run .* python main.py fit"):
        describe_comparison([])
