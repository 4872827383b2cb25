"""The command line says in one line what it cannot use, and no user sees a traceback."""

import json
import os
import re
import subprocess
import sys

import pytest

from lightning_app.cli import command_line, main
from lightning_app.cli.configurations import CONFIGS, check_file
from lightning_app.cli.keys import Keys
from lightning_app.errors import UserError
from tests.conftest import ROOT
from tests.faults import fault, note


def said(capsys, arguments, code=2):
    """Runs the command line and returns the one line that it fails with."""
    capsys.readouterr()
    assert main(arguments) == code
    (line,) = [line for line in capsys.readouterr().err.strip().split("\n") if "Warning" not in line]
    assert line.startswith("neuroglot: error: ")
    note(line)
    return line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"language: cy\nname: caf\xe9\n", "is not UTF-8: byte 0xe9 in line 2; save it as UTF-8"),
        ("language: cy\n".encode("utf-16"), "is not UTF-8: byte 0xff in line 1"),
        (b"- language\n- cy\n", "is a list; expected keys with values"),
        (b"language\n", "is the text 'language'; expected keys with values"),
        (b"", "is empty; expected keys"),
        (b"# language: cy\n", "is empty; expected keys"),
        (b"language: cy\nmodel:\n  lr: 1e-4\n  base: x\n  lr: 1e-5\n", "the key model.lr twice, in lines 3 and 5"),
        (b"language: cy\ndata: {}\nlanguage: mt\n", "the key language twice, in lines 1 and 3"),
        (b"language: cy\nmodel: null\n", "gives model as null, line 2"),
        (b"language: cy\ndata:\n", "gives data as null, line 2"),
        (b"model: []\n", "gives model as a list, line 1"),
        (b"trainer: fast\n", "gives trainer as fast, line 1"),
        (b"language: [cy\n", "is no YAML, line 2"),
        (b"language: cy\n---\nlanguage: mt\n", "is no YAML, line 2"),
        (b"a: &a [*a]\nlanguage: \x07\n", "is no YAML"),
        (b"config: [a.yaml, b.yaml]\n", "inherits from a list, line 1"),
        (b"config: it.yaml\n", "inherits from itself"),
        (b"language: cy\nmodel:\n  lrr: 3\n", "line 3: there is no key model.lrr; did you mean 'model.lr'"),
        (b"model.lrr: 3\n", "line 1: there is no key model.lrr; did you mean 'model.lr'"),
        (b"resume: never\n", "line 1: there is no key resume"),
        (b"model:\n  lr: .nan\n", "--model.lr is nan; expected a finite number"),
        (b"profiling:\n  rate: .inf\n", "--profiling.rate is inf; expected a finite number"),
        (b"data:\n  mixture: {cy: 1, mt: .inf}\n", "--data.mixture is inf; expected a finite number"),
    ],
)
@fault("a configuration that reads {content}")
def test_configurations_that_cannot_be_used(content, message, capsys, tmp_path):
    (tmp_path / "it.yaml").write_bytes(content)
    line = said(capsys, ["plan", "--config", str(tmp_path / "it.yaml")])
    assert message in line
    assert "it.yaml" in line or "finite" in line


