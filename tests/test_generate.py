"""The verb generate: what base and adapted model answer, token by token, against plain transformers."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.prompts import encode_prompt, read_prompt_file
from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.model.sampling import Sampling, choose, draw_tokens, stream_text, text_after
from tests.conftest import ARCHITECTURES, tiny_model
from tests.deltas import IDS
from tests.faults import fault, refusal, refused
from tests.test_spelled_tokens import llama_like
from tests.tokenizer_kinds import TEXTS, byte_level, dummy_prefix, unigram

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
PROMPTS = ["जिपो", "सिवा", "E četo"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_likeliest_tokens_are_those_of_transformers(architecture):
    model = tiny_model(architecture).eval()
    ids = IDS[0, :7].tolist()
    expected = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, 7), max_new_tokens=40, do_sample=False, pad_token_id=0
    )[0, 7:].tolist()
    found = list(draw_tokens(model, ids, Sampling(40), 0, ends=(2,)))
    assert found == [token for token in expected if token != 2]
    assert len(found) > 3


def test_what_is_drawn_has_the_probabilities_of_the_nucleus():
    """Against the defining enumeration: the shortest head of the sorted tokens that has top_p."""
    logits_V = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.0])
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.8), (2.0, 0.5), (1.0, 1e-9)):
        prob = torch.softmax(logits_V.double() / temperature, 0).tolist()
        nucleus, mass = [], 0.0
        for token in sorted(range(5), key=lambda token: (-prob[token], token)):
            if mass < top_p:
                nucleus.append(token)
                mass += prob[token]
        generator, draws = torch.Generator().manual_seed(0), 1000
        drawn = [choose(logits_V, Sampling(1, temperature, top_p), generator) for _ in range(draws)]
        assert set(drawn) <= set(nucleus)
        for token in nucleus:
            share = prob[token] / mass
            assert abs(drawn.count(token) / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5 + 1e-9
    assert choose(logits_V, Sampling(1, 1e-300), torch.Generator()) == 1


def test_a_seed_and_a_prompts_number_decide_what_is_drawn_and_nothing_else():
    model = tiny_model("llama").eval()

    def drawn(number, seed=0):
        torch.rand(number + seed)
        return tuple(draw_tokens(model, [5, 6], Sampling(12, 1.0, 1.0, seed), number, ends=()))

    assert drawn(0) == drawn(0)
    assert len({drawn(0), drawn(1), drawn(0, 1)}) == 3


@pytest.mark.parametrize("kind", [byte_level, lambda: byte_level("<s> $A"), dummy_prefix, unigram])
def test_a_prompt_and_the_pieces_after_it_are_the_text(kind):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=kind(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    for text in [*TEXTS[:3], TEXTS[-1]]:
        ids = encode_prompt(tokenizer, text[:200])
        assert tokenizer.eos_token_id not in ids  # some put one at the end, but there is more to come
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for cut in range(3, len(ids) - 1, 5):
            before = tokenizer.decode(ids[:cut], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if "\ufffd" not in before:
                assert before + text_after(tokenizer, ids[:cut], ids[cut:]) == whole


def test_pieces_are_whole_characters_and_together_the_answer():
    """Byte tokens of three-byte letters: a piece comes when its letter is complete."""
    tokenizer = llama_like()
    text = "ქართული ენა"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    class Says(torch.nn.Module):
        device = CPU
        generation_config = None

        def forward(self, input_ids, past_key_values=None, **others):
            place = 0 if past_key_values is None else past_key_values
            scores = torch.zeros(1, 1, len(tokenizer))
            scores[0, 0, ids[place] if place < len(ids) else tokenizer.eos_token_id] = 9.0
            return type("Out", (), {"logits": scores, "past_key_values": place + 1})()

    pieces = list(stream_text(Says(), tokenizer, [5], Sampling(99), 0))
    assert "".join(pieces) == text
    assert len(pieces) == len(text)


@pytest.mark.parametrize("is_chat", [False, True])
def test_special_tokens_spelled_in_a_prompt_stay_text(is_chat):
    tokenizer = llama_like()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content | trim }}<|eot_id|>{% endfor %}assistant:"
    )
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|eot_id|>")}
    plain, spelled = (encode_prompt(tokenizer, f"a {word} b", is_chat) for word in ("word", "</s><|eot_id|>"))
    assert [each for each in plain if each in special] == [each for each in spelled if each in special]
    assert "a </s><|eot_id|> b" in tokenizer.decode(spelled)
    if is_chat:
        turn = [{"role": "user", "content": "a word b"}]
        assert plain == tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]


@pytest.fixture
def run(workplace):
    return workplace.folder / "runs/adapted"


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_is_answered_as_transformers_answers_it(run, workplace, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n\n" for each in PROMPTS))
    out = tmp_path / "answers.jsonl"
    keys = [
        f"--prompts={tmp_path / 'prompts.jsonl'}",
        f"--out={out}",
        "--max-new-tokens=12",
        "--scale=4",
        "--trainer.accelerator=cpu",
    ]
    assert main(["generate", str(run), *keys]) == 0, capsys.readouterr().err
    said, found = capsys.readouterr().out, rows(out)
    assert [row["prompt"] for row in found] == PROMPTS
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "runs/base/model")
    for name, place, scale in (("base", workplace.folder / "runs/base/model", 1.0), ("adapted", run, 4.0)):
        model = load_adapted(place, scale=scale).model
        for row in found:
            ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
            )[0].tolist()
            assert row[name] == text_after(tokenizer, ids[0].tolist(), whole[ids.shape[1] :])
            assert f"{name:<9}{row[name]}\n" in said
    assert any(row["base"] != row["adapted"] for row in found)
    made_by = found[0]["made_by"]
    assert made_by["base"]["fingerprint"] == json.loads((run / "run.json").read_text())["base"]["fingerprint"]


def test_a_scale_of_nought_is_the_base_and_a_seed_gives_its_answers_again(run, tmp_path, capsys):
    def answered(name, *keys):
        out = tmp_path / name
        assert main(["generate", str(run), f"--prompt={PROMPTS[0]}", "--max_new_tokens=9", f"--out={out}", *keys]) == 0
        return rows(out)[0]

    same = answered("same", "--scale=0", "--temperature=1", "--top_p=0.9")
    assert same["base"] == same["adapted"]
    drawn = [answered(f"drawn{number}", "--temperature=1", f"--seed={number % 2}") for number in range(3)]
    assert drawn[0]["adapted"] == drawn[2]["adapted"] != drawn[1]["adapted"]


def test_prompts_are_typed_until_an_empty_line(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPTS[0]}\n{'x' * 500}\n{PROMPTS[1]}\n\n{PROMPTS[2]}\n"))
    assert main(["generate", str(run), "--max_new_tokens=4", f"--out={out}"]) == 0
    assert [row["prompt"] for row in rows(out)] == PROMPTS[:2]
    assert "no room for an answer in the base's context of 128" in capsys.readouterr().out


@pytest.mark.slow  # a signal at the right moment of a process that a busy machine starts late
def test_ctrl_c_keeps_what_is_answered(run, tmp_path):
    out = tmp_path / "out.jsonl"
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS * 200), encoding="utf-8")
    command = [sys.executable, str(ROOT / "main.py"), "generate", str(run), f"--prompts={tmp_path / 'prompts.txt'}"]
    process = subprocess.Popen(
        [*command, f"--out={out}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    seen = 0
    while seen < 2:
        seen += process.stdout.readline().startswith("prompt ")
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, failed = process.communicate(timeout=120)
    assert process.returncode == 130
    assert failed == ""
    kept = int(re.search(r"interrupted; (\d+) of 600 prompts are answered", said)[1])
    assert len(rows(out)) == kept > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "prompts.txt"]


@fault("generate: prompts that are none, numbers out of range, targets that exist, keys that clash")
def test_what_generate_refuses_is_one_line(workplace, run, tmp_path, capsys, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "long.txt").write_text("a\n" + "x" * 500)
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    ask = "--prompt=x"
    for keys, line in (
        ((ask, "--temperature=-1"), "--temperature is -1.0; expected 0"),
        ((ask, "--temperature=nan"), "--temperature is nan; expected"),
        ((ask, "--top_p=0"), "--top_p is 0.0; expected a share above 0"),
        ((ask, "--top_p=1.5"), "--top_p is 1.5"),
        ((ask, "--max_new_tokens=0"), "--max_new_tokens is 0; expected a whole number above zero"),
        ((ask, "--seed=-1"), "--seed is -1"),
        ((ask, "--scale=-1"), "--scale is -1"),
        ((ask, "--temprature=1"), "there is no key --temprature; did you mean 'temperature'"),
        ((ask, f"--prompts={tmp_path / 'empty.txt'}"), "--prompt and --prompts both say"),
        (("--prompt= ",), "--prompt is empty"),
        ((f"--prompts={tmp_path / 'empty.txt'}",), "has no prompts; expected one a line"),
        ((f"--prompts={tmp_path / 'bad.jsonl'}",), "line 2 of .*bad.jsonl is .*expected JSON with a text"),
        ((f"--prompts={tmp_path / 'long.txt'}",), "prompt 2 has .* no room for an answer in the base's context of 128"),
        ((f"--prompts={tmp_path / 'latin1.txt'}",), "cannot read the prompts"),
        ((f"--prompts={tmp_path / 'nowhere'}",), "cannot read the prompts"),
        (("--prompts=-",), "stdin has no prompts"),
        ((f"--sheet={tmp_path / 'sheet'}",), "a sheet needs prompts"),
        ((ask, f"--out={tmp_path / 'there'}"), "exists; choose another --out"),
        ((ask, f"--sheet={tmp_path / 'there'}"), "exists; choose another --sheet"),
        ((ask, f"--out={tmp_path / 'empty.txt'}/x"), "cannot be written: Not a directory .*; choose another --out"),
        ((ask, "--out="), "--out is without a value"),
        ((ask, f"--sheet={tmp_path / 's'}", f"--out={tmp_path / 's/out'}"), "is where the sheet goes"),
        ((ask, "--chat"), "has no chat template"),
        ((ask, "--tally=x.csv"), "--tally counts judged sheets and generates nothing; leave --prompt, --source out"),
    ):
        refused(capsys, ["generate", str(run), *keys], line)
    names = {"there", "empty.txt", "bad.jsonl", "long.txt", "latin1.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


@fault("generate: a source that is none or of a base, another base than the source's, one delta twice")
def test_sources_that_generate_cannot_answer_with_are_one_line(workplace, run, tmp_path, capsys):
    shutil.copytree(workplace.folder / "runs/base/model", tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    torch.nn.init.normal_(model.model.layers[0].mlp.gate_proj.weight)
    model.save_pretrained(tmp_path / "other")
    ask, delta, other = "--prompt=x", str(run / "delta.safetensors"), f"--base={tmp_path / 'other'}"
    for sources, line in (
        ((str(run), other), "belongs to another model"),
        ((str(tmp_path / "nowhere"),), "there is nothing at --source"),
        ((delta, other), "is not that of .*; give its own base"),
        ((delta, delta), "is there twice; name each delta once"),
        ((str(workplace.folder / "runs/base"),), "is of a base from scratch"),
    ):
        refused(capsys, ["generate", *sources, ask], line)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_prompts_of_stdin_and_of_windows_are_lines(tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_bytes("\ufeffa b\r\n\r\n c\u2028d\r\n".encode())
    assert read_prompt_file(str(tmp_path / "p.txt")) == ["a b", " c\u2028d"]
    for raw, expected in ((b'{"prompt": "a"}\n{"prompt": "b\\nc"}', ["a", "b\nc"]), (b'{a}\n"b"', ["{a}", '"b"'])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert read_prompt_file("-") == expected


def test_logits_that_are_no_numbers_are_said():
    for bad in (float("nan"), float("inf")):
        with refusal("logits are no numbers"):
            choose(torch.tensor([0.0, bad]), Sampling(), torch.Generator())
