"""What `evaluate` is given: every kind of model and run, and bad input, each with one line and exit code 2."""

import json
import re
import shutil
from pathlib import Path

import pytest

from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.evaluation.loading import hf_evaluate
from lightning_app.files import load_checkpoint, save_checkpoint
from lightning_app.run import RunFolder
from tests.evaluation_hub import write_tasks


@pytest.fixture(scope="module")
def tasks_hub(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def run(workplace, tmp_path):
    shutil.copytree(workplace.folder / "runs/adapted", tmp_path / "run")
    return tmp_path / "run"


def keys(source, tasks_hub, *more, tasks="copied_pattern", language="mk"):
    given = [key.split("=")[0] for key in more]
    defaults = {
        "--source": source, "--tasks": tasks, "--language": language, "--data_dir": tasks_hub, "--limit": 3,
        "--data.flores": tasks_hub, "--data.cache_dir": Path(source).parent / "cache", "--trainer.accelerator": "cpu",
    }  # fmt: skip
    return ["evaluate", *(f"{key}={value}" for key, value in defaults.items() if key not in given and value), *more]


def refused(capsys, arguments, pattern):
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(pattern, error), error
    assert "\n" not in error


@pytest.mark.parametrize(("more", "reason"), [
    (["--tasks=papre"], r"--tasks has 'papre', which is neither a suite .*; did you mean 'paper'\?"),
    (["--tasks=copied_patern"], r"; did you mean 'copied_pattern'\?"),
    (["--tasks=copied_pattern:accc"], r"task copied_pattern has no metric 'accc'; it has acc, acc_norm; did you mean"),
    (["--tasks=,"], "--tasks names no task"),
    (["--limit=0"], r"--limit is 0; expected a whole number above zero"),
    (["--limit=many"], r"--limit is many; expected int"),
    (["--tasks=belebele_cloze,paper_belebele", "--language=cy"],
     r"none of the 2 tasks can be run: belebele_cloze_cy: Belebele has no Welsh \(cy\)$"),
    (["--tasks=bits_per_byte", "--language=gla-Latn"], r"none of the 1 tasks can be run: .*FLORES .* has no Scottish"),
    (["--language=klingon"], "unknown language 'klingon'"),
    (["--tasks=base", "--source=gpt-none"], r"cannot reach the hub for the model of gpt-none|there is no"),
])  # fmt: skip
def test_keys_that_cannot_be_used_are_one_line(run, tasks_hub, capsys, more, reason):
    refused(capsys, keys(run, tasks_hub, *more), reason)


def test_places_that_cannot_be_used_are_one_line(run, tasks_hub, capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(
        capsys, keys(run, tasks_hub, f"--data_dir={tmp_path / 'file'}"), r"--data_dir .*file is no folder; expected"
    )
    refused(
        capsys, keys(tmp_path / "no/such/run", tasks_hub), r"there is no run, checkpoint or model at .*; check --sou"
    )
    refused(capsys, keys(tmp_path / "no.ckpt", tasks_hub), r"there is no checkpoint at .*no\.ckpt; check --source")
    refused(
        capsys, keys(tmp_path, tasks_hub), r"is neither a run \(it has no run\.json\) nor a model \(no config\.json\)"
    )
    for path in (run / "checkpoints").glob("best-*"):
        path.unlink()
    refused(capsys, keys(run, tasks_hub), r"has no best checkpoint yet; the same fit command goes on")
    (run / "checkpoints/last.ckpt").write_bytes(b"PK")
    refused(capsys, keys(run / "checkpoints/last.ckpt", tasks_hub), r"checkpoint .* is damaged")


def test_damaged_files_are_one_line_and_stay(run, tasks_hub, capsys):
    assert main(keys(run, tasks_hub)) == 0
    kept = run / "evaluation-first3/copied_pattern.json"
    kept.write_text(kept.read_text()[:200])
    refused(capsys, keys(run, tasks_hub), r"copied_pattern\.json does not hold the scores of a task .*; delete it")
    assert len(kept.read_text()) == 200
    (run / "evaluation-first3.json").write_text('{"tasks": [')
    refused(capsys, keys(run, tasks_hub), r"evaluation-first3\.json is damaged .*; delete it and run again")


def test_other_weights_and_other_items_are_measured_again(run, tasks_hub, capsys):
    assert main(keys(run, tasks_hub)) == 0
    capsys.readouterr()
    checkpoint = RunFolder(run).best_checkpoint()
    content = load_checkpoint(checkpoint)
    content["state_dict"] = {name: weights + 0.5 for name, weights in content["state_dict"].items()}
    save_checkpoint(checkpoint, content)
    assert main(keys(run, tasks_hub)) == 0
    out = capsys.readouterr().out
    assert "base: 0 of 1 tasks to measure, 1 were measured before" in out
    assert "adapted: 1 of 1 tasks to measure\n" in out
    assert main(keys(run, tasks_hub, "--limit=4")) == 0
    assert capsys.readouterr().out.count(": 1 of 1 tasks to measure\n") == 2


def test_a_run_on_several_languages_is_measured_in_each(run, tasks_hub, capsys):
    for path in (run / "checkpoints").glob("*.ckpt"):
        content = load_checkpoint(path)
        content["neuroglot"]["language"] = "mkd-Cyrl,qah-Deva"
        save_checkpoint(path, content)
    assert main(keys(run, tasks_hub, tasks="bits_per_byte,mmlu", language=None)) == 0
    tasks = json.loads((run / "evaluation-first3.json").read_text())["tasks"]
    assert {name: task["language"] for name, task in tasks.items()} == {
        "bits_per_byte_mk": "mk", "bits_per_byte_qah-Deva": "qah-Deva", "mmlu": "en",
    }  # fmt: skip


def test_a_model_without_a_padding_token_is_measured_and_one_without_an_end_is_one_line(
    workplace, tasks_hub, tmp_path, capsys
):
    base = tmp_path / "model"
    shutil.copytree(workplace.folder / "runs/base/model", base)
    path = base / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in settings.items() if key not in ("pad_token", "bos_token")})
    )
    assert load_adapted(base).tokenizer.pad_token_id is None
    assert main(keys(base, tasks_hub, tasks="copied_pattern,mmlu")) == 0
    assert "files of the evaluation" in capsys.readouterr().out
    path.write_text(json.dumps({key: value for key, value in settings.items() if not key.endswith("_token")}))
    refused(capsys, keys(base, tasks_hub, tasks="word_list"), r"the tokenizer of .* has no EOS token")


