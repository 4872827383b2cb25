"""An adapted model out of a run, without a Trainer, against the base with the rows written in by hand."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_app.adapted import Adaptation, load_adapted
from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.files import load_checkpoint
from lightning_app.run import RunFolder

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


@pytest.fixture
def run(workplace):
    return RunFolder(workplace.folder / "runs/adapted")


def by_hand(workplace, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model", dtype=torch.float32)
    content = load_checkpoint(checkpoint)
    pairs = content["neuroglot"]["neurons"]
    for name, vectors in content["state_dict"].items():
        layer, projection = name.split(".")
        index = pairs[pairs[:, 0] == int(layer), 1]
        weight = getattr(model.model.layers[int(layer)].mlp, f"{projection}_proj").weight.data
        if projection == "down":
            weight[:, index] = vectors.T
        else:
            weight[index] = vectors
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_run_folder_gives_its_best_checkpoint_and_a_checkpoint_itself(workplace, run):
    adapted = load_adapted(run.path)
    expected = logits(by_hand(workplace, run.best_checkpoint()))
    assert torch.equal(logits(adapted.model), expected)
    assert torch.equal(logits(load_adapted(run.last_checkpoint).model), logits(by_hand(workplace, run.last_checkpoint)))
    base = load_adapted(workplace.folder / "runs/base/model")
    assert base.adaptation is None
    assert not torch.equal(logits(base.model), expected)
    assert adapted.base.fingerprint == base.base.fingerprint
    assert adapted.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert (adapted.adaptation.language, adapted.adaptation.method.name) == ("qah-Deva", "subnetwork")


def test_a_checkpoint_alone_is_enough(workplace, run, tmp_path, capsys):
    """Away from its run folder: from Python, measured by the command line, and gone on from."""
    shutil.copy(run.last_checkpoint, tmp_path / "alone.ckpt")
    assert torch.equal(
        logits(load_adapted(tmp_path / "alone.ckpt").model), logits(load_adapted(run.last_checkpoint).model)
    )
    figures = []
    for checkpoint in (run.last_checkpoint, tmp_path / "alone.ckpt"):
        assert main(["validate", "--config", str(run.config), "--ckpt_path", str(checkpoint)]) == 0
        figures.append([line for line in capsys.readouterr().out.split("\n") if line.startswith("qa")])
    assert figures[0] == figures[1]
    assert len(figures[0]) == 2
    assert main(workplace.adapt("alone", trainer__max_steps=20)) == 0
    early = RunFolder(workplace.folder / "alone/adapted")
    shutil.copy(early.last_checkpoint, tmp_path / "early.ckpt")
    assert main([*workplace.adapt("alone-on"), f"--resume={tmp_path / 'early.ckpt'}"]) == 0
    one, other = (
        load_checkpoint(workplace.folder / name / "adapted/checkpoints/last.ckpt") for name in ("runs", "alone-on")
    )
    assert all(torch.equal(weights, other["state_dict"][name]) for name, weights in one["state_dict"].items())


def test_the_adapted_model_respects_padding_on_the_left(run):
    """Training attends without masks; what leaves the program must not."""
    adapted = load_adapted(run.path)
    prompt = IDS[:1, :6]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), prompt], dim=1)
    mask = (torch.arange(10) >= 4).long().unsqueeze(0)
    alone = adapted.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
    beside = adapted.model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(alone[0, 6:], beside[0, 10:])


def test_whole_models_come_back_too(workplace):
    """A base from scratch is rebuilt from its checkpoint, with nothing but the tokenizer beside it."""
    new = RunFolder(workplace.folder / "runs/base")
    saved = AutoModelForCausalLM.from_pretrained(new.result("model"), dtype=torch.float32)
    assert torch.equal(logits(load_adapted(new.path).model), logits(saved))


def test_another_base_is_refused_and_one_that_moved_is_found(workplace, run, tmp_path):
    moved = tmp_path / "model"
    shutil.copytree(workplace.folder / "runs/base/model", moved)
    assert torch.equal(logits(load_adapted(run.path, base=str(moved)).model), logits(load_adapted(run.path).model))
    other = AutoModelForCausalLM.from_pretrained(moved)
    other.model.layers[0].mlp.gate_proj.weight.data[0, 0] += 1
    other.save_pretrained(moved)
    with pytest.raises(UserError, match="belongs to another model"):
        load_adapted(run.path, base=str(moved))


def test_a_run_without_a_best_checkpoint_and_a_foreign_file_are_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"status": "training"}))
    with pytest.raises(UserError, match="has no best checkpoint yet"):
        load_adapted(tmp_path / "run")
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="not made by Neuroglot"):
        load_adapted(tmp_path / "x.ckpt")


def test_what_a_checkpoint_says_survives_saving(run):
    content = load_checkpoint(run.last_checkpoint)
    found = Adaptation.read(content)
    again = {"state_dict": content["state_dict"]}
    found.write(again)
    assert again["neuroglot"].keys() == content["neuroglot"].keys()
    Adaptation.read(again).require_same(found)
    content["neuroglot"]["trained"] = {**content["neuroglot"]["trained"], "projections": ["down"]}
    with pytest.raises(UserError, match=r"belongs to another projections: found \['down'\], expected \['gate'"):
        Adaptation.read(content).require_same(found)
