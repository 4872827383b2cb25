"""The doctor finds what would stop a run, says what mends it, and no finding hides another one."""

import errno
import json
import re
import shutil
import subprocess

import pytest
from packaging.requirements import Requirement

from lightning_app.cli import main
from lightning_app.doctor import examination, installation
from lightning_app.doctor.finding import ok
from tests.examined import EVERYTHING, wrong
from tests.faults import small_disk


def test_a_place_where_a_run_was_made_is_in_order(doctor, workplace, capsys):
    found = doctor()
    assert wrong(found) == {}
    assert {about for about, *_ in found} == EVERYTHING
    said = {about: said for about, _, said, _ in found}
    assert said["pool"] == "every language is counted in the atlas"
    assert "12.3k tokens wanted" in said["text"]
    assert said["flores"].endswith("qah-Deva qaa-Latn; all here")
    assert said["disk"].startswith("0B of tokens")
    capsys.readouterr()
    assert main(["doctor", *workplace.adapt()[1:]]) == 0
    assert len(capsys.readouterr().out.strip().split("\n")) == len(found)


def test_nothing_is_written(doctor, workplace, tmp_path):
    before = sorted(workplace.folder.rglob("*"))
    doctor(f"--data.cache_dir={tmp_path}/cache", run_dir=f"{tmp_path}/runs")
    assert sorted(workplace.folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def model_folder(workplace, folder, **config):
    """A base that differs from the workplace's in its configuration, without weights."""
    folder.mkdir()
    for path in (workplace.folder / "runs/base/model").glob("*.json"):
        shutil.copy(path, folder)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 512}
CUSTOM = {"model_type": "strange", "auto_map": {"AutoConfig": "configuration_strange.Strange"}}
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.mark.parametrize(
    ("config", "files", "said"),
    [
        ({}, {}, "has its configuration here, but no weights .*; download it again"),
        ({}, {"model.safetensors.index.json": INDEX, "model-1.safetensors": 0}, "lacks 1 of 2 .* model-2.safetensors"),
        ({}, {"model.safetensors.index.json": []}, "has an index of its weights that is damaged"),
        (GPT2, {}, "GPT2LMHeadModel has no gated FFN"),
        ({"model_type": "vit"}, {}, "is a vit model, which is no causal language model; check --model.base"),
        (CUSTOM, {}, "comes with code of its own, which is never run"),
        ({"model_type": "nothing"}, {}, "cannot load the configuration of"),
        ({"model_type": "llama", "hidden_size": "many"}, {}, "cannot load the configuration|cannot be built from"),
    ],
)
def test_a_base_that_cannot_be_trained_is_wrong_and_hides_nothing(config, files, said, doctor, workplace, tmp_path):
    folder = model_folder(workplace, tmp_path / "base", **config)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    found = doctor(model__base=folder)
    assert set(wrong(found)) - {"tokenizer"} == {"base"}
    assert re.search(said, wrong(found)["base"])
    assert {about for about, *_ in found} >= EVERYTHING - {"settings", "pool", "memory"}


@pytest.mark.parametrize(
    ("more", "about", "said"),
    [
        (["--language=nonsense"], "settings", "unknown language 'nonsense'"),
        (["--model.lr=-1"], "settings", "--model.lr is -1; expected a number above 0"),
        (["--data.block_size=4096"], "settings", "but the context of .* is 128 tokens; lower it"),
        (["--trainer.precision=bf16-true"], "trainer", "--trainer.precision is bf16-true; expected bf16-mixed"),
        (
            ["--trainer.num_nodes=2", "--trainer.strategy=ddp"],
            "trainer",
            "nothing starts the program on the other nodes",
        ),
        (["--language=gla-Latn"], "text", "has no Scottish Gaelic .*--data.files"),
        (["--data.watch=[fr]"], "flores", "has no French"),
        (["--run_dir={file}"], "run folder", "is no folder; set --run_dir to a folder"),
        (["--data.cache_dir={file}/x"], "token cache", "is no folder; set --data.cache_dir to a folder"),
        (["--model.base=owner/name"], "base", "cannot reach the hub .*give a local folder"),
    ],
)
def test_what_would_stop_a_run_is_wrong_and_says_what_mends_it(more, about, said, doctor, tmp_path):
    (tmp_path / "file").write_text("")
    found = doctor(*(each.format(file=tmp_path / "file") for each in more))
    assert about in wrong(found)
    assert re.search(said, wrong(found)[about])
    looked_at = {name for name, *_ in found}
    assert looked_at >= {"python", "device", "cores", "run folder", "token cache", "hub", "tokenising", "disk"}


