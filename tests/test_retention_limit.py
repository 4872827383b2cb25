"""Which checkpoint is the best one where watched languages may lose only so much, and that a run keeps to it."""

import json
import math
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.checkpoints import BestCheckpoint
from callbacks.retention import Retention
from lightning_app.adapted import load_adapted
from lightning_app.cli import main
from lightning_app.comparison.results import read_result
from lightning_app.errors import UserError
from lightning_app.files import load_checkpoint, save_checkpoint
from lightning_app.run import RunFolder, configuration_digest
from tests.whole_runs import start

BEFORE = {"cy": [3.0, 1.0], "en": [2.0, 1.0], "ru": [2.5, 1.0]}


class Validations:
    """A run without training: validations with given losses, one after another, each followed by what callbacks do."""

    def __init__(self, folder, limit):
        self.folder, self.limit, self.lines = RunFolder(folder), limit, []
        self.retention = Retention()
        self.retention.before, self.retention._text = BEFORE, dict.fromkeys(BEFORE, "text")
        self.retention._text_now = self.retention._text
        self.trainer = SimpleNamespace(
            state=SimpleNamespace(fn="fit"), global_step=0, is_global_zero=True, callback_metrics={},
            save_checkpoint=self._save, strategy=SimpleNamespace(broadcast=lambda value: value),
        )  # fmt: skip
        self.module = SimpleNamespace(print=self.lines.append)
        self.start({})

    def _save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"callbacks": {"BestCheckpoint": self.best.state_dict()}})

    def start(self, state):
        """As a run that begins, or goes on from a state."""
        self.best = BestCheckpoint(self.folder, self.retention, self.limit, ["en", "ru"] if self.limit else [])
        if state:
            self.best.load_state_dict(state)
        self.best.on_train_start(self.trainer, self.module)

    def validate(self, step, target, en, ru):
        self.retention.after = {"cy": [target, 1.0], "en": [2.0 + en, 1.0], "ru": [2.5 + ru, 1.0]}
        self.trainer.global_step, self.trainer.callback_metrics = step, {"val/loss": torch.tensor(target).double()}
        self.best.on_validation_end(self.trainer, self.module)


def kept_by(path):
    return load_checkpoint(path)["callbacks"]["BestCheckpoint"]["kept"]


LOSSES = st.sampled_from([1.0, 1.5, 2.0, 2.5])
RISES = st.sampled_from([-0.125, 0.0, 0.03125, 0.0625, 0.25])  # exact beside the losses


