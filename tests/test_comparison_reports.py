"""Reports of a comparison: every form of it says the same, and what is drawn says what it is."""

import csv
import io
import json
import re
import statistics
from dataclasses import replace

import pytest

from lightning_app.comparison.front import ScaledPoint
from lightning_app.comparison.ranking import estimate
from lightning_app.comparison.results import read_result
from lightning_app.reports.comparison import (
    as_json,
    describe_comparison,
    format_csv,
    format_markdown,
    format_terminal,
    write_comparison,
)
from lightning_app.reports.plots import draw_curves, draw_front
from lightning_app.run import RunFolder
from tests.runs_by_hand import interval, make_results, write_run


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)


def cells(markdown):
    """The first table of a page, by heading."""
    lines = [line for line in markdown.split("\n## ")[0].split("\n") if line.startswith("|")]
    heading, _, *rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def test_the_table_equals_an_independent_computation(results):
    base, *rows = cells(format_markdown(describe_comparison(results)))
    assert base["method"] == "unadapted base"
    assert base["target loss"] == "2.5000"
    assert [row["method"] for row in rows] == ["subnetwork", "lora (rank 8)", "random_neurons"]
    for row in rows:
        assert row["rate"] == "1e-3"
        own = [run for run in results if run.label == row["method"] and run.lr == 1e-3]
        losses = [json.loads((r.folder / "run.json").read_text())["result"]["best"]["losses"] for r in own]
        targets, english = [each["cy"][0] for each in losses], [each["en"][0] - 2.0 for each in losses]
        assert row["seeds"] == str(len(own))
        assert row["trained"] == "1.2M (1.20 %)"
        assert row["target loss"] == f"{statistics.mean(targets):.4f} ± {estimate(targets).half_width:.4f}"
        assert row["change"] == f"{statistics.mean(targets) - 2.5:+.4f}"
        assert float(row["en rise"].split()[0]) == pytest.approx(statistics.mean(english), abs=5e-5)
        assert row["en rise"].endswith("↑") == (statistics.mean(english) > interval(english))


def test_json_csv_markdown_and_terminal_agree(results):
    described = describe_comparison(results)
    data = json.loads(as_json(described))["rows"]
    table = list(csv.DictReader(io.StringIO(format_csv(described))))
    page, terminal = cells(format_markdown(described)), format_terminal(described)
    assert len(data) == len(table) == 1 + 6
    for row, line in zip(data, table, strict=True):
        assert row["label"] == line["label"]
        assert row["target_loss"]["mean"] == float(line["target_loss"])
        if row["runs"]:
            assert row["target_loss"]["half_width"] == float(line["target_loss_half_width"])
            assert row["retention"]["fr"]["mean"] == float(line["retention_fr"])
            assert row["peak_gib"] == float(line["peak_gib"])
    best = [row for row in data if row["is_best_rate"]]
    for row, line in zip(best, page, strict=True):
        assert line["method"] == row["label"]
        assert line["target loss"].split(" ")[0] == f"{row['target_loss']['mean']:.4f}"
        assert all(cell in terminal for cell in line.values())


def test_only_what_is_told_apart_is_bold(results, tmp_path):
    """A clear winner's loss is bold; once a method comes close to it, nothing's is."""
    (bold,) = [line for line in format_markdown(describe_comparison(results)).split("\n") if "**2." in line]
    assert bold.startswith("| subnetwork |")
    winner = sorted((run for run in results if run.label == "subnetwork" and run.lr == 1e-3), key=lambda run: run.seed)
    for run, shift in zip(winner, (-0.002, 0.0, 0.003), strict=True):
        close = write_run(tmp_path / f"close{run.seed}", "full", 1e-3, run.seed, run.gain + shift, 0.1)
        results = [*results, read_result(close)]
    described = describe_comparison(results)
    assert described["ranking"]["best"] == "full"
    assert "**2." not in format_markdown(described)
    assert "not told apart from it: subnetwork (by +0.0003 ±" in described["findings"][0]


def test_one_seed_gives_no_interval_and_says_so(tmp_path):
    runs = [write_run(tmp_path / method, method, gain=gain) for method, gain in (("full", 0.9), ("ffn", 0.1))]
    described = describe_comparison([read_result(run) for run in runs])
    assert "One seed gives no interval" in described["findings"][0]
    assert "±" not in format_terminal(described)
    assert all(row["told_apart"] == [] for row in described["rows"])


