"""Configurations, verbs, help, and which run folder a command means."""

import inspect
import json
import re
import sys
from dataclasses import MISSING, asdict, fields, is_dataclass

import pytest
import torch
import yaml

from datamodules.glotcc import GlotCCDataModule
from lightning_app.cli import main
from lightning_app.cli.command_line import VERBS, find_verb
from lightning_app.cli.configurations import CONFIGS, resolve_configs
from lightning_app.cli.keys import Keys
from lightning_app.cli.lightning_cli import NeuroglotCLI
from lightning_app.cli.measure import _add_newest_run
from lightning_app.errors import UserError
from lightning_app.languages import PAPER_LANGUAGES
from lightning_app.methods.registry import METHODS
from lightning_app.profiling.settings import ProfilingSettings
from lightning_app.resuming import choose_run
from lightning_app.training.module import SparseSubnetModule
from lightning_app.training.trainer import NeuroglotTrainer

FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_every_shipped_configuration_parses(verb, file, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--config", file, "--print_config"])
    assert stop.value.code == 0
    assert "token_budget" in capsys.readouterr().out


def test_every_language_of_the_paper_has_a_configuration():
    assert {f"{code}.yaml" for code in PAPER_LANGUAGES} <= set(FILES)


LINKED = {
    "model": {"language", "seed"},
    "data": {"language", "seed", "base", "base_revision"},
    "profiling": set(),
    "trainer": set(),
}


def defaults_of(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def signatures():
    """The keys of every group with the defaults of their classes."""
    methods = {
        field.name: field.default
        for method in METHODS.values()
        for field in fields(method)
        if field.default is not MISSING
    }
    return {
        "model": {**defaults_of(SparseSubnetModule), **methods},
        "data": defaults_of(GlotCCDataModule),
        "profiling": defaults_of(ProfilingSettings),
        "trainer": defaults_of(NeuroglotTrainer),
    }


def plain(value):
    if is_dataclass(value):
        return {key: plain(each) for key, each in asdict(value).items()}
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("group", LINKED)
def test_default_yaml_has_every_key_with_the_default_of_its_class(group):
    written = yaml.safe_load((CONFIGS / "default.yaml").read_text())[group]
    declared = {key: plain(value) for key, value in signatures()[group].items() if key not in LINKED[group]}
    assert written == declared


def test_every_key_of_default_yaml_has_a_comment():
    lines = (CONFIGS / "default.yaml").read_text().split("\n")
    keys = [line for line in lines if re.match(r"\s*\w+: +\S", line)]
    assert len(keys) > 45
    assert [line for line in keys if not re.search(r"\S\s+# \S", line)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_the_keys_of_the_verb_on_a_screen_and_all_of_them_when_asked(verb, capsys):
    assert main([verb, "--help"]) == 0
    short = capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help_all"])
    assert stop.value.code == 0
    every = capsys.readouterr().out
    assert len(short) < 3500
    assert all(len(line) <= 120 for line in short.split("\n"))
    for key in find_verb(verb)[0].keys:
        assert re.search(rf"^  --{re.escape(key)} +\S", short, re.MULTILINE), key
        assert f"--{key}" in every
    assert "--help_all" in short
    assert len(every) > 15_000


def test_fit_help_opens_with_the_ten_keys_that_people_turn():
    assert len(find_verb("fit")[0].keys) == 10


def test_languages_are_replaced_or_appended(capsys):
    for key, name, default in (("data.watch", "watch", ["en", "es", "ru", "zh"]),
                               ("profiling.languages", "languages", list(PAPER_LANGUAGES))):  # fmt: skip
        for argument, expected in ((f"--{key}+=de", [*default, "de"]), (f"--{key}=[de]", ["de"])):
            with pytest.raises(SystemExit):
                main(["fit", argument, "--print_config"])
            assert yaml.safe_load(capsys.readouterr().out)[key.split(".")[0]][name] == expected


def test_without_a_verb_all_of_them_are_named(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\S", overview, re.MULTILINE) for verb in VERBS)
    assert main([]) == 2
    assert main(["fti"]) == 2
    assert "there is no verb 'fti'; expected one of fit, validate" in capsys.readouterr().err


def test_verbs_that_are_not_lightnings_make_no_trainer(workplace, monkeypatch, capsys):
    monkeypatch.setattr(NeuroglotCLI, "make_trainer", lambda *args: pytest.fail("a Trainer was made"))
    keys = [key for key in workplace.adapt()[1:] if not key.startswith("--name")]
    atlas = workplace.atlas
    assert main(["plan", *keys]) == 0
    assert main(["profile", *keys]) == 0
    assert main(["subnetwork", f"--atlas={atlas}"]) == 0
    assert "8 of 8 languages counted before" in capsys.readouterr().out


def test_a_file_in_the_working_directory_wins_over_the_shipped_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keys = Keys.of("fit")
    assert resolve_configs(["fit", "--config", "cy.yaml"], keys)[2] == str(CONFIGS / "cy.yaml")
    assert "cy.yaml" in capsys.readouterr().out
    (tmp_path / "cy.yaml").write_text("language: cy\n")
    assert resolve_configs(["fit", "--config", "cy.yaml"], keys) == ["fit", "--config", "cy.yaml"]


def test_only_a_measuring_verb_that_names_no_model_takes_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--config", "cy.yaml"], ["--model.base=x", "--language=cy"], ["--ckpt_path=x.ckpt"], ["--help"]):
        assert _add_newest_run(arguments) == arguments
    with pytest.raises(UserError, match="there is no run"):
        _add_newest_run([])


def a_run_with_a_checkpoint(folder, configuration="c"):
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"global_step": 1}, folder / "checkpoints/last.ckpt")
    (folder / "run.json").write_text(json.dumps({"configuration": configuration, "status": "training"}))


def test_under_srun_never_means_a_folder_of_the_job_that_a_requeue_goes_on_in(tmp_path, monkeypatch):
    a_run_with_a_checkpoint(tmp_path / "cy")
    for key, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(key, value)
    run = choose_run(tmp_path, "cy", "c", "never", is_named=True)
    assert (run.folder.path, run.checkpoint) == (tmp_path / "cy-job7", None)
    a_run_with_a_checkpoint(run.folder.path)
    assert choose_run(tmp_path, "cy", "c", "never", is_named=True).checkpoint is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = choose_run(tmp_path, "cy", "c", "never", is_named=True)
    assert (again.folder.path, again.checkpoint) == (run.folder.path, run.folder.last_checkpoint)


def test_a_folder_with_another_configuration_is_refused_only_once_it_holds_work(tmp_path):
    (tmp_path / "cy").mkdir()
    (tmp_path / "cy/run.json").write_text(json.dumps({"configuration": "other", "status": "training"}))
    assert choose_run(tmp_path, "cy", "c", "auto", is_named=True).checkpoint is None
    a_run_with_a_checkpoint(tmp_path / "mk", "other")
    with pytest.raises(UserError, match="another configuration"):
        choose_run(tmp_path, "mk", "c", "auto", is_named=True)
