"""The verb `evaluate` from the command line to the table: all suites, killed and gone on with, then compared."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.files import load_checkpoint
from lightning_app.run import RunFolder
from tests.conftest import ROOT
from tests.evaluation_hub import ROWS, with_longer_context, write_tasks


@pytest.fixture(scope="module")
def tasks_hub(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def run(workplace, tmp_path_factory):
    return with_longer_context(workplace, tmp_path_factory.mktemp("longer"))


def keys(run, tasks_hub, cache, tasks, *more):
    return [
        "evaluate", f"--source={run}", f"--tasks={tasks}", "--language=mk", f"--data_dir={tasks_hub}",
        f"--data.flores={tasks_hub}", f"--data.cache_dir={cache}", "--trainer.accelerator=cpu", *more,
    ]  # fmt: skip


def evaluation(run, name="evaluation"):
    return json.loads((Path(run) / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def evaluated(run, tasks_hub, tmp_path_factory):
    """All three suites, and what was printed."""
    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, str(ROOT / "main.py"), *keys(run, tasks_hub, cache, "base,skills,paper", "--limit=2")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done, cache


def test_every_task_of_the_three_suites_is_measured_for_base_and_adapted_model(evaluated, run):
    tasks = evaluation(run, "evaluation-first2")["tasks"]
    assert len(tasks) == 25
    assert not [name for name, task in tasks.items() if "left_out" in task]
    for task in tasks.values():
        assert (task["items"], task["limit"]) == (2, 2)
        assert {"base", "adapted"} <= task.keys()
        assert task["changes"].keys() == task["metrics"]["base"].keys() == task["metrics"]["adapted"].keys()
    assert tasks["bits_per_byte_mk"]["higher_is_better"] is False
    assert tasks["multiblimp_mk"]["metric"] == "acc"
    paper = tasks["paper_opus_from_en_mk"]["metrics"]["adapted"]
    assert "tok:13a" in paper["bleu"]["signature"]
    assert "nw:2" in paper["chrf++"]["signature"]
    assert "eff:yes" in paper["sentence_bleu"]["signature"]
    assert "spbleu" in paper or tasks["paper_opus_from_en_mk"]["metrics_left_out"]["spbleu"]


def test_what_it_prints_is_for_people(evaluated):
    done, _ = evaluated
    assert done.stderr == ""
    expected = (
        r"measuring base and adapted|(base|adapted): 25 of 25 tasks|  \w+: [\w+]+ \S+ over 2 items in |\w+, \w+: \d+ of"
        r"|task +items|\w+ +2 +[\w+]+|  +(bleu|chrf\+\+|spbleu) +\d|Only the first 2|SIB-200's texts|FLORES, or of each"
        r"|files of the evaluation|$"
    )
    # Why spBLEU is missing differs from machine to machine, and so does where the sentence wraps.
    lines = re.sub(r"Without spbleu .*?(?=\n(?:\n|files))", "", done.stdout, flags=re.DOTALL).split("\n")
    assert not [line for line in lines if not re.match(expected, line)]
    assert max(len(line) for line in lines if not line.startswith(("measuring", "files"))) <= 118
    assert len(re.findall(r"about .* left in all", done.stdout)) == 2 * 25 - 1
    assert done.stdout.count("sentences of FLORES") == 1


def test_nothing_is_measured_twice_and_other_tasks_join_the_file(evaluated, run, tasks_hub, capsys):
    _, cache = evaluated
    files = sorted([*(run / "evaluation-first2").iterdir(), *cache.glob("evaluations/*/*/*.json")])
    assert len(files) == 2 * 25
    stamps, before = [path.stat().st_mtime_ns for path in files], evaluation(run, "evaluation-first2")
    assert main(keys(run, tasks_hub, cache, "base,paper_piqa", "--limit=2")) == 0
    assert "adapted: 0 of 6 tasks to measure, 6 were measured before" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in files] == stamps
    assert evaluation(run, "evaluation-first2") == before
    assert main(keys(run, tasks_hub, cache, "copied_pattern:acc_norm", "--limit=2")) == 0
    after = evaluation(run, "evaluation-first2")["tasks"]
    assert after.pop("copied_pattern")["metric"] == "acc_norm"
    assert after == {name: task for name, task in before["tasks"].items() if name != "copied_pattern"}


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_with_the_same_results(run, tasks_hub, tmp_path):
    """The process is killed once its second task is written; whole files are left, and no task is measured again."""
    copy, cache = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation*"))
    tasks = "bits_per_byte,sib200_cloze,copied_pattern,paper_sib200"
    arguments = keys(copy, tasks_hub, cache, tasks)
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in process.stdout:
        if line.startswith("  sib200_cloze_mk"):
            process.kill()
            break
    process.wait()
    written = {path: path.read_bytes() for path in cache.glob("evaluations/*/*/*.json")}
    assert 2 <= len(written) <= 4
    assert all(json.loads(content)["answers"] for content in written.values())
    assert main(arguments) == 0
    assert {path: path.read_bytes() for path in written} == written
    there, again = evaluation(copy), tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("evaluation*"))
    assert (
        main(keys(again, tasks_hub, tmp_path / "other", "bits_per_byte,sib200_cloze,copied_pattern,paper_sib200")) == 0
    )
    assert evaluation(again) == there


@pytest.mark.slow
def test_a_comparison_shows_what_two_evaluated_runs_can_do_and_which_way_is_better(run, tasks_hub, tmp_path, capsys):
    runs = []
    for seed in (0, 1):
        copy = tmp_path / f"seed{seed}"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation*"))
        record = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps({**record, "seed": seed}))
        assert main(keys(copy, tasks_hub, tmp_path / "cache", "bits_per_byte,copied_pattern")) == 0
        runs.append(copy)
    tasks = evaluation(runs[0])["tasks"]
    assert tasks["bits_per_byte_mk"]["items"] > ROWS
    capsys.readouterr()
    assert main(["compare", f"--runs=[{runs[0]},{runs[1]}]", f"--run_dir={tmp_path}", "--name=both"]) == 0
    table = capsys.readouterr().out
    assert "bits_per_byte_mk ↓" in table
    assert "copied_pattern ↑" in table
    assert f"{tasks['bits_per_byte_mk']['base']:.4f}" in table
    assert f"{100 * tasks['copied_pattern']['adapted']:.2f} ± 0.00" in table
    other = evaluation(runs[1])
    other["tasks"]["bits_per_byte_mk"]["asked"] = "other items"
    (runs[1] / "evaluation.json").write_text(json.dumps(other))
    capsys.readouterr()
    assert main(["compare", f"--runs=[{runs[0]},{runs[1]}]", f"--run_dir={tmp_path}", "--name=both"]) == 2
    assert re.search(r"not measured alike in task bits_per_byte_mk", capsys.readouterr().err)


def test_an_evaluation_of_another_checkpoint_is_not_compared(run, tasks_hub, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation*"))
    assert main(keys(RunFolder(copy).last_checkpoint, tasks_hub, tmp_path, "copied_pattern")) == 0
    assert evaluation(copy)["checkpoint"] == "last.ckpt"
    assert main(["compare", "--runs", str(copy), f"--run_dir={tmp_path}", "--name=one"]) == 2
    assert re.search(r"is of checkpoint last\.ckpt, and the run's best is best-", capsys.readouterr().err)


def test_a_checkpoint_alone_a_plain_base_and_a_base_from_scratch_are_measured(
    run, workplace, tasks_hub, tmp_path, capsys
):
    alone = tmp_path / "alone.ckpt"
    shutil.copy(RunFolder(run).best_checkpoint(), alone)
    base = load_checkpoint(alone)["neuroglot"]["base"]["name"]
    figures = {}
    for source in (alone, Path(base), workplace.folder / "runs/base"):
        assert main(keys(source, tasks_hub, tmp_path / "cache", "bits_per_byte,copied_pattern", "--limit=6")) == 0
        out = capsys.readouterr().out
        figures[source] = re.search(r"bits_per_byte_mk +6 +bits_per_byte +(.*)", out)[1].split("  ")[0]
        path = re.search(r"files of the evaluation: (.*evaluation-first6\.json)", out)[1]
        assert json.loads(Path(path).read_text())["tasks"]["bits_per_byte_mk"]["items"] == 6
    assert (tmp_path / "alone/evaluation-first6.json").is_file()
    assert figures[alone] == figures[Path(base)] == figures[workplace.folder / "runs/base"]


@pytest.mark.slow
def test_real_data_sets_are_measured_offline_and_those_that_are_not_there_are_named(run, shared, tmp_path, capsys):
    """The three suites on the shared folder; as many items as show that nothing of them breaks."""
    hub, cache = shared / "data/hub", tmp_path / "cache"
    flores = hub / "openlanguagedata/flores_plus"
    arguments = keys(run, hub, cache, "base,skills,paper", "--limit=10", f"--data.flores={flores}")
    assert main(arguments) == 0
    out, tasks = capsys.readouterr().out, evaluation(run, "evaluation-first10")["tasks"]
    left_out = {name: task["left_out"] for name, task in tasks.items() if "left_out" in task}
    assert left_out.keys() == {
        "multiblimp_mk", "belebele_cloze_mk", "global_piqa_cloze_mk", "paper_belebele_mk", "paper_opus_to_en_mk",
        "paper_opus_from_en_mk",
    }  # fmt: skip
    assert all(re.match("cannot reach .*, because HF_HUB_OFFLINE is set; ", why) for why in left_out.values())
    assert len(tasks) - len(left_out) == 19
    for name in tasks.keys() - left_out.keys():
        assert tasks[name]["items"] == 10
        assert re.search(rf"^{name} +10 ", out, re.MULTILINE)
    sentences = pq.read_table(flores / "devtest/mkd_Cyrl.parquet")["text"].to_pylist()[:10]
    adapted = load_adapted(run)
    bits = 0.0
    for text in sentences:
        ids = [adapted.tokenizer.bos_token_id, *adapted.tokenizer(text).input_ids]
        with torch.no_grad():
            log_p = adapted.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        bits -= sum(log_p[place - 1, ids[place]].item() for place in range(1, len(ids))) / math.log(2)
    expected = bits / sum(len(text.encode()) for text in sentences)
    assert tasks["bits_per_byte_mk"]["adapted"] == pytest.approx(expected, rel=1e-4)