def test_two_things_that_are_wrong_are_both_said(doctor, tmp_path):
    (tmp_path / "file").write_text("")
    found = doctor(f"--data.cache_dir={tmp_path}/file", "--data.watch=[fr]", "--model.lr=-1", "--trainer.devices=x")
    assert set(wrong(found)) >= {"token cache", "flores", "settings", "trainer"}


def test_a_run_that_does_not_fit_the_device_names_the_key_that_makes_it(doctor, monkeypatch):
    monkeypatch.setattr("lightning_app.planning.planner.peak_gib", lambda device: 0.0)
    monkeypatch.setattr("lightning_app.planning.planner.room_gib", lambda device: (0.02, "a small card"))
    assert "a small card has 0.0 GiB; --data.batch_size 1" in wrong(doctor("--data.batch_size=64"))["memory"]


@pytest.mark.parametrize(
    ("variables", "more", "about", "said"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, [], "trainer", "not started by srun.*put srun in front"),
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"},
            [], "trainer", "srun started 4 tasks, but .* 1 x .* 1 are 1 processes; ask SLURM",
        ),
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2",
             "SLURM_NNODES": "2", "SLURM_PROCID": "0"},
            [], "trainer", "srun started 4 tasks, but .* or set the keys to what there is",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"},
            ["--trainer.devices=3"], "processes", "torchrun starts 2 .*; --trainer.num_nodes 1 --trainer.devices 2",
        ),
        ({"MASTER_ADDR": "no.such.host.invalid"}, [], "address", "is no.such.host.invalid, .*name of the first node"),
    ],
)  # fmt: skip
def test_processes_that_would_not_find_each_other(variables, more, about, said, doctor, monkeypatch):
    variables = {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", **variables}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert re.search(said, wrong(doctor(*more, "--trainer.strategy=ddp"))[about])


def test_versions_outside_the_ranges_are_wrong_with_a_command_that_pip_takes(monkeypatch):
    installed = installation.metadata.version

    def version(name):
        if name == "torchmetrics":
            raise installation.metadata.PackageNotFoundError(name)
        return "3.1" if name == "lightning" else installed(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    found = {finding.said: finding.mend for finding in installation.check_packages()}
    assert list(found) == ["lightning is 3.1; expected <3,>=2.6", "torchmetrics is not installed"]
    for mend in found.values():
        assert mend.startswith("pip install '")
        assert Requirement(mend.split("'")[1]).name in ("lightning", "torchmetrics")


def test_an_installed_program_knows_its_ranges_without_the_checkout(monkeypatch, tmp_path):
    of_checkout = installation._read_project()
    monkeypatch.setattr(installation, "_PYPROJECT", tmp_path / "nothing")
    python, needed = installation._read_project()
    assert python == of_checkout[0]
    assert {each.name for each in needed} <= {each.name for each in of_checkout[1]}
    assert "torch" in {each.name for each in needed}


def test_a_file_system_without_locks_is_wrong(doctor, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuses)
    assert "has no file locks" in wrong(doctor())["token cache"]
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert "does not keep to file locks" in wrong(doctor())["run folder"]


def test_what_nobody_foresaw_is_a_warning_and_the_rest_is_looked_at(doctor, monkeypatch):
    def breaks(setup):
        yield ok("hub", "so far")
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(examination, "CHECKS", {breaks: "hub", examination.check_token: "token"})
    found = doctor()[2:]
    assert [(about, state) for about, state, *_ in found] == [("hub", "ok"), ("hub", "warning"), ("token", "ok")]
    assert "could not be looked at: ZeroDivisionError: by zero" in found[1][2]


def test_a_disk_that_is_too_small_or_cannot_be_written_to(doctor, tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        said = wrong(doctor(f"--data.cache_dir={disk}/cache"))
        assert list(said) == ["disk"]
        assert f"the disk of {disk} is too small" in said["disk"]
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        found = doctor(f"--data.cache_dir={disk}/cache", f"--run_dir={disk}")
        assert "cannot be written to (Read-only file system)" in wrong(found)["token cache"]
        assert "cannot be written to (Read-only file system)" in wrong(found)["run folder"]
