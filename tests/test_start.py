"""Help and typos are answered before anything heavy is imported, in the words of the real parser."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from lightning_app.cli import key_table
from lightning_app.cli.command_line import VERBS
from lightning_app.cli.configurations import CONFIGS, check_text
from lightning_app.cli.keys import TABLE, Keys, help_page
from lightning_app.errors import UserError
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "datasets", "lightning", "peft", "jsonargparse", "numpy", "tokenizers")


@pytest.fixture(scope="module")
def parsers():
    return key_table.make_parsers()


@pytest.fixture(scope="module")
def parser(parsers):
    return parsers["fit"]


def test_the_table_of_keys_is_the_parsers(parsers):
    assert json.loads(TABLE.read_text(encoding="utf-8")) == key_table.make_table(parsers), "run `make keys`"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_page_is_the_parsers(verb, parsers):
    keys = Keys.of(verb)
    assert help_page(verb, keys.does, keys.shown) == parsers[verb].format_help()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--languag=cy"], ["--languag", "cy"], ["--lr", "3e-5"], ["--model.lrr=1"], ["--x"],
        ["--token_budget", "5"], ["--data.token_bud=5"], ["--trainer.acelerator", "cpu"], ["--json"], ["--zzz=1"],
        ["cy"], ["--language", "cy", "mt"], ["--language"], ["--model.lr", "--language=cy"], ["--no_json"],
        ["--language=cy", "--batch_size", "4"], ["--model.lr=1", "word", "--languag=cy"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_arguments_are_refused_in_the_parsers_words(arguments, parser):
    with pytest.raises(UserError) as early:
        Keys.of("fit").require(arguments)
    with pytest.raises(UserError) as late:
        parser.parse_args(arguments)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    "text",
    ["model:\n  lrr: 1\n", "languag: cy\n", "data.block_sizee: 3\n", "data:\n  files: {cy: x}\n  file: x\n",
     "trainer:\n  epochs: 3\n", "ckpt_path: x\n",
     "model: &a\n  lr: 1.0\ndata:\n  <<: {batch_sise: 1}\n  batch_sise: 1\n"],
)  # fmt: skip
def test_keys_of_a_configuration_are_refused_in_the_parsers_words(text, parser, tmp_path):
    with pytest.raises(UserError) as early:
        check_text(text, "configuration it.yaml", None, Keys.of("fit"))
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(UserError) as late:
        parser.parse_args(["--config", str(tmp_path / "it.yaml")])
    found = re.fullmatch(r"configuration it.yaml, line (\d+): (.*)", str(early.value))
    assert found[2] == str(late.value)
    key = re.search(r"no key ([\w.]+)", found[2])[1]
    assert key.rsplit(".", 1)[-1] in text.split("\n")[int(found[1]) - 1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.architecture.hidden_size=8", "--data.files.cy", "x", "--data.mixture.cy", "2", "--data.replay.en=1"],
        ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:01:00:00", "--trainer.callbacks.help=Timer"],
        ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x", "--trainer.strategy.init_args.x", "1"],
        ["--model.class_path=x", "--data.init_args.x=1", "--model", "x.yaml", "--data={}", "-c", "cy.yaml"],
        ["--name", "-1", "--model.lr", "-1e-4", "--name=--x", "--name", "a word", "--name", "--a word"],
        ["--print_config", "--print_config=skip_null", "--profiling.languages+", "cy", "--data.watch+=de", "--help"],
        ["--language", "cy", "--", "anything", "--else"],
        ["--model.language=cy"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_cannot_be_told_without_types_is_left_to_the_parser(arguments):
    Keys.of("fit").require(arguments)


def test_keys_of_another_lightnings_trainer_are_left_to_the_parser(monkeypatch):
    keys = Keys.of("fit")
    assert keys.kind("trainer.acelerator") is None
    monkeypatch.setattr("lightning_app.cli.keys._is_other_trainer", lambda: True)
    assert keys.kind("trainer.acelerator") == "open"
    assert keys.kind("model.acelerator") is None


@pytest.mark.parametrize("verb", VERBS)
def test_no_key_that_the_parser_has_is_refused(verb, parsers):
    keys = Keys.of(verb)
    names = [name for action in parsers[verb]._actions for name in action.option_strings if re.match("--\\w", name)]
    for name in names:
        keys.require([f"{name}=x"])
    for path in CONFIGS.rglob("*.yaml"):
        check_text(path.read_text(encoding="utf-8"), path.name, None, keys)
    everything = parsers[verb].dump(parsers[verb].get_defaults(), skip_none=False)
    check_text(everything, "all keys", None, keys)
    nested = {"trainer": {"callbacks+": [{"class_path": "x", "init_args": {"y": 1}}]}, "data": {"files": {"cy": "x"}}}
    check_text(yaml.safe_dump(nested), "open keys", None, keys)


def test_help_and_typos_import_nothing_heavy_and_cost_no_time(tmp_path):
    (tmp_path / "wrong.yaml").write_text("model:\n  lrr: 1\n")
    asked = [["--help"], [], ["fti"], ["--languag=cy"]]
    asked += [[verb, *more] for verb in VERBS for more in (["--help"], ["--languag", "cy"], ["--config", "wrong.yaml"])]
    program = f"""
import sys, time
from lightning_app.cli import main
for arguments in {asked!r}:
    assert main(arguments) in (0, 2), arguments
    loaded = set({HEAVY!r}) & set(sys.modules)
    assert not loaded, (arguments, loaded)
print(time.process_time())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 2, "seconds of processor time, for all of them together"
    assert len(done.stderr.strip().split("\n")) == 2 + 2 * len(VERBS)


def test_a_run_on_cached_text_imports_no_library_that_it_does_not_use():
    """Those of `evaluate` are for runs that translate or probe, and for plans of it."""
    unused = {"datasets", "pandas", "lm_eval", "sacrebleu", "evaluate", "sklearn"}
    files = ", ".join(f"lightning_app.cli.{name}" for name in ("fit", "measure", "plan"))
    program = f"import sys, {files}; print({unused} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr
