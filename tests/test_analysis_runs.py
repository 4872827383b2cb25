"""What several runs say together, and whole analyses of runs by the command line."""

import json
import math
import random
import statistics

import pytest

from lightning_app.analysis.finished_runs import ablate, correlate, follow_resources, follow_size
from lightning_app.cli import main as command_line
from lightning_app.comparison.results import read_result
from lightning_app.languages import find_language
from lightning_app.reports.analysis.every import show
from tests.runs_by_hand import BEFORE, write_run


def read(*folders):
    return [read_result(each) for each in folders]


def ablation_runs(folder):
    kinds = {"all": None, "gate": ["gate"], "gate-down": ["gate", "down"]}
    gains = {"all": 0.3, "gate": 0.1, "gate-down": 0.2}
    return [
        write_run(folder / f"{kind}{seed}", "subnetwork", seed=seed, gain=gains[kind] + 0.01 * seed,
                  settings={"projections": own} if own else {})
        for kind, own in kinds.items() for seed in range(2)
    ]  # fmt: skip


def test_projections_left_out_are_compared_within_one_setting(tmp_path):
    others = [write_run(tmp_path / "other", "subnetwork", lr=1e-3, gain=0.9), write_run(tmp_path / "lora")]
    runs = read(*ablation_runs(tmp_path / "a"), *others)
    (found,) = ablate(runs)
    assert list(found.outcomes) == ["gate", "gate+down", "gate+up+down"]
    assert [each.runs for each in found.outcomes.values()] == [2, 2, 2]
    assert [each.gain for each in found.outcomes.values()] == pytest.approx([0.105, 0.205, 0.305])
    assert found.outcomes["gate"].lowest == pytest.approx(0.10)
    assert found.outcomes["gate"].highest == pytest.approx(0.11)
    assert "gate+down" in show(found).table
    assert follow_size(runs) == follow_resources(runs) == []


def test_more_text_is_followed_in_order_of_tokens(tmp_path):
    runs = [write_run(tmp_path / str(tokens), "subnetwork", gain=tokens / 1e6, tokens=tokens)
            for tokens in (400_000, 100_000, 200_000)]  # fmt: skip
    (found,) = follow_size(read(*runs))
    assert list(found.outcomes) == [100_000, 200_000, 400_000]
    assert [each.gain for each in found.outcomes.values()] == pytest.approx([0.1, 0.2, 0.4])
    assert "400k" in show(found).table
    assert ablate(read(*runs)) == []
    more = [write_run(tmp_path / f"gate{n}", "subnetwork", seed=n, tokens=n, settings={"projections": ["gate"]})
            for n in (100_000, 7)]  # fmt: skip
    (ablation,) = ablate(read(*runs, *more))
    assert {kind: each.runs for kind, each in ablation.outcomes.items()} == {"gate": 1, "gate+up+down": 1}


def language_runs(folder, codes):
    runs = []
    for place, code in enumerate(codes):
        before = {code: [2.5, 1.0], "en": BEFORE["en"]}
        best = {code: [2.5 - 0.1 * place, 1.0 - 0.05 * place], "en": [2.1, 0.8]}
        runs.append(write_run(folder / code, "subnetwork", targets={code: 1.0}, validation=dict.fromkeys(before, "t"),
                              before=before, best={"step": 600, "losses": best}))  # fmt: skip
    return runs


def test_gains_are_set_beside_the_resources_of_their_languages(tmp_path):
    codes = ["cy", "ka", "mt", "sk", "lt"]
    (found,) = follow_resources(read(*language_runs(tmp_path, codes)))
    assert [each.short for each in found.languages] == codes
    assert [each.bits_gain for each in found.outcomes] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    # Maltese has no CC-100; of the others the richest, Slovak, comes before Lithuanian.
    sizes = [find_language(code).cc100_gib for code in codes]
    assert sizes[2] is None
    assert found.by_size.languages == 4
    assert found.by_size.rho == pytest.approx(0.8)
    assert found.by_class.languages == 5
    assert "Welsh" in show(found).table
    assert follow_resources(read(*language_runs(tmp_path / "two", codes[:2]))) == []


def plain_spearman(xs, ys):
    def ranks(values):
        return [statistics.fmean(i for i, v in enumerate(sorted(values)) if v == value) for value in values]

    return statistics.correlation(ranks(xs), ranks(ys))


@pytest.mark.parametrize("seed", range(4))
def test_correlation_is_spearmans_and_its_p_that_of_random_orders(seed):
    draw = random.Random(seed)
    xs = [draw.choice([1, 2, 3, 4, 5]) for _ in range(9)]
    ys = [x + draw.gauss(0, 2) for x in xs]
    found = correlate(xs, ys)
    assert found.rho == pytest.approx(plain_spearman(xs, ys))
    shuffled = [plain_spearman(xs, draw.sample(ys, len(ys))) for _ in range(1000)]
    expected = statistics.fmean(abs(rho) >= abs(found.rho) - 1e-9 for rho in shuffled)
    assert found.p == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 1000))


def test_several_runs_are_analysed_together_and_runs_alike_in_everything_are_one_line(tmp_path, capsys):
    runs = [*ablation_runs(tmp_path), *language_runs(tmp_path, ["mt", "ka", "sk"])]
    assert command_line(["analyze", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    for name in ("ablation-cy", "resources"):
        for suffix in ("json", "png", "svg"):
            assert (tmp_path / "analysis" / f"{name}.{suffix}").stat().st_size > 500
    assert "gate+up+down" in said
    assert "rank correlation" in said
    assert command_line(["analyze", str(runs[0]), str(runs[1]), "--what", "runs"]) == 2
    assert "do not differ in one thing alone" in capsys.readouterr().err


def test_a_run_and_its_delta_say_the_same_of_what_training_did(workplace, tmp_path, capsys):
    run = workplace.folder / "runs/adapted"
    keys = [
        "--sentences=8",
        "--against=qaa-Latn,qag-Geor",
        f"--data.flores={workplace.hub}",
        "--trainer.accelerator=cpu",
    ]
    names = ["change", "tokens-qah-Deva", "alignment-qah-Deva"]
    for source, out in ((run, "run"), (run / "delta.safetensors", "delta")):
        command = ["analyze", str(source), "--what=change,tokens,alignment", f"--out={tmp_path / out}", *keys]
        assert command_line(command) == 0
    said = capsys.readouterr().out
    for name in names:
        of_run, of_delta = (json.loads((tmp_path / out / f"{name}.json").read_text()) for out in ("run", "delta"))
        assert of_run == of_delta
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 500
    alignment = json.loads((tmp_path / "run/alignment-qah-Deva.json").read_text())["result"]
    assert alignment["others"] == ["qaa-Latn", "qag-Geor"]
    assert alignment["sentences"] == 8
    assert alignment["before"] != alignment["after"]
    assert "layer" in said
    assert command_line(["analyze", str(run), "--what=causal", f"--out={tmp_path / 'causal'}", *keys]) == 0
    causal = json.loads((tmp_path / "causal/causal.json").read_text())["result"]
    assert len(causal["rises"]) == len(causal["switched"])
    assert "qah-Deva" in causal["switched"]
