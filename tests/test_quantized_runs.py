"""Runs on a base in 4 bits: resumed, measured, exported onto the base as it is, and what is refused."""

import importlib.util
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightning_app.adapted import Adaptation, as_trained, load_adapted
from lightning_app.cli import main
from lightning_app.export.source import Source
from lightning_app.export.switching import BaseAndAdapted
from lightning_app.files import load_checkpoint
from lightning_app.model.ffn import PROJECTIONS, find_gated_ffns
from lightning_app.model.quantized import quantization_of
from lightning_app.run import RunFolder
from tests.deltas import logits
from tests.faults import fault, refused
from tests.test_runs import TARGET, oracle_loss

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(workplace):
    """A run on a base in 4 bits."""
    arguments = workplace.adapt(run_dir="quantized", model__quantization="nf4", trainer__validate_every=8)
    assert main(arguments) == 0
    return RunFolder(workplace.folder / "quantized/adapted")


def test_a_run_that_was_cut_short_goes_on_and_ends_bit_equal(workplace, run):
    changes = {"model__quantization": "nf4", "trainer__validate_every": 8, "profiling__atlas": _atlas(workplace, run)}
    assert main(workplace.adapt(run_dir="cut", trainer__max_steps=11, **changes)) == 0
    cut = RunFolder(workplace.folder / "cut/adapted").last_checkpoint
    assert main(workplace.adapt(run_dir="cut", name="again", resume=cut, **changes)) == 0
    folder = RunFolder(workplace.folder / "cut/again")
    whole, again = (load_checkpoint(each.last_checkpoint)["state_dict"] for each in (run, folder))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def _atlas(workplace, run):
    """The atlas that the run counted on the quantised base; that of the base as it is has another name."""
    found = set(workplace.atlas.parent.glob("*.safetensors")) - {workplace.atlas}
    return max(found, key=lambda path: path.stat().st_mtime)


def test_what_was_trained_on_four_bits_is_measured_there_and_fits_the_base_as_it_is(workplace, run, tmp_path, capsys):
    best = run.record()["result"]["best"]["losses"]["qah-Deva"][0]
    assert main(["validate", f"--run_dir={run.path.parent}", *workplace.keys("quantized")[1:]]) == 0
    assert f"{best:.4f}" in capsys.readouterr().out
    quantized, plain = load_adapted(run.path, load=as_trained(CPU)), load_adapted(run.path)
    assert (quantization_of(quantized.model), quantization_of(plain.model)) == ("nf4", None)
    changed = load_checkpoint(run.best_checkpoint())["state_dict"]
    adaptation = Adaptation.read(load_checkpoint(run.best_checkpoint()))
    for ffn in find_gated_ffns(plain.model):
        for projection in PROJECTIONS:
            if f"{ffn.layer}.{projection}" in changed:
                rows = ffn.read(projection, adaptation.neurons.by_layer[ffn.layer])
                assert torch.equal(rows, changed[f"{ffn.layer}.{projection}"])
    out = tmp_path / "whole"
    assert main(["export", f"--source={run.path}", "--to=hf", f"--out={out}", *workplace.keys()[1:]]) == 0
    said = capsys.readouterr().out
    both = re.search(r"qah-Deva: (\S+) \((\S+)\) nats per token on the base as it is, (\S+) \((\S+)\) in nf4", said)
    assert both
    base = load_adapted(run.path, scale=0.0)
    here = [oracle_loss(workplace, each.model, each.tokenizer, TARGET) for each in (base, plain)]
    there = run.record()["result"]["before"]["qah-Deva"][0], best
    for found, (before, after) in ((both.groups()[:2], here), (both.groups()[2:], there)):
        assert [float(each) for each in found] == pytest.approx([after, after - before], abs=2e-4)
    noise = 2 * run.record()["result"]["best"]["errors"]["qah-Deva"]
    assert ("warning: qah-Deva is worse on the base as it is" in said) == (here[1] - here[0] > noise)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(loaded), logits(plain.model))
    assert load_file(next(out.glob("*.safetensors")))


def test_base_and_adapted_model_are_one_loaded_model(run):
    two = BaseAndAdapted.load(Source.find([run.best_checkpoint()], None, None), CPU)
    base, adapted = (load_adapted(run.path, scale=scale, load=as_trained(CPU)).model for scale in (0.0, 1.0))
    assert not torch.equal(logits(base), logits(adapted))
    for is_adapted in (False, True, False):
        two.switch(is_adapted)
        assert torch.equal(logits(two.model), logits(adapted if is_adapted else base))


@fault("a checkpoint of a quantised base goes on with one that is not, or quantised otherwise")
def test_a_run_does_not_go_on_with_another_quantisation(workplace, run, capsys):
    for other, found in (("null", "expected none"), ("int8", "expected int8")):
        changes = {"model__quantization": other, "name": "other", "resume": run.last_checkpoint}
        line = f"another quantization: found nf4, {found}|model.quantization was nf4 and is"
        refused(capsys, workplace.adapt(run_dir="otherwise", **changes), line)


@fault("a quantised base with a method that trains its matrices, a new one, one in fp64, one quantised already")
def test_what_cannot_be_quantised_is_one_line(workplace, tmp_path, capsys):
    for changes, line in (
        ({"model__method": "full"}, "too few bits to train them, as --model.method full does"),
        ({"model__engine": "masked"}, "--model.method subnetwork does here; .*--model.engine packed"),
        ({"model__method": "ssu", "model__source_language": "qaa-Latn"}, "--model.method ssu does"),
    ):
        refused(capsys, workplace.adapt(run_dir="none", model__quantization="nf4", **changes), line)
    compiled = workplace.adapt(run_dir="none", model__quantization="int8", model__compile="true")
    refused(capsys, compiled, "cannot trace the products of --model.quantization int8")
    double = [*workplace.adapt(run_dir="none", model__quantization="nf4"), "--trainer.precision=64-true"]
    refused(capsys, double, "computes in float32 or bfloat16, not in float64")
    refused(
        capsys, [*workplace.new_base(), "--model.quantization=nf4", "--name=none"], "a new base is trained as a whole"
    )
    refused(capsys, workplace.adapt(run_dir="none", model__quantization="nf3"), "nf3")
    shutil.copytree(workplace.folder / "runs/base/model", tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    changes = {"model__base": tmp_path / "base"}
    refused(capsys, workplace.adapt(run_dir="none", **changes), "quantised already.*--model.quantization nf4")
    assert not (workplace.folder / "none").exists()


@fault("quantisation without its library")
def test_a_library_that_is_missing_is_one_line(workplace, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name))
    refused(capsys, workplace.adapt(run_dir="none", model__quantization="nf4"), "needs bitsandbytes.*pip install")


@fault("plan for a card that is none")
def test_a_card_is_planned_for_with_the_cheapest_keys_first(workplace, capsys):
    refused(capsys, ["plan", *workplace.adapt()[1:], "--for=large"], "--for is 'large'; expected the memory of a card")
    assert main(["plan", *workplace.adapt()[1:], "--for=12gb", "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert (memory["device"], memory["advice"]) == ("a GPU of 12 GB", None)
