"""A base of which every process holds a part (FSDP2): runs end as those of one process with as large a batch."""

import json
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_app.cli import main
from lightning_app.neurons.atlas import Atlas
from tests.faults import fault, note, refused
from tests.sharded_runs import RUNS, run_together, start_together
from tests.whole_runs import assert_same_end, best, load, start

KEYS = {"data__token_budget": 2048, "trainer__validate_every": 4}
LOOKING = {"model__calibration_sequences": 6, "model__calibration_tokens": 64}
METHODS = {
    "packed": {},
    "full": {"model__method": "full", "model__lr": 3e-4},
}
MORE = {
    "masked": {"model__engine": "masked"},
    "lora": {"model__method": "lora", "model__rank": 4},
    "rows-checkpointed": {"model__activation_checkpointing": True, "trainer__accumulate_grad_batches": 2},
    "rows-averaged": {"model__ema": 0.9, "data__replay": '{"qab-Latn": 0.25}'},
    "random": {"model__method": "random"},
    "masked-down": {"model__engine": "masked", "model__projections": '["down"]'},
    "ffn": {"model__method": "ffn", "model__lr": 3e-4, "trainer__accumulate_grad_batches": 2},
    "full-checkpointed": {"model__method": "full", "model__lr": 3e-4, "model__activation_checkpointing": True},
    "last_layers": {"model__method": "last_layers", "model__last_layers": 1},
    "hft": {"model__method": "hft"},
    "lora_all": {"model__method": "lora_all", "model__rank": 4},
    "lora_matched": {"model__method": "lora_matched"},
    "ia3": {"model__method": "ia3"},
    "dora": {"model__method": "dora", "model__rank": 4},
    "shira": {"model__method": "shira", "model__rank": 4},
    "gradient": {"model__method": "gradient", **LOOKING},
    "ssu": {"model__method": "ssu", "model__source_language": "qaa-Latn", **LOOKING},
}


def part(workplace, folder, processes=2, strategy="fsdp2", **changes):
    """The arguments of a run of several processes; all of them together take the batch of one that is alone."""
    keys = {"trainer__devices": processes, "trainer__strategy": strategy, "samples": 1, **KEYS, **changes}
    return [*workplace.adapt(folder, **keys), f"--data.batch_size={4 // processes}"]


def last(workplace, name):
    return load(workplace.folder / name / "adapted/checkpoints/last.ckpt")


