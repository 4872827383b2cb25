import sys

import pytest

from lightning_app.cli import CONFIGS, add_newest_run, main, resolve_configs
from lightning_app.errors import UserError
from lightning_app.languages import PAPER_LANGUAGES

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
    for arguments in (["fit"], ["validate", "--config", "cy.yaml"], ["validate", "--model.base=x", "--language=cy"]):
        assert add_newest_run(arguments) == arguments
    with pytest.raises(UserError, match="there is no run"):
        add_newest_run(["validate"])
