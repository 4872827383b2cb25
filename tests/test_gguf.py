"""A gguf file of a trained model, in llama.cpp itself: the same greedy text as transformers gives.

Needs llama.cpp's convert_hf_to_gguf.py in $NEUROGLOT_CONVERTER, the Python of an environment with llama-cpp-python in
$NEUROGLOT_LLAMA_CPP_PYTHON, and the package gguf here.
"""

import json
import os
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from lightning_app.cli import main
from lightning_app.export.gguf import _outtype
from lightning_app.model.base_files import BaseFiles
from lightning_app.neurons.selection import random_neurons
from tests.deltas import delta_of, saved
from tests.faults import refusal
from tests.tokenizer_kinds import TEXTS

CONVERTER, LLAMA_CPP = (os.environ.get(f"NEUROGLOT_{name}", "") for name in ("CONVERTER", "LLAMA_CPP_PYTHON"))
PROMPTS = [" ".join(text.split()[:6]) for text in TEXTS[-30:]]
NEW_TOKENS = 24
ASK = """
import json, sys
from llama_cpp import Llama
path, prompts, new_tokens = json.load(sys.stdin)
llama = Llama(path, n_ctx=256, n_threads=1, verbose=False)
asked = [llama(prompt, max_tokens=new_tokens, temperature=0.0, repeat_penalty=1.0) for prompt in prompts]
print(json.dumps([each["choices"][0]["text"] for each in asked]))
"""


@pytest.mark.parametrize(("dtype", "name"), [("float32", "f32"), ("bfloat16", "bf16"), ("float16", "f16")])
def test_a_gguf_file_keeps_the_bases_dtype(tmp_path, dtype, name):
    assert _outtype(saved(tmp_path, dtype=getattr(torch, dtype)).folder) == name


def test_a_dtype_that_gguf_lacks_is_refused(tmp_path):
    with refusal("weights of F64; a gguf file is made of F32, F16 or BF16"):
        _outtype(saved(tmp_path, dtype=torch.float64).folder)


@pytest.fixture
def base(tmp_path):
    """A small Llama with a tokenizer of sentencepiece, trained for a minute on invented text."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path / "base"
    folder.mkdir()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "tokenizer"), vocab_size=600, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)  # as llama.cpp does where nothing is said
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = torch.cat([torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(200):
        places = torch.randint(0, len(ids) - 65, (8, 1), generator=torch.Generator().manual_seed(step))
        batch = torch.nn.functional.pad(ids[places + torch.arange(64)], (1, 0), value=1)  # BOS at the head alone
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(
    not (CONVERTER and LLAMA_CPP), reason="no llama.cpp: $NEUROGLOT_CONVERTER, $NEUROGLOT_LLAMA_CPP_PYTHON"
)
def test_llama_cpp_says_what_transformers_says(base, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    delta, _ = delta_of(BaseFiles(base), random_neurons(40, 3, 96, seed=0), size=3e-2)
    delta.save(tmp_path / "delta.safetensors")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    source, prompts = tmp_path / "delta.safetensors", f"--data.prompts={tmp_path / 'prompts.txt'}"
    out = tmp_path / "out.gguf"
    keys = ["--to=gguf", f"--out={out}", f"--converter={CONVERTER}", prompts]
    assert main(["export", f"--source={source}", *keys]) == 0, capsys.readouterr().err
    assert main(["export", f"--source={source}", "--to=hf", f"--out={tmp_path / 'hf'}", prompts]) == 0
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(out).tensors}
    assert {kinds[name] for name in kinds if "ffn_" in name} == {"F32"}
    ran = subprocess.run(
        [LLAMA_CPP, "-c", ASK], input=json.dumps([str(out), PROMPTS, NEW_TOKENS]), capture_output=True, text=True,
        check=True, env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    said = json.loads(ran.stdout)
    tokenizer, model, of_base = (
        AutoTokenizer.from_pretrained(base),
        *(AutoModelForCausalLM.from_pretrained(place) for place in (tmp_path / "hf", base)),
    )

    def continued(model, prompt):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        before, after = (tokenizer.decode(each, skip_special_tokens=True) for each in (ids[0], whole[0]))
        return after[len(before) :]

    expected = [continued(model, prompt) for prompt in PROMPTS]
    assert expected != [continued(of_base, prompt) for prompt in PROMPTS]
    assert [text for text, other in zip(said, expected, strict=True) if text != other] == []