def assert_same_states(one, other, tolerance):
    """The optimiser's, which are plain tensors in both."""
    (one,), (other,) = one["optimizer_states"], other["optimizer_states"]
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for number, states in one["state"].items():
        for name, state in states.items():
            torch.testing.assert_close(other["state"][number][name], state, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def sharded(workplace, tmp_path_factory):
    """Runs of every kind by two processes under FSDP2, and one that is cut short; then one that DDP began."""
    atlas = workplace.folder / "sharded.safetensors"
    # In an odd number of blocks, of which one process counts one more than the other.
    counts = {"profiling__atlas": atlas, "profiling__tokens_per_language": 4230}
    runs = [part(workplace, "sharded-packed", **counts, data__validation_batch_size=1)]
    runs += [part(workplace, f"sharded-{name}", **METHODS[name]) for name in list(METHODS)[1:]]
    for name, own in (("packed", counts), ("full", METHODS["full"])):  # whole states, and sharded ones
        for begins, goes_on in (("ddp", "fsdp2"), ("fsdp2", "ddp")):
            folder, begun = f"{begins}-{name}", workplace.folder / f"{begins}-{name}/adapted/checkpoints/last.ckpt"
            runs.append(part(workplace, folder, strategy=begins, trainer__max_steps=4, **own))
            runs.append(part(workplace, folder, strategy=goes_on, name="on", resume=begun, **own))
    return run_together(tmp_path_factory.mktemp("sharded"), 2, *runs)


def test_profiling_counts_are_those_of_one_process(workplace, sharded):
    alone = workplace.folder / "alone.safetensors"
    counts = {"profiling__atlas": alone, "profiling__tokens_per_language": 4230}
    assert main(workplace.adapt("alone-packed", samples=1, **counts, **KEYS)) == 0
    one, other = Atlas.load(alone), Atlas.load(workplace.folder / "sharded.safetensors")
    assert one.tokens == other.tokens
    assert all(torch.equal(one.counts[code], other.counts[code]) for code in one.counts)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_with_a_part_each_end_like_one(workplace, sharded, name):
    if name != "packed":
        assert main(workplace.adapt(f"alone-{name}", samples=1, **KEYS, **METHODS[name])) == 0
    one, other = last(workplace, f"alone-{name}"), last(workplace, f"sharded-{name}")
    assert_same_end(one, other, 1e-5)
    assert_same_states(one, other, 1e-5)
    for when in ("before", "after"):
        losses, found = (each["callbacks"]["Retention"][when] for each in (one, other))
        assert {code: pytest.approx(each, abs=1e-6) for code, each in losses.items()} == found
    folders = [workplace.folder / f"{kind}-{name}/adapted" for kind in ("alone", "sharded")]
    assert best(folders[0]).name == best(folders[1]).name
    samples = [(folder / "samples.jsonl").read_text() for folder in folders]
    assert samples[0] == samples[1]


@pytest.mark.slow
def test_four_processes_end_like_one_by_every_method(workplace, tmp_path):
    """Once by data that divide among them evenly, and by validation batches that do not."""
    keys = {"data__validation_batch_size": 3}
    runs = [part(workplace, f"four-{name}", 4, **keys, **changes) for name, changes in MORE.items()]
    run_together(tmp_path, 4, *runs)
    for name, changes in MORE.items():
        assert main(workplace.adapt(f"one-{name}", samples=1, **KEYS, **changes)) == 0
        one, other = last(workplace, f"one-{name}"), last(workplace, f"four-{name}")
        assert_same_end(one, other, 1e-4)
        assert_same_states(one, other, 1e-5)


COUNT = """
from torch._dynamo.utils import counters
print("compiled", counters["stats"]["unique_graphs"], "breaks", len(counters["graph_break"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packed", "masked", "lora", "full"])
def test_layers_that_are_gathered_are_compiled_and_end_as_eager_ones(workplace, tmp_path, name):
    own = {**METHODS, **MORE}[name]
    runs = [[str(key) for key in part(workplace, f"compiled-{name}", model__compile="true", **own)]]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    said, codes = start_together(2, ["-c", RUNS + COUNT], tmp_path / "runs.json")
    assert codes == [0, 0], "\n".join(said)
    graphs, breaks = map(int, re.search(r"compiled (\d+) breaks (\d+)", said[0]).groups())
    assert (graphs > 1, breaks) == (True, 0)  # one of them only asks whether there is a compiler
    assert main(workplace.adapt(f"eager-{name}", samples=1, **KEYS, **own)) == 0
    assert_same_end(last(workplace, f"eager-{name}"), last(workplace, f"compiled-{name}"), 1e-4)


@pytest.mark.slow
def test_in_bf16_two_processes_end_like_one(workplace, tmp_path):
    """What is trained is fp32 there too: the masked engine's matrices are read so, as sharded ones stay what they are.

    Gradients are those of bf16 products, which are rounded otherwise where a batch is in two parts.
    """
    keys = {"trainer__precision": "bf16-mixed"}
    names = ("packed", "masked", "full", "dora", "ssu")
    every = {**METHODS, **MORE}
    run_together(tmp_path, 2, *(part(workplace, f"narrow-{name}", **keys, **every[name]) for name in names))
    for name in names:
        assert main(workplace.adapt(f"wide-{name}", samples=1, **KEYS, **keys, **every[name])) == 0
        one, other = last(workplace, f"wide-{name}"), last(workplace, f"narrow-{name}")
        assert one["neuroglot"]["dtype"] == other["neuroglot"]["dtype"]
        assert {weight.dtype for weight in other["state_dict"].values() if weight.is_floating_point()} == {
            torch.float32
        }
        assert_same_end(one, other, 3e-3)


@pytest.mark.slow
@fault("a base that is to be sharded with a weight that is no number: found by the process that looks")
def test_a_broken_base_ends_all_processes_with_one_line(workplace, tmp_path):
    shutil.copytree(workplace.folder / "runs/base/model", tmp_path / "base")
    weights = load_file(file := tmp_path / "base/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, file, {"format": "pt"})
    process = start([*part(workplace, "broken", model__base=tmp_path / "base")])
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 2, said
    note(line := next(line for line in said.splitlines() if "NaN" in line))
    assert "NaN or infinite weights in model.layers.1.mlp.up_proj.weight" in line
    assert said.count("error:") == 1


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_saves_and_goes_on(workplace):
    """Ctrl-C and SIGTERM save by all processes together, whichever was told."""
    keys = {**METHODS["full"], "data__token_budget": 80_000, "trainer__validate_every": 5}
    process = start(part(workplace, "asked", **keys), PYTHONUNBUFFERED="1")
    next(line for line in process.stdout if line.startswith("step 5"))
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 143, said
    step = int(re.search(r"ended by SIGTERM at step (\d+) of", said)[1])
    assert last(workplace, "asked")["global_step"] == step
    process = start(part(workplace, "asked", trainer__max_steps=step + 2, **keys))
    said = process.communicate(timeout=100)[0]
    assert (process.returncode, f"going on from step {step}" in said) == (0, True), said


@pytest.mark.parametrize("begins", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["packed", "full"])
def test_a_checkpoint_goes_on_under_the_other_strategy(workplace, sharded, name, begins):
    """The first half under one, the second under the other: as a run that was never stopped."""
    whole, on = last(workplace, f"sharded-{name}"), load(workplace.folder / f"{begins}-{name}/on/checkpoints/last.ckpt")
    assert_same_end(whole, on, 1e-5)
    assert_same_states(whole, on, 1e-5)


def test_a_checkpoint_goes_on_on_one_device(workplace, sharded):
    """With half of the batch from there on: from both strategies' checkpoints alike."""
    for begins in ("ddp", "fsdp2"):
        begun = workplace.folder / f"{begins}-full/adapted/checkpoints/last.ckpt"
        keys = {"name": "alone", "resume": begun, "trainer__devices": 1, "trainer__strategy": "auto"}
        arguments = part(workplace, f"{begins}-full", **METHODS["full"], **keys)
        assert main(arguments) == 0
    one, other = (load(workplace.folder / f"{each}-full/alone/checkpoints/last.ckpt") for each in ("ddp", "fsdp2"))
    assert_same_end(one, other, 1e-5)
    assert_same_states(one, other, 1e-5)


@pytest.mark.slow
def test_what_is_measured_and_counted_on_parts_is_what_one_process_says(workplace, tmp_path, capsys):
    def by_two(verb, *more, **changes):
        keys = part(workplace, "none", **changes)[1:]
        return [verb, *(key for key in keys if not key.startswith("--samples")), *more]

    methods = {name: {**METHODS, **MORE}[name] for name in ("packed", "masked", "lora", "full")}
    for name, own in methods.items():
        assert main(workplace.adapt(f"one-{name}", samples=1, **KEYS, **own)) == 0
    one = ("--trainer.strategy=auto", "--trainer.devices=1")
    counts = {"profiling__languages": "[qaa-Latn,qah-Deva]", "profiling__tokens_per_language": 4230}
    counting = [
        by_two("profile", **counts, profiling__atlas=workplace.folder / f"by-{name}.safetensors")
        for name in ("one", "two")
    ]
    runs = [
        by_two(verb, f"--ckpt_path={best(workplace.folder / f'one-{name}/adapted')}", data__paper_loss=True, **own)
        for verb in ("validate", "test")
        for name, own in methods.items()
    ]
    said = run_together(tmp_path, 2, *runs, counting[1])
    capsys.readouterr()
    for run in runs:
        assert main([*run, *one]) == 0
    assert main([*counting[0], *one]) == 0
    losses = [re.findall(r"^.*(?:nats|bits|paper).*$", text, re.MULTILINE) for text in (capsys.readouterr().out, said)]
    assert losses[0] == losses[1]
    assert len(losses[0]) >= len(runs)
    assert any("paper" in line for line in losses[0])
    one, other = (Atlas.load(workplace.folder / f"by-{name}.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one.counts[code], other.counts[code]) for code in one.counts)


@fault("a base that is to be sharded, with what needs the whole of it on every process, or no files to shard")
def test_what_cannot_be_sharded_is_one_line(workplace, capsys):
    sharded = {"trainer__strategy": "fsdp2", "trainer__devices": 2}
    for changes, line in (
        ({"model__quantization": "nf4"}, "--model.quantization nf4"),
        ({"model__method": "full", "model__ema": 0.9}, "--model.ema 0.9"),
        ({"trainer__translate": 2}, "--trainer.translate"),
        ({"trainer__probe": "true"}, "--trainer.probe"),
    ):
        arguments = workplace.adapt("none", **sharded, **changes)
        refused(capsys, arguments, f"fsdp2 does not go together with {line}.*--trainer.strategy ddp")
    refused(capsys, [*workplace.adapt("none", **sharded), "--trainer.precision=64-true"], "64-true")
    refused(capsys, [*workplace.new_base(), "--trainer.strategy=fsdp2", "--name=none"], "--model.architecture")
    refused(capsys, ["predict", *workplace.adapt("none", **sharded)[1:]], "fsdp2 is for .*; predict has the whole base")
    profile = ["profile", *workplace.adapt("none", **sharded, model__quantization="nf4")[1:]]
    refused(capsys, profile, "--model.quantization nf4")
    scratch = ["validate", *workplace.adapt("none", **sharded)[1:], "--model.base=null"]
    refused(capsys, [*scratch, f"--ckpt_path={best(workplace.folder / 'runs/base')}"], "is of a base from scratch")
    assert not (workplace.folder / "none").exists()


def test_a_run_under_fsdp2_is_planned(workplace, capsys):
    keys = workplace.adapt("none", trainer__strategy="fsdp2", trainer__devices=2)[1:]
    assert main(["plan", *keys, "--json"]) == 0
