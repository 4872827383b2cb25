"""What is refused before a pool is profiled, what is looked at in the first step, and what a diverged run leaves."""

import json
import os
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch

from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.files import load_checkpoint
from lightning_app.methods.registry import build_method
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.run import RunFolder
from tests.conftest import LANGUAGES, ROOT, tiny_model


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])


REFUSED = {
    "--model.warmup_steps=48": "warmup_steps is 48, but the run has 48 steps",
    "--data.batch_size=5000": r"the text gives 192 sequences of 64 tokens and one step takes 5000",
    "--model.first_layer=3": "first_layer is 3; .*model has 3 layers",
    "--trainer.limit_train_batches=8": "limit_train_batches is 8: a run limited so could never go on",
    "--trainer.fast_dev_run=true": "fast_dev_run keeps nothing",
    "--trainer.gradient_clip_val=-1": "gradient_clip_val is -1.0; expected a number above zero",
    '--profiling.languages=["qaa-Latn","qab-Latn","qaa-Latn"]': "profiling.languages names qaa-Latn twice",
    '--data.watch=["en","qaa-Latn","English"]': r"data.watch names English \(en\) twice",
    '--data.files={"cy":"a.txt","Welsh":"b.txt"}': r"data.files names Welsh \(cy\) twice",
    "--data.files.cy=a.txt": r"data.files has text of Welsh \(cy\), which is neither trained on nor profiled",
    "--data.cache_dir={file}": "data.cache_dir is .*, but .* is no folder",
    "--run_dir={file}/runs": "run_dir is .*, but .* is no folder",
    "--profiling.atlas={file}/x.safetensors": "profiling.atlas is .*, which cannot be written",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_can_be_known_is_refused_before_the_pool_is_profiled(workplace, capsys, tmp_path, key):
    (tmp_path / "file").write_text("no folder")
    atlas = tmp_path / "atlas.safetensors"
    command = [
        *workplace.adapt("too-early"),
        f"--profiling.atlas={atlas}",
        key.replace("{file}", str(tmp_path / "file")),
    ]
    assert main(command) == 2
    said = capsys.readouterr()
    assert re.search(REFUSED[key], said.err), said.err
    assert not atlas.exists()
    assert "profiling q" not in said.out
    assert not (workplace.folder / "too-early/adapted").exists()


@pytest.mark.parametrize(
    ("method", "key", "pattern"),
    [
        ("last_layers", "--model.last_layers=4", "last_layers is 4; expected 1 to 3"),
        ("ssu", "--model.source_language=cy", r"has no Welsh \(cy\)"),
        ("ssu", "--model.source_language=zz", "unknown language 'zz'"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_before_text_is_tokenised(
    workplace, capsys, tmp_path, method, key, pattern
):
    command = workplace.adapt("too-early", model__method=method)
    assert main([*command, key, f"--data.cache_dir={tmp_path / 'cache'}"]) == 2
    assert re.search(pattern, capsys.readouterr().err)
    assert not (tmp_path / "cache/tokens").exists()


def test_a_language_of_the_pool_with_too_little_text_is_told_before_the_first_is_counted(workplace, capsys, tmp_path):
    (tmp_path / "short.txt").write_text("Ychydig.\n")
    pool = json.dumps([*LANGUAGES, "cy"])
    more = [f"--data.files.cy={tmp_path}/short.txt", f"--profiling.atlas={tmp_path}/atlas.safetensors"]
    assert main([*workplace.adapt("too-early", profiling__languages=pool), *more]) == 2
    said = capsys.readouterr()
    assert re.search(r"Welsh \(cy\) has \d+ tokens of text, less than one profiling block of 128", said.err)
    assert "profiling q" not in said.out


def test_a_mixture_names_each_language_once(workplace, capsys):
    mixture = json.dumps({"cy": 1, "qaa-Latn": 2, "Welsh": 1})
    command = [each for each in workplace.new_base() if not each.startswith("--data.mixture")]
    assert main([*command, "--name=twice", f"--data.mixture={mixture}"]) == 2
    assert "--data.mixture names Welsh (cy) twice" in capsys.readouterr().err


def test_counts_that_are_all_zero_are_no_counts(workplace, tmp_path):
    atlas = Atlas.load(workplace.atlas)
    atlas.counts["qab-Latn"] = torch.zeros_like(atlas.counts["qab-Latn"])
    atlas.save(tmp_path / "zero.safetensors")
    with pytest.raises(UserError, match=r"counts.qab-Latn are all 0, no gate opened for any of \d+ tokens"):
        Atlas.load(tmp_path / "zero.safetensors")


def first_step(engine, dead=()):
    """A tiny model with ReLU gates after one backward; rows of ``dead`` neurons are zero: their gates never open."""
    model = tiny_model("llama")
    ffns = find_gated_ffns(model)
    for ffn in ffns:
        ffn.module.act_fn = torch.nn.ReLU()
    ffns = find_gated_ffns(model)
    for neuron in dead:
        ffns[1].gate.weight[neuron] = 0
    neurons = NeuronSet({0: torch.tensor([3, 40]), 1: torch.tensor([1, 2, 7])})
    attached = build_method("subnetwork", {"engine": engine}).attach(model, neurons)
    ids = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    token_loss_sum(hidden[:, :-1], OutputHead.of(model), ids[:, 1:]).backward()
    return model, attached


@pytest.mark.parametrize("engine", ["packed", "masked"])
def test_neurons_without_a_gradient_are_counted(engine):
    model, attached = first_step(engine)
    assert attached.check_gradients(model) == ""
    model, attached = first_step(engine, dead=(2, 7))
    assert attached.check_gradients(model).startswith("warning: 2 of 5 neurons got a gradient of exactly zero")


@pytest.mark.parametrize("engine", ["packed", "masked"])
def test_a_gradient_where_nothing_is_trained_or_none_where_something_is_stops_the_run(engine):
    model, attached = first_step(engine)
    norm = model.model.norm.weight
    norm.grad = torch.zeros_like(norm)
    assert attached.check_gradients(model) == ""  # exactly zero
    norm.grad[3] = 1e-12
    with pytest.raises(RuntimeError, match=r"frozen weight model\.norm\.weight has a gradient"):
        attached.check_gradients(model)
    norm.grad = None
    attached.trained()[0].grad = None
    with pytest.raises(RuntimeError, match="neurons of layer 0 have no gradient in gate_proj"):
        attached.check_gradients(model)


def test_whole_matrices_without_a_gradient_are_counted():
    model = tiny_model("llama")
    attached = build_method("last_layers", {"last_layers": 1}).attach(model, None)
    assert attached.check_gradients(model).startswith("warning: 9 of 9 trained matrices got no gradient")


def require_real_documents(sequences, hub):
    """The rows that are named begin as it is said, and hold the language that it is said."""
    assert sequences
    for sequence in sequences:
        assert sequence["documents"]
        for document in sequence["documents"]:
            rows = pq.read_table(document["file"])["content"].to_pylist()
            assert rows[document["row"]].startswith(document["begins"].strip()[:40])
            assert sequence["language"] in document["file"]


def test_a_diverged_run_says_which_documents_it_was_reading(workplace, capsys):
    """At a rate that no weights survive: the first step is sound, the loss of the second batch is no number."""
    assert main(workplace.adapt("nan", model__lr=1e20)) == 2
    error = capsys.readouterr().err
    folder = RunFolder(workplace.folder / "nan/adapted")
    assert re.search(
        r"at step \d \(sequence \d+ of its text\): the last \d batches have a loss that is no number", error
    )
    assert re.search(r"It was reading qah-Deva document \d+ \(qah-Deva_0.parquet, row \d+\), .*diverged.json", error)
    (own,) = json.loads(folder.diverged.read_text())["processes"]
    assert own["batch"] == 1
    assert [each["position"] for each in own["sequences"]] == [4, 5, 6, 7]
    assert [each["position"] for each in own["sequences_of_the_step_before"]] == [0, 1, 2, 3]
    require_real_documents(own["sequences"], workplace.hub)
    assert not folder.last_checkpoint.exists()


def test_weights_that_are_no_numbers_are_never_saved(workplace, capsys):
    """Not by the clock either, between the step that spoiled them and the end of the patience."""
    keys = {"model__lr": 1e20, "trainer__save_every": 1e-6, "trainer__stop_after_nonfinite": 1000}
    assert main(workplace.adapt("spoiled", **keys)) == 2
    assert re.search(
        r"diverged at step 10 .*trained weights are no numbers; nothing was saved", capsys.readouterr().err
    )
    assert not RunFolder(workplace.folder / "spoiled/adapted").last_checkpoint.exists()


SPOIL = """
import os, torch
from datamodules.glotcc import GlotCCDataModule
from lightning_app.training.module import SparseSubnetModule
plain = SparseSubnetModule.training_step
def step(self, batch, batch_idx):
    out = plain(self, batch, batch_idx)
    if self.global_rank == 1 and batch_idx == 5:
        out = {name: value * torch.nan for name, value in out.items()}
    return out
SparseSubnetModule.training_step = step
"""


@pytest.mark.slow
def test_the_documents_of_every_process_are_written_where_it_began_first(workplace, tmp_path):
    """The batch of process 1 spoils the weights of both: its documents are the ones named."""
    (tmp_path / "hook.py").write_text(SPOIL)
    command = workplace.adapt("nan-on-two", trainer__validate_every=4)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOOK": str(tmp_path / "hook.py")}
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run([sys.executable, str(ROOT / "tests/hooked.py"), *command, *two], env=env, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.split("\n") if line.startswith("neuroglot"))
    folder = RunFolder(workplace.folder / "nan-on-two/adapted")
    first, second = json.loads(folder.diverged.read_text())["processes"]
    assert (first["process"], first["batch"]) == (1, 5)
    assert first["nonfinite_batches"] == second["nonfinite_batches"] + 1
    assert [each["position"] for each in first["sequences"]] == [41, 43, 45, 47]
    require_real_documents(first["sequences"], workplace.hub)
    number = first["sequences"][0]["documents"][0]["document"]
    assert f"qah-Deva document {number} " in line
    assert f"{folder.last_checkpoint} is from before" in line
    assert load_checkpoint(folder.last_checkpoint)["global_step"] == 4
