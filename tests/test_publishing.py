"""Results on the hub: what goes up and what comes down again, and what the hub or its users' names refuse."""

import re

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.export.card import Published, make_card
from lightning_app.export.neuroglot_delta import Delta
from tests.deltas import IDS
from tests.faults import fault, refused
from tests.upload_hub import TOKEN, published, taking  # noqa: F401 - a fixture

OWN, BASE = "owner/welsh", "owner/base"


@pytest.fixture
def run(workplace, taking):  # noqa: F811
    """A finished run, and its base on the hub."""
    for path in (workplace.folder / "runs/base/model").iterdir():
        taking.files[f"models/{BASE}/{path.name}"] = path.read_bytes()
    taking.files[f"models/{BASE}/README.md"] = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# base\n"
    return workplace.folder / "runs/adapted"


def push(run, tmp_path, form="delta", *keys, base=BASE, to=OWN):
    out = tmp_path / {"delta": "out.safetensors"}.get(form, "out")
    own = [f"--model.base={base}"] if base else []
    return ["export", f"--source={run}", f"--to={form}", f"--out={out}", f"--push-to={to}", *own, *keys]


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("form", ["delta", "lora", "hf"])
def test_what_is_published_loads_as_its_card_says(run, taking, tmp_path, capsys, form):  # noqa: F811
    assert main(push(run, tmp_path, form)) == 0, capsys.readouterr().err
    assert f"published: {taking.url}/{OWN}" in capsys.readouterr().out
    files = published(taking, OWN)
    (tmp_path / "down").mkdir()
    for name, content in files.items():
        (tmp_path / "down" / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(BASE)
    if form == "delta":
        Delta(tmp_path / "down/delta.safetensors").apply(base)
        model = base
        assert {"delta.safetensors", "neuroglot_delta.py", "README.md", "subnetwork.safetensors"} == files.keys()
    elif form == "lora":
        model = PeftModel.from_pretrained(base, tmp_path / "down")
    else:
        model = AutoModelForCausalLM.from_pretrained(OWN)
    torch.testing.assert_close(logits(model), logits(load_adapted(run).model), atol=1e-5, rtol=0)
    card = ModelCard(files["README.md"].decode())
    said = card.data.to_dict()
    assert said["base_model"] == BASE
    assert said["base_model_relation"] == ("finetune" if form == "hf" else "adapter")
    assert said["license"] == "apache-2.0"
    assert said["pipeline_tag"] == "text-generation"
    (bits,) = [
        r for r in card.data.eval_results if r.metric_type == "bits_per_byte" and "qah" in r.dataset_name.lower()
    ]
    best = Delta(run / "delta.safetensors").about["figures"]["after"]["qah-Deva"]
    assert bits.metric_value == pytest.approx(best[1], abs=1e-5)
    for words in ("## How to load it", "| layer | neurons |", "Intended use and limits", "licence of the base",
                  "## How it was trained", "- Learning rate: 0.003", "tokens/s"):  # fmt: skip
        assert words in card.text
    everything = b"".join(files.values())
    assert TOKEN.encode() not in everything
    assert str(run.parent.parent).encode() not in everything.replace(files.get("subnetwork.safetensors", b"-"), b"")


def test_samples_are_text_on_a_card_whatever_they_hold():
    samples = [{"prompt": "a|b\nc", "base": "<script>x</script>", "adapted": "[y](http://z) `q` **"}]
    facts = {"Seed": "0", "Method": "lora (rank *8*)"}
    about = {"language": ["cym-Latn"]}
    text = make_card(Published("owner/x", "lora", "owner/base", {}, about, None, {}, facts, samples))
    (row,) = [line for line in text.split("\n") if line.startswith("| a")]
    assert row == r"| a\|b c | &lt;script&gt;x&lt;/script&gt; | \[y\]\(http://z\) \`q\` \*\* |"
    assert r"- Method: lora \(rank \*8\*\)" in text


def test_a_published_neuron_set_atlas_and_delta_are_read_by_their_name(workplace, run, taking, tmp_path, capsys):  # noqa: F811
    taking.files["models/owner/atlas/atlas.safetensors"] = workplace.atlas.read_bytes()
    taking.files["models/owner/set/subnetwork.safetensors"] = (run / "subnetwork.safetensors").read_bytes()
    taking.files["models/owner/delta/delta.safetensors"] = (run / "delta.safetensors").read_bytes()
    base = f"--base={workplace.folder / 'runs/base/model'}"
    assert main(["apply", "hub:owner/delta", base, f"--out={tmp_path / 'named'}"]) == 0
    assert main(["apply", str(run), base, f"--out={tmp_path / 'local'}"]) == 0
    assert (tmp_path / "named/model.safetensors").read_bytes() == (tmp_path / "local/model.safetensors").read_bytes()
    asked = [base, "--prompt=x", "--max_new_tokens=3", f"--out={tmp_path / 'answers.jsonl'}"]
    assert main(["generate", "hub:owner/delta", *asked]) == 0, capsys.readouterr().err
    assert '"adapted": ["hub:owner/delta"]' in (tmp_path / "answers.jsonl").read_text()
    capsys.readouterr()
    keys = [key for key in workplace.adapt("hubbed") if not key.startswith("fit")]
    assert main(["plan", *keys, "--model.subnetwork=hub:owner/set"]) == 0
    plan = capsys.readouterr().out
    assert main(["plan", *keys, f"--model.subnetwork={run / 'subnetwork.safetensors'}"]) == 0
    counts = [re.findall(r"trained .*? neurons", each) for each in (plan, capsys.readouterr().out)]
    assert counts[0] == counts[1] != []
    profile = ["profile", *keys, "--profiling.atlas=hub:owner/atlas"]
    assert main(profile) == 0
    assert "8 of 8 languages counted before" in capsys.readouterr().out


@fault("names of the hub: that cannot be, that are not there, a revision that is not")
def test_names_that_the_hub_does_not_have(workplace, run, taking, tmp_path, capsys):  # noqa: F811
    keys = workplace.adapt("unnamed")
    for name, line in (
        ("hub:nobody", r"--model.subnetwork is hub:nobody; expected hub:OWNER/NAME"),
        ("hub:owner/no--thing", "expected hub:OWNER/NAME"),
        ("hub:owner/nothing", "there is no model owner/nothing on the hub"),
        ("hub:owner/base", "the model owner/base has no such file on the hub"),
        ("hub:owner/base@nowhere", "owner/base has no such revision"),
    ):
        refused(capsys, [*keys, f"--model.subnetwork={name}"], line)
    assert not (workplace.folder / "unnamed").exists()


@fault("a hub that does not take what is published: names, tokens, refusals, folders as bases")
def test_what_the_hub_does_not_take_is_one_line(run, taking, tmp_path, capsys, monkeypatch):  # noqa: F811
    for to in ("welsh", "owner/we lsh", "owner/a--b", "a/b/c", f"owner/{'x' * 120}"):
        refused(capsys, push(run, tmp_path, to=to), "expected OWNER/NAME, of letters, digits")
    refused(capsys, push(run, tmp_path, base=None), "the base is a folder, .*; publish it, and give its name")
    for kind in ("create", "preupload", "batch", "commit"):
        taking.refusals = {kind: 403}
        line = refused(capsys, push(run, tmp_path), r"does not let your token write to owner/welsh \(403\)")
        assert TOKEN not in line
        assert not published(taking, OWN)
        (tmp_path / "out.safetensors").unlink()
    taking.refusals = {}
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrongwrong" * 3)
    refused(capsys, push(run, tmp_path), r"token .*\(401\)")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    refused(capsys, push(run, tmp_path), "nobody is logged in, .*hf auth login")
    assert not list(tmp_path.glob("out*"))


@fault("publishing without a network")
def test_without_a_network_nothing_is_written(run, taking, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(capsys, push(run, tmp_path), "cannot reach owner/welsh, because HF_HUB_OFFLINE is set")
    assert not list(tmp_path.glob("out*"))
