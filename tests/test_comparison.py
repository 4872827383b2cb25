"""Comparisons of finished runs: what is read, what is refused, and the arithmetic, against hand-made numbers."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from lightning_app.comparison.front import Front, FrontPoint, ScaledPoint, build_fronts, common_gain
from lightning_app.comparison.ranking import best_groups, estimate, group_results, rank
from lightning_app.comparison.results import read_result, require_comparable
from lightning_app.errors import UserError
from lightning_app.reports.comparison import describe_comparison
from lightning_app.run import RunFolder

BEFORE = {"cy": [2.5, 1.0], "en": [2.0, 0.8], "fr": [2.1, 0.9]}
METHODS = {"subnetwork": {}, "lora": {"rank": 8}, "random_neurons": {}}
GAIN = {"subnetwork": 0.30, "lora": 0.25, "random_neurons": 0.10}
RISE = {"subnetwork": 0.02, "lora": 0.06, "random_neurons": 0.05}


def write_run(folder, method="lora", lr=1e-4, seed=0, gain=0.2, rise=0.05, settings=None, **changes):
    """A finished run by hand: the target falls by `gain`, English rises by `rise`, French by half of that."""
    best = {"cy": [2.5 - gain, 1.0 - gain / 3], "en": [2.0 + rise, 0.8], "fr": [2.1 + rise / 2, 0.9]}
    record = {
        "status": "complete", "configuration": folder.name, "device": "cpu", "processes": 1,
        "base": {"name": "tiny", "fingerprint": "f1"}, "method": method, "lr": lr, "seed": seed,
        "language": ["cym-Latn"], "targets": {"cy": 1.0}, "settings": settings or {},
        "validation": {code: f"text of {code}" for code in BEFORE},
        "result": {
            "trained_parameters": 1_200_000, "parameters": 100_000_000, "tokens": 600_000, "steps": 600,
            "seconds": 60.0 + seed, "tokens_per_second": 10_000.0, "peak_gib": 1.5, "before": BEFORE,
            "best": {"step": 600, "losses": best}, "last": {"step": 600, "losses": best},
        },
    }  # fmt: skip
    for key, value in changes.items():
        (record["result"] if key in record["result"] else record)[key] = value
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    lines = [json.dumps({"step": step, "train/loss": 1.0}) for step in (20, 40)]
    for step in range(60, 601, 60):
        loss = 2.5 - gain * (1 - math.exp(-step / 150))
        lines.append(json.dumps({"step": step, "val/loss": loss, "val/loss/cy": loss, "val/change/en": rise}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return RunFolder(folder)


def noise(*key):
    """A number in -1..1 that depends on the key only."""
    return math.sin(sum((i + 1) * ord(c) for i, c in enumerate(str(key))))


def make_results(folder):
    """Three methods at two rates under two or three seeds; seeds shift all methods alike."""
    runs = []
    for method, settings in METHODS.items():
        for lr, factor in ((1e-4, 0.6), (1e-3, 1.0)):
            for seed in range(2 if method == "lora" else 3):
                gain = factor * GAIN[method] + 0.02 * seed + 1e-3 * noise(method, lr, seed)
                rise = factor**2 * RISE[method] + 2e-3 * noise(seed, method, lr)
                runs.append(write_run(folder / f"{method}-{lr}-{seed}", method, lr, seed, gain, rise, settings))
    return [read_result(run) for run in runs]


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)


def t_quantile(freedom):
    """97.5 % quantile of Student's t, by integrating its density and halving intervals."""
    norm = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)

    def upper_tail(x, n=4000):  # with x = sqrt(freedom) tan(angle) the density becomes a power of the cosine
        start, end = math.atan(x / math.sqrt(freedom)), math.pi / 2
        width = (end - start) / n
        return norm * math.sqrt(freedom) * width * sum(
            math.cos(start + (i + 0.5) * width) ** (freedom - 1) for i in range(n)
        )  # fmt: skip

    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle) > 0.025 else (low, middle)
    return low


def interval(values):
    return t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


