import json
import sys

import pytest

from lightning_app.cli import main
from lightning_app.cli.measure import _add_newest_run
from lightning_app.cli.parser import CONFIGS, resolve_configs
from lightning_app.errors import UserError
from lightning_app.languages import PAPER_LANGUAGES
from lightning_app.run import choose_run

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


def test_a_file_in_the_working_directory_wins_over_the_shipped_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert resolve_configs(["fit", "--config", "cy.yaml"])[2] == str(CONFIGS / "cy.yaml")
    assert "cy.yaml" in capsys.readouterr().out
    (tmp_path / "cy.yaml").write_text("language: cy\n")
    assert resolve_configs(["fit", "--config", "cy.yaml"]) == ["fit", "--config", "cy.yaml"]


def test_only_a_measuring_verb_that_names_no_model_takes_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--config", "cy.yaml"], ["--model.base=x", "--language=cy"], ["--ckpt_path=x.ckpt"], ["--help"]):
        assert _add_newest_run(arguments) == arguments
    with pytest.raises(UserError, match="there is no run"):
        _add_newest_run([])


def a_run_with_a_checkpoint(folder, configuration="c"):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.ckpt").touch()
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