def test_tasks_become_columns_where_they_were_measured(results, tmp_path):
    assert "sib200" not in format_markdown(describe_comparison(results))
    measured = next(run for run in results if run.label == "subnetwork" and run.lr == 1e-3)
    (measured.folder / "evaluation.json").write_text('{"tasks": {"sib200": {"base": 40.89, "adapted": 44.94}}}')
    base, *rows = cells(format_markdown(describe_comparison([read_result(RunFolder(r.folder)) for r in results])))
    assert [base["sib200 ↑"], *(row["sib200 ↑"] for row in rows)] == ["40.89", "44.94", "", ""]


def many(tmp_path, n=14, watched=10):
    codes = ["en", "fr", "de", "es", "it", "ru", "zh", "ja", "ar", "mt"][:watched]
    runs = []
    for i in range(n):
        for seed in range(2):
            gain, rise = 0.1 + 0.02 * i, 0.02 + 0.004 * ((7 * i) % n)
            before = {"cy": [2.5, 1.0]} | {code: [2.0, 0.8] for code in codes}
            best = {"cy": [2.5 - gain - 0.01 * seed, 1.0]} | {code: [2.0 + rise, 0.8] for code in codes}
            folder = write_run(
                tmp_path / f"m{i}-{seed}", f"method_{i}_", seed=seed, gain=gain + 0.01 * seed, before=before,
                best={"step": 600, "losses": best}, validation={}, settings={"freeze_ratio": 0.5} if i % 5 == 0 else {},
            )  # fmt: skip
            runs.append(read_result(folder))
    return runs


@pytest.mark.parametrize("name", ["lora", "a_method_with_a_very_long_name_" * 3])
def test_the_terminal_has_at_most_118_characters_in_aligned_columns(tmp_path, name):
    runs = [replace(run, label=name) if run.method == "method_3_" else run for run in many(tmp_path)]
    text = format_terminal(describe_comparison(runs))
    assert max(map(len, text.split("\n"))) <= 118
    tables = [block.split("\n") for block in text.split("\n\n") if re.match("method +rate", block)]
    assert len(tables) > 1
    for heading, *rows in tables:
        assert len(rows) == 15
        end = heading.index("rate") + len("rate")
        assert all(row[end - 4 : end] == "1e-4" for row in rows[1:])


def test_a_run_that_broke_is_last_and_said(results, tmp_path):
    broken = read_result(write_run(tmp_path / "broken", "full", seed=0, best={}))
    described = describe_comparison([*results, broken])
    assert [row["label"] for row in described["rows"] if row["is_best_rate"]][-1] == "full"
    assert "full at 1e-4" in described["findings"][-1]
    assert described["ranking"] == describe_comparison(results)["ranking"]
    assert describe_comparison([broken])["findings"][0] == "No method has a finite loss on Welsh."
    assert "NaN" not in as_json(described)
    write_comparison(tmp_path / "compared", [*results, broken])


def test_unequal_text_and_devices_are_said(results):
    described = describe_comparison([replace(results[0], tokens=900_000, device="1 x other"), *results[1:]])
    assert "unequal numbers of tokens, 600k to 900k" in described["findings"][-1]
    assert "different devices: 1 x cpu and 1 x other" in described["findings"][-1]


# Figures


def test_the_comparison_is_written_whole_and_again_byte_for_byte(results, tmp_path):
    paths = write_comparison(tmp_path / "one", results)
    assert sorted(path.name for path in paths) == [
        "comparison.csv", "comparison.html", "comparison.json", "comparison.md", "curves.png", "curves.svg",
        "front.png", "front.svg",
    ]  # fmt: skip
    again = write_comparison(tmp_path / "two", results)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert sorted((tmp_path / "one").iterdir()) == sorted(paths)
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")


def test_every_method_is_named_in_both_figures(tmp_path):
    runs = many(tmp_path)
    curve = [ScaledPoint(s, s * 0.2, s * s * 0.05, {}) for s in (0.0, 0.5, 1.0)]
    for path in [*draw_front(runs, tmp_path, {runs[0].folder: curve}), *draw_curves(runs, tmp_path)]:
        if path.suffix == ".svg":
            texts = re.findall(r"<text [^>]*>([^<]*)</text>", path.read_text())
            for run in runs:
                assert any(text.startswith(run.label) for text in texts), run.label


def test_nothing_watched_leaves_out_retention_and_front(tmp_path):
    runs = [replace(run, folder=tmp_path / str(i)) for i, run in enumerate(many(tmp_path, n=2, watched=0))]
    names = [path.name for path in write_comparison(tmp_path / "compared", runs)]
    assert "front.png" not in names
    assert "curves.png" in names
    assert "mean rise" not in (tmp_path / "compared/comparison.md").read_text()
