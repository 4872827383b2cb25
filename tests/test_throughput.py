"""What is said of speed, and that saying it, and training as a whole, does not wait for the device at every step."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks.console import Console
from callbacks.retention import Retention
from callbacks.run_record import RunRecord
from callbacks.throughput import Throughput
from lightning_app.cli import main
from lightning_app.model.attention import attend_without_masks
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.profiling.counting import GateCounter
from lightning_app.training.module import SparseSubnetModule
from tests.conftest import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_without_masks_is_the_same_attention(architecture):
    plain, unmasked = tiny_model(architecture).eval(), tiny_model(architecture).eval()
    attend_without_masks(unmasked)
    ids = torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(input_ids=ids, use_cache=False).logits, unmasked(input_ids=ids, use_cache=False).logits)
    prompt = {"input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])}
    assert torch.equal(*(m.generate(**prompt, max_new_tokens=6, do_sample=False) for m in (plain, unmasked)))


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a number off a tensor."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            HostReads.count += 1
        return function(*args, **(kwargs or {}))


def test_counting_gates_reads_nothing_off_the_device():
    model = tiny_model("llama").eval()
    attend_without_masks(model)
    counter = GateCounter(find_gated_ffns(model), torch.device("cpu"))
    HostReads.count = 0
    with torch.no_grad(), HostReads(), counter:
        model.base_model(input_ids=torch.arange(40).reshape(2, 20), use_cache=False)
    assert HostReads.count == 0
    assert counter.counts_HLN.sum() > 0


def test_a_training_step_between_two_logs_reads_nothing_off_the_device(workplace, monkeypatch):
    reads = []

    def watched(owner, name):
        original = getattr(owner, name)

        def watching(*args, **kwargs):
            HostReads.count = 0
            with HostReads():
                result = original(*args, **kwargs)
            reads.append((owner.__name__, HostReads.count))
            return result

        monkeypatch.setattr(owner, name, watching)

    for owner in (SparseSubnetModule, Console, RunRecord, Throughput):
        watched(owner, "training_step" if owner is SparseSubnetModule else "on_train_batch_end")
    watched(SparseSubnetModule, "backward")
    watched(Throughput, "on_train_batch_start")
    monkeypatch.setattr(sys, "argv", ["main.py"])
    keys = {"data__token_budget": 5120, "trainer__log_every_n_steps": 10}
    assert main([*workplace.adapt(run_dir="watched", **keys)]) == 0
    assert {name for name, _ in reads} == {"SparseSubnetModule", "Console", "RunRecord", "Throughput"}
    steps = 20
    assert len(reads) == 6 * steps
    busy = [step for step in range(steps) if any(count for _, count in reads[6 * step : 6 * step + 6])]
    assert busy == [0, 9, 10, 19]  # the first warms up; the bar reads at 0 and 10, the log after 10 and 20


def test_figures_are_tokens_over_time_and_padding_and_validation_do_not_count(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("callbacks.throughput.time.perf_counter", lambda: clock.now)
    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda tensor, reduce_op: 2 * tensor)
    trainer = SimpleNamespace(strategy=strategy, world_size=2, is_global_zero=True)
    meter = Throughput()
    meter._limit, meter._source = 1000.0, "test"
    labels = torch.zeros(2, 100, dtype=torch.int64)
    labels[0, 60:] = -100

    def batch(wait_s, work_s):
        clock.now += wait_s
        meter.on_train_batch_start(trainer, None, None, 0)
        clock.now += work_s
        meter.on_train_batch_end(trainer, None, {}, {"labels": labels}, 0)

    batch(0.0, 30.0)  # warms up
    batch(0.25, 0.75)
    meter.on_validation_start(trainer, None)
    clock.now += 100.0
    batch(0.0, 1.0)
    figures = meter.read(trainer)
    assert figures["tokens_per_second"] == pytest.approx(2 * 2 * 160 / 2.0)  # two processes, two batches, 2 s
    assert figures["share_of_limit"] == pytest.approx(0.32)
    assert figures["data_wait_share"] == pytest.approx(0.125)
    assert figures["peak_gib"] > 0.01
    assert "320 tokens/s, 32 % of the limit" in meter.summary(trainer)


def test_the_log_has_changes_against_the_losses_before_training_which_travel_with_checkpoints(workplace):
    folder = workplace.folder / "runs/adapted"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n") if line]
    before = {key: value for key, value in rows[0].items() if key.startswith("val/loss/")}
    assert rows[0]["step"] == 0
    assert set(before) == {"val/loss/qah-Deva", "val/loss/qaa-Latn"}
    validated = [row for row in rows if "val/loss" in row]
    assert len(validated) == 3
    for row in validated:
        for key, loss in before.items():
            assert row[key.replace("loss", "change", 1)] == pytest.approx(row[key] - loss, abs=1e-12)
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        kept = Retention.of(checkpoint)
        assert {f"val/loss/{code}": loss for code, (loss, _) in kept.before.items()} == before
    assert Retention.of(None).before == {}


def test_the_log_has_speed_beside_the_loss(workplace):
    folder = workplace.folder / "runs/adapted"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n") if line]
    logged = [row for row in rows if "train/loss" in row]
    assert logged
    for row in logged:
        assert row["speed/tokens_per_second"] > 0
        assert 0 < row["speed/share_of_limit"] < 1.5
        assert 0 <= row["speed/data_wait_share"] < 1
    assert "of the limit of frozen training" in (folder / "summary.md").read_text()