@fault("a key twice in what a configuration inherits")
def test_what_a_configuration_inherits_is_looked_at(capsys, tmp_path):
    (tmp_path / "base.yaml").write_text("language: cy\nlanguage: mt\n")
    (tmp_path / "own.yaml").write_text("config: base.yaml\n")
    assert "base.yaml has the key language twice" in said(capsys, ["plan", f"--config={tmp_path / 'own.yaml'}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--languag=cy"], r"languag.*did you mean 'language'"),
        (["--languag", "cy"], r"languag.*did you mean 'language'"),
        (["--data.token_bud=5"], "did you mean '(data.)?token_budget'"),
        (["--language"], "^neuroglot: error: --language is without a value"),
        (["--model.lr", "--language=cy"], "--model.lr is without a value"),
        (["--config"], "--config is without a value"),
        (["--run_dir="], "--run_dir is without a value"),
        (["--name", "", "--language=cy"], "--name is without a value"),
        (["--data.files.cy="], "--data.files.cy is without a value"),
        (["--language=\udcff"], r"'--language=\\udcff' is not UTF-8"),
        (["--config", "--language=cy"], "--config is without a value"),
        (["--config", "."], r"--config \. is a folder"),
        (["--config", "x" * 5000], "there is no configuration xxx"),
        (["--config", '{"name": "a", "name": "b"}'], "--config has the key name twice"),
        (["--model.lr=nan"], "--model.lr is nan; expected float"),
        (["--model.lr=1e400"], "--model.lr is inf; expected a finite number"),
        (["--model.lr=-.inf"], "--model.lr is -inf; expected a finite number"),
        (["--model=null"], "model"),
        (["cy"], "'cy' stands alone; expected a key in front of it: --KEY cy"),
        (["--lr", "3e-5"], "there is no key --lr; did you mean 'model.lr'"),
    ],
)
@fault("arguments {arguments}")
def test_arguments_that_cannot_be_used(arguments, message, capsys):
    assert re.search(message, said(capsys, ["plan", *arguments]))


def test_every_shipped_configuration_passes_the_look():
    for path in CONFIGS.rglob("*.yaml"):
        check_file(path, Keys.of("fit"))


@pytest.fixture
def broken(monkeypatch):
    """Makes every verb fail with an error."""

    def make(error):
        def verb(arguments, shows_all):
            raise error

        monkeypatch.setattr(command_line, "find_verb", lambda name: (None, verb))

    return make


@fault("an error that nobody foresaw")
def test_an_unforeseen_error_is_one_line_and_debug_shows_it_whole(capsys, broken):
    broken(RuntimeError("shapes differ:\n  (2,) and (3,)"))
    line = said(capsys, ["plan"], code=1)
    assert line == (
        "neuroglot: error: RuntimeError: shapes differ: (2,) and (3,); the same command with --debug shows where"
    )
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["plan", "--debug"])
    assert sys.argv[1:] == ["plan", "--debug"]
    broken(UserError("two\nlines"))
    assert said(capsys, ["plan"]) == "neuroglot: error: two lines"


def test_interrupts_are_not_errors(broken):
    broken(KeyboardInterrupt())
    assert main(["plan"]) == 130


@fault("an error that spells a token and a password")
def test_no_token_or_password_is_printed(capsys, monkeypatch, broken):
    token = "hf_" + "aB3" * 11
    monkeypatch.setenv("HF_TOKEN", "own-secret-token")
    message = f"token {token} and own-secret-token refused by http://me:pass@proxy:80"
    for error, code in ((UserError(message), 2), (RuntimeError(message), 1)):
        broken(error)
        line = said(capsys, ["plan"], code)
        assert "token hf_*** and *** refused by http://***@proxy:80" in line


@fault("a broken pipe that is not the terminal's")
def test_a_broken_pipe_of_another_process_is_an_error(capsys, broken):
    broken(BrokenPipeError(32, "Broken pipe"))
    assert "BrokenPipeError" in said(capsys, ["plan"], code=1)


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="an ASCII locale"),
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="a terminal that shows ASCII alone"),
    ],
)
@fault("names in another script, and {id}")
def test_names_of_any_script_are_read_and_said_in_any_locale(variables, tmp_path):
    (tmp_path / "\u0915\u093e").mkdir()
    command = [sys.executable, str(ROOT / "main.py"), "runs", f"--run_dir={tmp_path}/\u0915\u093e", "--json"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    said_as = "\u0915\u093e" if "LC_ALL" in variables else r"\u0915\u093e"
    assert f"/{said_as}/; make one with" in done.stderr.decode()
    note(done.stderr.decode())


@pytest.mark.parametrize("verb", [["--help"], ["fit", "--help"], ["fit", "--config", "cy.yaml", "--print_config"]])
@fault("a reader that leaves early: {verb}")
def test_a_reader_that_leaves_early_ends_the_program_quietly(verb):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "main.py"), *verb]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 141)
    note(f"nothing; exit code {done.returncode}")