# Reading


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
def test_a_damaged_record_is_one_line(tmp_path, changes):
    folder = write_run(tmp_path / "a")
    record = json.loads(folder.record_file.read_text())
    for key, value in changes.items():
        (record["result"] if key in record["result"] and key != "result" else record)[key] = value
    folder.record_file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"a/run\.json does not say what a comparison needs") as error:
        read_result(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_evaluation_is_one_line(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder.path / "evaluation.json").write_text('{"tasks": {"sib200": {"base": 1.0}}}')
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
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
def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path, changes, reason):
    ours, theirs = (read_result(write_run(tmp_path / name, **more)) for name, more in (("a", {}), ("b", changes)))
    with pytest.raises(UserError, match=reason) as error:
        require_comparable([ours, theirs])
    assert "\n" not in str(error.value)
    assert f"{ours.folder} and {theirs.folder}" in str(error.value)


def test_a_validation_text_that_only_one_run_has_is_no_reason(tmp_path):
    validation = {"cy": "text of cy", "en": "text of en"}
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, validation=validation)]
    require_comparable([read_result(run) for run in runs])


def test_no_finished_run_says_what_to_do():
    with pytest.raises(UserError, match=r"no finished run .* python main.py fit"):
        describe_comparison([])


# Arithmetic


@pytest.mark.parametrize("n", [2, 3, 5, 11, 31])
def test_the_interval_is_students(n):
    values = [noise(n, i) for i in range(n)]
    found = estimate(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.half_width == pytest.approx(interval(values), rel=5e-4)


def test_more_seeds_than_the_table_has_give_an_interval_that_is_hardly_too_wide():
    values = [noise(i) for i in range(60)]
    assert 1.0 <= estimate(values).half_width / interval(values) < 1.03


def test_the_best_rate_has_the_lowest_mean_loss(results):
    best = best_groups(group_results(results))
    assert [group.label for group in best] == ["subnetwork", "lora (rank 8)", "random_neurons"]
    for group in best:
        means = {}
        for run in results:
            means.setdefault((run.label, run.lr), []).append(run.target_loss)
        own = {lr: statistics.mean(losses) for (label, lr), losses in means.items() if label == group.label}
        assert group.lr == min(own, key=own.get)


def test_differences_are_paired_by_seed(results):
    """Seeds move every method alike by ten times what separates them within a seed: only pairing sees through that."""
    ranking = rank(best_groups(group_results(results)))
    at = {(run.label, run.seed): run.target_loss for run in results if run.lr == 1e-3}
    for other in ranking.others:
        seeds = [seed for label, seed in at if label == other.group.label]
        differences = [at[other.group.label, seed] - at["subnetwork", seed] for seed in seeds]
        assert other.estimate.n == len(seeds)
        assert other.estimate.mean == pytest.approx(statistics.mean(differences))
        assert other.estimate.half_width == pytest.approx(interval(differences), rel=5e-4)
        assert other.is_told_apart == (abs(statistics.mean(differences)) > interval(differences))
    assert {other.group.label: other.is_told_apart for other in ranking.others}["random_neurons"]


def test_without_two_shared_seeds_nothing_is_told_apart(tmp_path):
    runs = [write_run(tmp_path / f"a{seed}", "full", seed=seed, gain=0.9) for seed in (0, 1)]
    runs += [write_run(tmp_path / f"b{seed}", "ffn", seed=seed, gain=0.1) for seed in (1, 2)]
    described = describe_comparison([read_result(run) for run in runs])
    (other,) = described["ranking"]["others"]
    assert other["difference"]["n"] == 1
    assert not other["is_told_apart"]
    assert "no two seeds in common" in described["findings"][0]


def test_one_method_under_two_seeds_has_an_interval_and_no_winner(tmp_path):
    runs = [write_run(tmp_path / f"a{seed}", seed=seed, gain=0.2 + 0.01 * seed) for seed in (0, 1)]
    described = describe_comparison([read_result(run) for run in runs])
    row = described["rows"][1]
    assert row["target_loss"]["half_width"] == pytest.approx(12.706 * 0.005, rel=1e-3)
    assert row["told_apart"] == []
    assert described["ranking"] == {"best": "lora", "is_clear": False, "others": []}
    assert "lowest" not in described["findings"][0]


def test_equal_runs_are_not_told_apart(tmp_path):
    runs = [write_run(tmp_path / f"{m}{seed}", m, seed=seed) for m in ("full", "ffn") for seed in (0, 1, 2)]
    assert not rank(best_groups(group_results([read_result(run) for run in runs]))).is_clear


def test_the_front_is_straight_between_rates_and_ends_at_its_largest_gain():
    front = Front("x", tuple(FrontPoint(gain, rise, 0.0) for gain, rise in ((0.1, 0.02), (0.2, 0.10), (0.4, 0.20))))
    assert front.retention_at(0.0) == 0
    assert front.retention_at(0.05) == pytest.approx(0.01)
    assert front.retention_at(0.15) == pytest.approx(0.06)
    assert front.retention_at(0.4) == pytest.approx(0.2)
    assert front.retention_at(0.41) is None
    assert front.retention_at(-0.1) is None


def test_a_rate_that_gains_less_and_loses_more_than_another_is_not_on_the_front():
    points = ((0.1, 0.02), (0.15, 0.30), (0.2, 0.10), (-0.3, 2.0), (math.nan, math.nan))
    front = Front("x", tuple(FrontPoint(gain, rise, 0.0) for gain, rise in points))
    assert front.line == ((0.0, 0.0), (0.1, 0.02), (0.2, 0.10))


def test_the_common_gain_is_reached_by_half_of_the_methods_that_gain():
    gains = (("a", 0.4), ("b", 0.1), ("c", -0.2), ("d", 0.3), ("e", 0.001))
    fronts = [Front(name, (FrontPoint(gain, 0.1, 0.0),)) for name, gain in gains]
    assert common_gain(fronts) == (0.1, "b")
    assert common_gain(fronts[:2]) == (0.1, "b")
    assert common_gain(fronts[2:3]) is None


def test_equal_gain_equals_an_interpolation_by_hand(results):
    described = describe_comparison(results)

    def mean(method, lr, value):
        return statistics.mean(value(run) for run in results if (run.label, run.lr) == (method, lr))

    largest = {m: max(mean(m, lr, lambda run: run.gain) for lr in (1e-4, 1e-3)) for m in {r.label for r in results}}
    lowest, middle, highest = sorted(largest, key=largest.get)
    gain = largest[middle]
    assert (described["equal_gain"]["set_by"], described["equal_gain"]["gain"]) == (middle, pytest.approx(gain))
    x = [0.0, *(mean(highest, lr, lambda run: run.gain) for lr in (1e-4, 1e-3))]
    y = [0.0, *(mean(highest, lr, lambda run: run.mean_retention) for lr in (1e-4, 1e-3))]
    assert x == sorted(x)
    assert described["equal_gain"]["retention"][highest] == pytest.approx(float(np.interp(gain, x, y)))
    assert described["equal_gain"]["retention"][lowest] is None
    assert f"{lowest} does not gain as much" in " ".join(described["findings"])


def test_a_scale_curve_joins_its_methods_line(results):
    runs = [run for run in results if run.label == "subnetwork" and run.lr == 1e-3]
    curve = [ScaledPoint(s, s * 0.5, s * 0.01, {}) for s in (0.0, 0.5, 1.25)]
    shorter = [replace(point, gain=point.gain + 0.02) for point in curve[:2]]
    (front, *_) = build_fronts(group_results(results), {runs[0].folder: curve, runs[1].folder: shorter})
    assert [(p.scale, p.gain) for p in front.scaled] == [(0.0, pytest.approx(0.01)), (0.5, pytest.approx(0.26))]
    assert (pytest.approx(0.26), pytest.approx(0.005)) in front.line
    sentence = describe_comparison(results, {runs[0].folder: curve})["findings"][1]
    assert "scale curves of 1 run included for subnetwork)" in sentence