def test_a_run_alone_says_where_its_text_and_caches_are_and_options_override_it(run, workplace, tmp_path, capsys):
    """The workplace's FLORES has the run's language; the configuration is that of a run on two processes."""
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("devices: 1", "devices: 2"))
    assert "devices: 2" in config.read_text()
    assert main(["evaluate", str(run), "--tasks", "bits_per_byte", "--limit=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"measuring base and adapted of {run}\n")
    assert "bits_per_byte_qah-Deva" in out
    assert list((workplace.folder / "cache/evaluations").glob("*/evaluation-first2/bits_per_byte_qah-Deva.json"))
    more = ["--tasks=bits_per_byte", "--limit=2", "--language=qaa-Latn", f"--data.cache_dir={tmp_path / 'other'}"]
    assert main(["evaluate", "--source", str(RunFolder(run).best_checkpoint()), *more]) == 0
    assert "bits_per_byte_qaa-Latn" in capsys.readouterr().out
    assert list((tmp_path / "other/evaluations").glob("*/evaluation-first2/bits_per_byte_qaa-Latn.json"))
    refused(capsys, ["evaluate", str(run), "--tasks=bits_per_byte", f"--data.flores={tmp_path}"], "has no qah-Deva")


def test_the_newest_run_is_measured_where_none_is_named(run, tmp_path, capsys):
    assert main(["evaluate", f"--run_dir={tmp_path}", "--tasks=copied_pattern", "--limit=2"]) == 0
    assert capsys.readouterr().out.startswith(f"measuring base and adapted of {run}\n")
    refused(capsys, ["evaluate", f"--run_dir={tmp_path / 'none'}"], "there is no run with a checkpoint under")


def test_a_configuration_that_lies_about_is_not_taken_for_that_of_a_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text("no_key: 1")
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["evaluate", "gpt-none", "--language=mk"], r"gpt-none")


def test_one_device_is_used_and_told(run, tasks_hub, capsys):
    assert main(keys(run, tasks_hub, "--trainer.devices=2")) == 0
    assert capsys.readouterr().out.startswith("evaluate runs on one device, the first of 2\n")


@pytest.mark.slow
def test_code_of_metrics_is_never_fetched(run, tasks_hub, capsys):
    refused(capsys, keys(run, tasks_hub, tasks="humaneval"), r"task humaneval runs code that the model writes")
    assert hf_evaluate.load.__module__ == "lightning_app.evaluation.loading"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "ffn"])
def test_runs_of_other_methods_are_measured_beside_the_same_base(workplace, tasks_hub, method, capsys):
    keys_of = {"model__rank": 4} if method == "lora" else {}
    assert main(workplace.adapt(f"evaluated-{method}", model__method=method, **keys_of)) == 0
    run = workplace.folder / f"evaluated-{method}/adapted"
    assert main(keys(run, tasks_hub, tasks="bits_per_byte")) == 0
    found = json.loads((run / "evaluation-first3.json").read_text())["tasks"]["bits_per_byte_mk"]
    assert found["base"] != found["adapted"]
    assert main(keys(workplace.folder / "runs/base/model", tasks_hub, tasks="bits_per_byte")) == 0
    out = capsys.readouterr().out
    assert f"{found['base']:.4f} ±" in out.rpartition("task ")[2]
