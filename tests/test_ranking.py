"""The arithmetic of comparisons, against hand-made numbers."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from lightning_app.comparison.front import Front, FrontPoint, ScaledPoint, build_fronts, common_gain
from lightning_app.comparison.ranking import best_groups, estimate, group_results, rank
from lightning_app.comparison.results import read_result
from lightning_app.reports.comparison import describe_comparison
from tests.runs_by_hand import interval, make_results, noise, write_run


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)


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
