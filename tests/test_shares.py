"""Targets, replay and the text that a run is trained and validated on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules.flores import read_flores
from datamodules.glotcc import GlotCCDataModule
from datamodules.paper import paper_batches
from datamodules.shares import read_replay, read_targets
from tests.faults import fault, refusal
from tests.tokenizer_kinds import GEORGIAN, LATIN, TEXTS, made


@pytest.fixture
def data(hub, tmp_path):
    def make(language="qaa-Latn", tokenizer="byte-level", rank=0, world=1, batches=0, **keys):
        defaults = {"watch": ["qac-Latn"], "token_budget": 20_000, "block_size": 64, "seed": 3}
        module = GlotCCDataModule(
            language, source=str(hub), flores=str(hub), cache_dir=str(tmp_path / "cache"), **{**defaults, **keys}
        )
        module.corpus.tokenizer = made(tokenizer)
        module.trainer = SimpleNamespace(
            global_rank=rank, world_size=world, accumulate_grad_batches=1, max_steps=-1,
            fit_loop=SimpleNamespace(batch_idx=batches - 1), global_step=batches,
        )  # fmt: skip
        module.setup("fit")
        return module

    return make


def drawn_by_language(module):
    """Sequences of the order by language, in the order of `shares`."""
    dataset = module.train_dataloader().dataset
    positions = [index for batch in module.train_dataloader().batch_sampler for index in batch]
    which = np.searchsorted(dataset.cumulative_sizes, positions, side="right")
    return np.bincount(which, minlength=len(module.shares)).tolist(), positions


def test_replay_takes_its_share_of_the_budget(data):
    module = data(replay={"qab-Latn": 0.2, "qaf-Grek": 0.1})
    counts, _ = drawn_by_language(module)
    assert [share.language.short for share in module.shares] == ["qaa-Latn", "qab-Latn", "qaf-Grek"]
    assert [share.share for share in module.shares] == pytest.approx([0.7, 0.2, 0.1])
    assert counts == pytest.approx([218, 62, 31], abs=1)
    assert [share.language.short for share in module.targets] == ["qaa-Latn"]
    assert [language.short for language in module.validation_languages] == ["qaa-Latn", "qac-Latn"]


def test_replay_shrinks_with_the_targets_text_and_repeats_its_own(data, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("\n\n".join(TEXTS[:40]), encoding="utf-8")
    few = {"qaa-Latn": str(tmp_path / "few.txt")}
    module = data(token_budget=10**6, files=few, replay={"qab-Latn": 0.25})
    counts, _ = drawn_by_language(module)
    assert counts[1] == pytest.approx(counts[0] / 3, abs=1)
    assert "replay of qab-Latn shrinks from 250k to" in capsys.readouterr().out
    module = data("qab-Latn", files=few, replay={"qaa-Latn": 0.5})
    counts, positions = drawn_by_language(module)
    assert counts[0] == pytest.approx(counts[1], abs=1)
    repeats = np.bincount([p for p in positions if p >= len(module.train_dataloader().dataset.datasets[0])])
    assert repeats.max() > 1
    assert "it is passed" in capsys.readouterr().out


@pytest.mark.parametrize("chunking", ["packed", "paper"])
def test_a_run_with_replay_resumes_exactly_on_any_number_of_processes(data, chunking):
    keys = {"replay": {"qab-Latn": 0.3}, "chunking": chunking, "batch_size": 2}
    state, done, consumed = None, 0, []
    for world, batches in ((1, 6), (2, 5), (1, 8)):
        ranks = []
        for rank in range(world):
            module = data(rank=rank, world=world, batches=done + batches, **keys)
            if state is not None:
                module.load_state_dict(json.loads(json.dumps(state)))
            sampler = iter(module.train_dataloader().batch_sampler)
            ranks.append([next(sampler) for _ in range(batches)])
        for step in zip(*ranks, strict=True):
            consumed += [index for row in zip(*step, strict=True) for index in row]
        state, done = module.state_dict(), done + batches
    _, whole = drawn_by_language(data(**keys))
    assert consumed == whole[: len(consumed)]
    other = data(**{**keys, "replay": {"qab-Latn": 0.2}})
    with refusal("other text"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("language", "replay", "message"),
    [
        ("cy", {"en": 0.0}, "above 0"),
        ("cy", {"en": 1.0}, "above 0"),
        ("cy", {"en": -0.1}, "above 0"),
        ("cy", {"en": float("nan")}, "above 0"),
        ("cy", {"en": 0.5, "fr": 0.5}, "less than 1"),
        ("cy,en", {"English": 0.1}, "English .* is a target"),
        ("cy", {"en": 0.1, "English": 0.1}, "named twice"),
        ("cy", {"klingon": 0.1}, "unknown language"),
        (None, {"en": 0.1}, "name a target"),
    ],
)
@fault("--data.replay is {replay} beside {language}")
def test_replay_that_makes_no_sense_is_refused_in_one_line(language, replay, message):
    with refusal(message):
        read_replay(replay, read_targets(language, None), is_mixture=False)
    with refusal("into the mixture"):
        read_replay(replay, read_targets(None, {"de": 1}), is_mixture=True)


def test_several_targets_are_trained_and_validated_by_share(data):
    module = data("qaa-Latn:3,qag-Geor:1", replay={"qab-Latn": 0.2}, watch=["qag-Geor", "qab-Latn"])
    assert [(share.language.short, share.share) for share in module.targets] == [("qaa-Latn", 0.75), ("qag-Geor", 0.25)]
    assert [share.share for share in module.shares] == pytest.approx([0.6, 0.2, 0.2])
    assert module.target == LATIN
    assert [language.short for language in module.validation_languages] == ["qaa-Latn", "qag-Geor", "qab-Latn"]
    counts, _ = drawn_by_language(module)
    assert counts == pytest.approx([187, 62, 62], abs=1)
    assert set(module.caches) == {"qaa-Latn", "qag-Geor", "qab-Latn"}
    (prompts,) = [list(module.predict_dataloader())]
    first = read_flores(module.flores, LATIN, "devtest", module.corpus.cache_dir)[0]
    assert first.startswith(prompts[0][0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_papers_batches_follow_the_validation_loaders_and_are_shared_whole(data, world):
    ranks = [data("qaa-Latn,qag-Geor", "dummy prefix", rank, world, paper_loss=True) for rank in range(world)]
    assert ranks[0].paper_languages == [LATIN, GEORGIAN]
    loaders = [module.val_dataloader() for module in ranks]
    assert {len(each) for each in loaders} == {3 + 2}
    for index, language in enumerate(ranks[0].paper_languages):
        sentences = read_flores(ranks[0].flores, language, "dev", ranks[0].corpus.cache_dir, "keep")
        expected = paper_batches(sentences, made("dummy prefix"), 64, 2)
        for rank, each in enumerate(loaders):
            every = list(each[3 + index])
            found = [batch for batch in every if batch["attention_mask"].any()]
            assert len(every) == -(-len(expected) // world)  # as many everywhere
            assert [b["input_ids"].tolist() for b in found] == [b["input_ids"].tolist() for b in expected[rank::world]]
    assert data().paper_languages == []
    assert len(data().val_dataloader()) == 2


def test_validation_text_has_an_identity(data, tmp_path):
    one = data().validation_id()
    assert set(one) == {"qaa-Latn", "qac-Latn"}
    assert one == data(token_budget=5000, seed=9, batch_size=1).validation_id()
    assert not set(one.values()) & set(data(block_size=50).validation_id().values())
    assert one["qaa-Latn"] != data(tokenizer="byte-level with BOS").validation_id()["qaa-Latn"]


def test_the_papers_dev_set_keeps_what_devtest_holds(tmp_path):
    for split, lines in (("dev", ["erste zeile", "zweite zeile"]), ("devtest", ["zweite zeile", "dritte zeile"])):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"qaa_Latn.{split}").write_text("\n".join(lines) + "\n")
    assert read_flores(str(tmp_path), LATIN, "dev", tmp_path, "keep") == ["erste zeile", "zweite zeile"]
    found = {}
    for overlap in ("drop", "keep"):
        module = GlotCCDataModule(
            "qaa-Latn", flores=str(tmp_path), flores_overlap=overlap, watch=[], cache_dir=str(tmp_path)
        )
        module.corpus.tokenizer = made("byte-level")
        module.setup("validate")
        found[overlap] = [block.text_bytes for block in module.evaluation["qaa-Latn"]]
    assert found == {"drop": [len("erste zeile")], "keep": [len("erste zeile zweite zeile")]}