SEEN = st.lists(st.tuples(LOSSES, RISES, RISES), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(SEEN, st.sampled_from([None, 0.05]), st.integers(0, 6))
def test_kept_is_the_lowest_loss_within_the_limit_also_after_a_resume(tmp_path_factory, seen, limit, killed):
    run = Validations(tmp_path_factory.mktemp("run"), limit)
    for step, (target, en, ru) in enumerate(seen, start=1):
        if step == killed:
            run.start(json.loads(json.dumps(run.best.state_dict())))
        run.validate(step, target, en, ru)
    steps = [(step, target, max(en, ru)) for step, (target, en, ru) in enumerate(seen, start=1)]
    within = [(target, step) for step, target, worst in steps if limit is None or worst <= limit]
    least = [(worst, step) for step, _, worst in steps]
    expected = min(within)[1] if within else min(least)[1]
    (path,) = (run.folder.path / "checkpoints").iterdir()
    assert run.best.kept["step"] == expected
    assert path == run.folder.best_checkpoint() == run.folder.checkpoints / run.best.kept["checkpoint"]
    assert path.name.startswith(f"{'best' if within else 'least-rise'}-step{expected:06d}-")
    assert kept_by(path) == run.best.kept  # a checkpoint knows that it is the best
    assert ("kept for its smallest worst rise" in run.best.remark) == (not within)


def test_a_better_loss_that_is_passed_over_is_said_with_the_reason_and_a_worse_one_is_not(tmp_path):
    run = Validations(tmp_path, 0.05)
    run.validate(10, 2.0, 0.01, 0.02)
    run.validate(20, 1.5, 0.06, 0.2)
    run.validate(30, 2.2, 0.3, 0.0)
    run.validate(40, 1.8, 0.04, 0.04)
    assert run.lines == [
        "step 20: a target loss of 1.5000 is passed over: English (en) has risen by 0.0600 and Russian (ru) has risen "
        "by 0.2000 nats, more than --trainer.max_retention_loss 0.05 allows"
    ]
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["best-step000040-loss1.8000.ckpt"]


def test_a_loss_that_is_no_number_is_not_within_the_limit(tmp_path):
    run = Validations(tmp_path, 0.05)
    run.validate(10, 2.0, math.nan, 0.0)
    assert run.best.kept == {}
    run.validate(20, 2.5, 0.0, 0.0)
    run.validate(30, 1.5, 0.0, math.nan)
    assert run.best.kept["step"] == 20


def test_a_run_that_goes_on_in_another_folder_begins_anew(tmp_path):
    run = Validations(tmp_path / "one", None)
    run.validate(10, 1.0, 0.0, 0.0)
    other = Validations(tmp_path / "two", None)
    other.start(run.best.state_dict())
    other.validate(20, 2.0, 0.0, 0.0)
    assert other.folder.best_checkpoint().name == "best-step000020-loss2.0000.ckpt"
    assert run.folder.best_checkpoint().name == "best-step000010-loss1.0000.ckpt"


def test_a_run_killed_behind_a_better_checkpoint_goes_on_against_that_one(tmp_path):
    """Its last state names one that the better one has replaced; another interval of validations finds no better."""
    run = Validations(tmp_path, None)
    run.validate(10, 2.0, 0.0, 0.0)
    last = run.best.state_dict()
    run.validate(20, 1.0, 0.0, 0.0)
    run.start(last)
    assert run.best.kept["step"] == 20
    run.validate(15, 1.5, 0.0, 0.0)
    run.validate(20, 1.0, 0.0, 0.0)
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["best-step000020-loss1.0000.ckpt"]


def test_what_a_kill_left_beside_the_best_checkpoint_is_removed(tmp_path):
    run = Validations(tmp_path, 0.05)
    run.validate(10, 2.0, 0.0, 0.0)
    left = run.folder.checkpoints / "least-rise-step000005-rise0.1000-loss2.5000.ckpt"
    left.write_bytes(b"")
    run.validate(20, 2.5, 0.0, 0.0)
    assert [path.name for path in run.folder.checkpoints.iterdir()] == ["best-step000010-loss2.0000.ckpt"]


def test_rises_are_not_counted_from_another_text(tmp_path):
    run = Validations(tmp_path, 0.05)
    run.retention._text_now = {**run.retention._text, "ru": "other"}
    with pytest.raises(UserError, match=r"loss of Russian \(ru\) before training is not known on this text"):
        run.validate(10, 2.0, 0.0, 0.0)


def test_a_limit_of_zero_is_one_and_decides_the_result():
    config = {"model": {}, "data": {}, "profiling": {}, "trainer": {"max_retention_loss": None}}
    limits = (None, 0.0, 0.05)
    assert len({configuration_digest({**config, "trainer": {"max_retention_loss": each}}) for each in limits}) == 3
    assert configuration_digest(config) == configuration_digest({**config, "trainer": {}})


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["--trainer.max_retention_loss=-0.1"], "is -0.1; expected nats per token, at least 0, or null"),
        (["--trainer.max_retention_loss=0.1", "--data.watch=[]"], "but no language is watched"),
    ],
)
def test_a_limit_that_cannot_be_held_is_one_line(workplace, capsys, keys, line):
    assert main([*workplace.adapt("refused"), *keys]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_keeps_record_and_comparison_to_what_an_uninterrupted_one_chose(workplace):
    """With a limit that the first validations hold and later, better ones do not."""
    keys = {"trainer__validate_every": 6, "data__token_budget": 6144, "model__lr": 1e-3, "model__method": "full"}
    free = workplace.folder / "free/adapted"
    assert main(workplace.adapt("free", **keys)) == 0
    rows = [json.loads(line) for line in (free / "metrics.jsonl").read_text().splitlines()]
    rises = {row["step"]: row["val/change/qaa-Latn"] for row in rows if "val/change/qaa-Latn" in row}
    losses = {row["step"]: row["val/loss/qah-Deva"] for row in rows if "val/loss/qah-Deva" in row}
    limit = sorted(rises.values())[1] + 1e-6
    within = [step for step, rise in rises.items() if rise <= limit]
    chosen = min(within, key=lambda step: losses[step])
    assert chosen != min(rises, key=lambda step: losses[step])
    keys["trainer__max_retention_loss"] = limit
    assert main(workplace.adapt("whole", **keys)) == 0
    process = start(workplace.adapt("killed", **keys))
    for line in process.stdout:
        if line.startswith("step 18"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(workplace.adapt("killed", **keys)) == 0
    folders = [RunFolder(workplace.folder / name / "adapted") for name in ("whole", "killed")]
    for folder in folders:
        best = folder.best_checkpoint()
        assert re.match(rf"best-step{chosen:06d}-loss{losses[chosen]:.4f}", best.name)
        assert len(list(folder.checkpoints.iterdir())) == 2
        assert read_result(folder).target_loss == losses[chosen]
        assert load_adapted(folder.path).adaptation is not None
    one, other = (torch.load(folder.best_checkpoint(), weights_only=True) for folder in folders)
    assert one["callbacks"]["BestCheckpoint"] == other["callbacks"]["BestCheckpoint"]
    for name, weights in one["state_dict"].items():
        assert torch.equal(weights, other["state_dict"][name])
    results = [folder.record()["result"] for folder in folders]
    assert results[0]["best"] == results[1]["best"]
    assert results[0]["best"]["is_within_limit"]
