"""Bases that are none, or that do not fit together: one line, and nothing of theirs is run."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults import fault, refused


class Opens:
    """What a malicious file would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def change(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


def shorten_vocabulary(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder, vocab_size=300)


def put_pickle(folder):
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": Opens(folder / "ran")}, file)


def put_object(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Opens(folder / "ran")}, folder / "pytorch_model.bin")


CASES = {
    "has fewer tokens than its tokenizer": (shorten_vocabulary, "tokenizer .* 512 .* 300|300 .*512"),
    "is no causal language model": (lambda f: change(f, model_type="vit", architectures=["ViTModel"]), "no causal"),
    "is of an unknown kind": (lambda f: change(f, model_type="klingon"), "klingon"),
    "is quantised, without the library": (
        lambda f: change(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised|gptq"),
    "has weights that are a pickle": (put_pickle, "cannot load the model"),
    "has weights with a Python object": (put_object, "cannot load the model"),
    "has no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot load the model"),
    "has a config.json that is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot load"),
    "has a config.json that is a list": (lambda f: (f / "config.json").write_text("[]"), "cannot load"),
    "has layers in words": (lambda f: change(f, num_hidden_layers="three"), "cannot"),
    "has a tokenizer that is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
    "has no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "cannot load the tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@fault("a base that {case}")
def test_a_base_that_cannot_be_used_is_one_line(case, workplace, capsys, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(workplace.folder / "runs/base/model", folder)
    spoil, pattern = CASES[case]
    spoil(folder)
    refused(capsys, workplace.adapt("odd", model__base=folder), pattern)
    assert not (folder / "ran").exists()
    assert not (workplace.folder / "odd/adapted").exists()
