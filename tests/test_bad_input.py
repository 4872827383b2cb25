"""Bad input: one clear line, exit code 2, no traceback, nothing half-written."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from lightning_app.identity import ModelIdentity
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.training.launching import require_precision
from tests.conftest import ROOT
from tests.faults import fault, note, refusal, refused, small_disk


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("--language=welch", "unknown language 'welch'; did you mean 'Welsh'"),
        ("--data.token_budget=0", "token_budget is 0; expected a whole number above zero"),
        ("--data.token_budgett=5", "data.token_budgett.*did you mean '(data.)?token_budget'"),
        ("--model.lr=fast", "model.lr is fast; expected float"),
        ("--model.engine=pact", "model.engine.*packed"),
        ("--model.method=ful", "model.method is ful; expected one of .*; did you mean 'full'"),
        ("--model.projections=[]", "projections is empty; expected some of gate, up and down"),
        ("--model.base=null", "no base model: give --model.base"),
        ("--model.rank=8", "model.rank"),
        ("--trainer.precision=bf16-true", "bf16-true; expected bf16-mixed, 32-true, 64-true"),
        ("--profiling.rate=0", "profiling.rate is 0"),
        ("--profiling.stop_when_stable=2", "stop_when_stable is 2.0; expected an overlap above 0, up to 1"),
        ("--data.source=./nowhere", "neither a folder"),
        ("--data.watch=[cy]", "FLORES .* has no Welsh"),
        ("--language=cym-Latn", "has no Welsh"),
        ("--model.base=./nowhere", "cannot load .* of ./nowhere"),
        ("--data.block_size=1000000", "block_size is 1000000, but the context of .* is 128"),
        ("--data.batch_size=100000", "one step takes 100000"),
        ("--resume=sometimes", "expected never, auto, or the path of a checkpoint"),
        ("--model.subnetwork=nowhere.safetensors", "there is no subnetwork at nowhere.safetensors"),
        ("--data.files.qah-Deva=nowhere.txt", "there is no text file at nowhere.txt"),
        ("--model.first_layer=3", "first_layer is 3; .* has 3 layers"),
        ("--trainer.validate_every=0", "--trainer.validate_every is 0; expected a number above zero"),
        ("--config=klingon.yaml", "there is no configuration klingon.yaml"),
        ("--config=cyy.yaml", "did you mean 'cy.yaml'"),
    ],
)
@fault("{key}")
def test_bad_keys_are_one_line_and_leave_no_run(key, message, workplace, capsys):
    refused(capsys, [*workplace.adapt("bad"), key], message)
    assert not list((workplace.folder / "bad").rglob("*.ckpt"))
    assert not list((workplace.folder / "bad").rglob("*.partial"))


@fault("a base without gated FFNs")
def test_a_model_of_the_wrong_kind_is_refused_by_name(workplace, capsys, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", vocab_size=512, n_embd=32, n_layer=2, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for path in (workplace.folder / "runs/base/model").glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    refused(capsys, workplace.adapt("bad", model__base=tmp_path), "GPT2LMHeadModel has no gated FFN")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "no text"),
        ("latin1.txt", "Sw\xeddd".encode("latin-1"), "not UTF-8: byte 2 is 0xed"),
        ("broken.parquet", b"PAR1", "not a readable parquet"),
    ],
)
@fault("own text that is none: {name}")
def test_bad_own_text(name, content, message, workplace, capsys, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(capsys, [*workplace.adapt("bad"), f"--data.files.qah-Deva={tmp_path / name}"], message)


@fault("an atlas and a subnetwork of another model")
def test_files_of_another_model(workplace, capsys, tmp_path):
    other = ModelIdentity("other", "", "0123456789abcdef", 3, 128, 48, 1)
    Atlas(other, "t", 128).save(tmp_path / "atlas.safetensors")
    refused(capsys, [*workplace.adapt("bad"), f"--profiling.atlas={tmp_path / 'atlas.safetensors'}"], "another model")
    found = Subnetworks.load(workplace.folder / "runs/adapted/subnetwork.safetensors")
    Subnetworks(other, found.pool, found.neurons, 0.05, 0.95, 0.1, "").save(tmp_path / "subnetwork.safetensors")
    key = f"--model.subnetwork={tmp_path / 'subnetwork.safetensors'}"
    refused(capsys, [*workplace.adapt("bad"), key], "another model")


@fault("an atlas that was counted in other blocks")
def test_an_atlas_with_another_block_size(workplace, capsys):
    path = workplace.atlas
    keys = workplace.adapt("bad", profiling__block_size=64, profiling__atlas=path)
    refused(capsys, keys, "blocks of 128 tokens, asked for 64")


@pytest.mark.parametrize("share", [0.1, 0.9])
@fault("an atlas, a subnetwork, a checkpoint and a base's weights cut off at {share} of their length")
def test_truncated_files(share, workplace, capsys, tmp_path):
    atlas = workplace.atlas
    run = workplace.folder / "runs/adapted"
    checkpoint = next((run / "checkpoints").glob("best*"))
    for path in (atlas, run / "subnetwork.safetensors", checkpoint):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: int(len(content) * share)])
    keys = workplace.adapt("bad")
    refused(capsys, [*keys, f"--profiling.atlas={tmp_path / atlas.name}"], "damaged or cut short")
    refused(capsys, [*keys, f"--model.subnetwork={tmp_path / 'subnetwork.safetensors'}"], "damaged or cut short")
    config = ["--config", str(run / "config.yaml"), f"--model.subnetwork={run / 'subnetwork.safetensors'}"]
    refused(capsys, ["validate", *config, "--ckpt_path", str(tmp_path / checkpoint.name)], "is damaged")
    weights = tmp_path / "model"
    shutil.copytree(workplace.folder / "runs/base/model", weights)
    content = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(content[: int(len(content) * share)])
    refused(capsys, workplace.adapt("bad", model__base=weights), "cannot load the model")


@fault("a checkpoint beside another subnetwork than its own")
def test_a_checkpoint_of_another_subnetwork(workplace, capsys, tmp_path):
    run = workplace.folder / "runs/adapted"
    found = Subnetworks.load(run / "subnetwork.safetensors")
    found.neurons["qah-Deva"] = NeuronSet.from_pairs(found.neurons["qah-Deva"].pairs[1:])
    found.save(tmp_path / "other.safetensors")
    checkpoint = next((run / "checkpoints").glob("best*"))
    arguments = ["--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint)]
    arguments += ["--model.subnetwork", str(tmp_path / "other.safetensors")]
    refused(capsys, ["validate", *arguments], "belongs to another subnetwork")
    resume = [*workplace.adapt("bad"), f"--model.subnetwork={tmp_path / 'other.safetensors'}"]
    refused(capsys, [*resume, f"--resume={checkpoint}"], "belongs to another subnetwork")


@fault("a checkpoint of an earlier version, and one of a base from scratch beside a base")
def test_a_checkpoint_of_another_version_and_one_of_another_kind_of_base(workplace, capsys, tmp_path):
    run = workplace.folder / "runs/adapted"
    content = torch.load(next((run / "checkpoints").glob("best*")), weights_only=True)
    content["neuroglot"] = {"method": "subnetwork", "before": {}, "engine": "packed"}
    torch.save(content, tmp_path / "old.ckpt")
    measured = ["validate", "--config", str(run / "config.yaml"), "--ckpt_path"]
    refused(capsys, [*measured, str(tmp_path / "old.ckpt")], "made by Neuroglot 0.1.0, which this version cannot read")
    new_base = next((workplace.folder / "runs/base/checkpoints").glob("best*"))
    refused(capsys, [*measured, str(new_base)], "of a base from scratch, not of .*; leave --model.base out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("verb", ["fit", "validate", "plan", "profile"])
@pytest.mark.parametrize("key", ["--trainer.accelerator=gpu", "--trainer.strategy=fsdpp"])
@fault("{verb} with {key}")
def test_devices_and_strategies_that_are_not_there(verb, key, workplace, capsys):
    refused(capsys, [verb, *workplace.adapt("bad")[1:], key], "Lightning refuses the --trainer keys: ")


@fault("bf16 on a GPU that does not have it")
def test_a_gpu_without_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with refusal("Tesla T4 has no bf16, .* give --trainer.precision 32-true"):
        require_precision("bf16-mixed", torch.device("cuda", 0))
    require_precision("32-true", torch.device("cuda", 0))
    require_precision("bf16-mixed", torch.device("cpu"))


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "plan", "profile"])
@fault("{verb} without a base")
def test_no_base_at_all(verb, workplace, capsys):
    keys = [key for key in workplace.adapt("bad")[1:] if not key.startswith(("--model.base", "--name"))]
    refused(capsys, [verb, *keys, "--model.base=null"], "no base model: give --model.base")


@fault("profile for a base from scratch")
def test_a_base_from_scratch_has_nothing_to_count(workplace, capsys):
    keys = [key for key in workplace.new_base()[1:] if not key.startswith(("--name", "--data.mixture"))]
    refused(capsys, ["profile", "--language=qah-Deva", *keys], "a base from scratch has nothing to count yet")


@fault("a checkpoint of another program")
def test_a_foreign_checkpoint(workplace, capsys, tmp_path):
    torch.save(
        {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0}, tmp_path / "x.ckpt"
    )
    run = workplace.folder / "runs/adapted"
    arguments = ["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(tmp_path / "x.ckpt")]
    refused(capsys, arguments, "not made by Neuroglot")


@fault("the name of a run that was made with other settings")
def test_a_named_run_with_another_configuration_is_not_touched(workplace, capsys):
    message = "holds a run with another configuration"
    before = (workplace.folder / "runs/adapted/config.yaml").read_text()
    refused(capsys, [*workplace.adapt(), "--model.lr=1e-5"], message)
    assert (workplace.folder / "runs/adapted/config.yaml").read_text() == before


@fault("a language that gets no neurons")
def test_an_empty_set_names_other_rates_and_the_key(workplace, capsys):
    line = refused(capsys, workplace.adapt("bad", profiling__rate=0.003, profiling__quantile=0.999), "no neurons")
    assert "at rate 0.5" in line
    assert "--profiling.rate" in line


@fault("no network, and nothing cached: text, base, FLORES")
def test_no_network_and_nothing_cached(workplace, capsys, tmp_path):
    keys = [*workplace.adapt("bad"), "--data.source=cis-lmu/GlotCC-V1", f"--data.cache_dir={tmp_path}"]
    refused(capsys, keys, "cannot reach cis-lmu/GlotCC-V1.*no token cache")
    refused(
        capsys, [*workplace.adapt("bad"), "--model.base=meta-llama/Llama-3.1-8B"], "cannot reach the hub|cannot load"
    )
    flores = [*workplace.adapt("bad"), "--data.flores=openlanguagedata/flores_plus"]
    refused(capsys, flores, "cannot reach openlanguagedata/flores_plus.*tarball")


@fault("validate without any run")
def test_validate_without_any_run_says_what_to_do(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["validate"], "python main.py fit --config cy.yaml")


@fault("a command that fails, in a process of its own")
def test_a_failing_command_prints_no_traceback():
    command = [sys.executable, str(ROOT / "main.py"), "fit", "--language", "tlh"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.strip().startswith("neuroglot: error: unknown language 'tlh'")
    note(done.stderr)


@fault("the disk is full while a checkpoint is saved")
def test_a_full_disk_while_saving(workplace, capsys, tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        keys = [*workplace.adapt(profiling__rate=0.3), f"--run_dir={disk}"]
        refused(capsys, keys, "the disk is full")
        assert not list(disk.rglob("*.partial"))
        assert not list(disk.rglob("*.ckpt"))


@pytest.fixture
def local_hub(shared):
    """The real hub clients' counterpart, with FLORES+ gated."""
    command = [sys.executable, str(shared / "tools/local_hub.py"), str(shared / "data/hub"), "--gate"]
    server = subprocess.Popen(
        [*command, "openlanguagedata/flores_plus"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield server.stdout.readline().strip().partition("=")[2]
    server.kill()


def run_on_hub(endpoint, workplace, folder, *arguments, **environment):
    changes = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    env = {**{key: value for key, value in os.environ.items() if key != "HF_TOKEN"}, **changes, **environment}
    keys = [f"--model.base={workplace.folder / 'runs/base/model'}", f"--data.cache_dir={folder}", "--data.watch=[]"]
    keys += ["--trainer.precision=32-true", "--trainer.accelerator=cpu", "--data.block_size=64"]
    command = [sys.executable, str(ROOT / "main.py"), *arguments, *keys]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(None, marks=fault("FLORES+ without a token")),
        pytest.param("hf_other", marks=fault("FLORES+ with a token whose user has not accepted its terms")),
        "hf_accepted",
    ],
)
def test_gated_flores_needs_an_accepted_token(token, local_hub, workplace, tmp_path):
    verb = ["validate", "--config=cy.yaml", "--trainer.limit_val_batches=1"]
    done = run_on_hub(local_hub, workplace, tmp_path, *verb, **({"HF_TOKEN": token} if token else {}))
    if token == "hf_accepted":
        assert done.returncode == 0, done.stderr
        assert "Welsh (cy)" in done.stdout
    else:
        assert done.returncode == 2
        (line,) = done.stderr.strip().split("\n")
        assert re.search(r"gated: open https://.*flores_plus, accept its terms.*HF_TOKEN.*tarball.*FOLDER", line)
        note(line)


@fault("plan for a language that the hub lacks")
def test_plan_measures_the_hubs_text_and_names_a_language_it_lacks(local_hub, workplace, tmp_path, shared):
    verb = ["plan", "--profiling.languages=[mt]", "--json"]
    done = run_on_hub(local_hub, workplace, tmp_path, *verb, "--language=cy")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout.strip().split("\n")[-1])
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "runs/base/model")
    shard = shared / "data/hub/cis-lmu/GlotCC-V1/v1.0/cym-Latn/cym-Latn_0.parquet"
    ids = tokenizer(pq.read_table(shard)["content"].to_pylist(), add_special_tokens=False)["input_ids"]
    assert plan["text"][0]["available"] == pytest.approx(sum(map(len, ids)), rel=0.1)
    assert plan["text"][0]["download_bytes"] == shard.stat().st_size
    assert [row["language"] for row in plan["profiling_text"]] == ["Maltese (mt)", "Welsh (cy)"]
    done = run_on_hub(local_hub, workplace, tmp_path, *verb, "--language=tlh-Latn")
    assert done.returncode == 2
    assert "has no tlh-Latn: no configuration 'tlh-Latn'; check the code" in done.stderr
    note(done.stderr)


def test_nothing_but_checkpoints_is_pickled():
    """Everything else is safetensors, JSON or text, and what torch reads are tensors and plain data only."""
    sources = [p for folder in ("lightning_app", "callbacks", "datamodules") for p in Path(ROOT / folder).rglob("*.py")]
    texts = {p.name: p.read_text() for p in sources}
    assert len(texts) > 40
    assert [name for name, text in texts.items() if re.search(r"torch\.save\(|pickle\.dump", text)] == ["files.py"]
    loads = [call for text in texts.values() for call in re.findall(r"torch\.load\(.*", text)]
    assert loads
    assert all("weights_only=True" in call for call in loads)
