"""Counting activations and keeping them in an atlas, on a base that the program trained itself."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.languages import find_language
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.selection import select_subnetworks
from lightning_app.neurons.sizes import Sizes
from lightning_app.neurons.subnetworks import Subnetworks
from lightning_app.profiling.counting import GateCounter
from lightning_app.profiling.unfinished import UnfinishedCounts
from tests.conftest import LANGUAGES
from tests.faults import fault, note

TARGET = find_language("qah-Deva")


def test_atlas_counts_what_a_plain_forward_shows(workplace):
    path = workplace.atlas
    atlas = Atlas.load(path)
    assert set(atlas.counts) == set(LANGUAGES)
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "runs/base/model")
    shard = workplace.hub / "cis-lmu/GlotCC-V1/v1.0/qag-Geor/qag-Geor_0.parquet"
    import pyarrow.parquet as pq

    documents = pq.read_table(shard)["content"].to_pylist()
    stream = [i for text in documents[:200] for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    counts = torch.zeros(3, 128, dtype=torch.int64)
    for block in torch.tensor(stream)[:4096].reshape(-1, 128):
        with torch.no_grad():
            hidden = model.model(input_ids=block.unsqueeze(0), output_hidden_states=True).hidden_states
        for layer, ffn in enumerate(find_gated_ffns(model)):
            seen = []
            handle = ffn.module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                model.model(inputs_embeds=hidden[0])
            handle.remove()
            counts[layer] += (torch.nn.functional.silu(ffn.gate(seen[0])) > 0).sum((0, 1))
    assert atlas.tokens["qag-Geor"] == 4096
    # A gate within rounding of zero may differ between batch shapes.
    assert (atlas.counts["qag-Geor"] - counts).abs().max() <= 1


def profile(workplace, atlas, *more):
    keys = [key for key in workplace.adapt()[1:] if not key.startswith("--name")]
    assert main(["profile", *keys, f"--profiling.atlas={atlas}", *more]) == 0
    return Atlas.load(atlas)


def test_a_language_stops_when_the_sets_of_its_halves_overlap_enough(workplace):
    path = workplace.atlas
    full = Atlas.load(path)
    found = profile(workplace, workplace.folder / "stable.safetensors", "--profiling.stop_when_stable=0.5",
                    "--profiling.rate=0.8", "--profiling.quantile=0.3")  # fmt: skip
    assert set(found.stability) == set(LANGUAGES)
    stopped = 0
    for code, stability in found.stability.items():
        tokens, overlaps = zip(*stability["curve"], strict=True)
        assert tokens[-1] == found.tokens[code]
        assert list(tokens) == sorted(set(tokens))
        assert all(overlap < 0.5 for overlap in overlaps[:-1])
        assert overlaps[-1] >= 0.5 or tokens[-1] == full.tokens[code]
        stopped += tokens[-1] < full.tokens[code]
    assert stopped > 0


def test_counting_to_the_end_in_halves_gives_the_same_counts_and_the_overlap_of_its_halves(workplace):
    path = workplace.atlas
    full = Atlas.load(path)
    found = profile(workplace, workplace.folder / "halves.safetensors", "--profiling.stop_when_stable=1.0")
    for code, counts in full.counts.items():
        assert found.tokens[code] == full.tokens[code]
        assert (found.counts[code] - counts).abs().max() <= 1
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    halves = [dataclasses.replace(full, counts=dict(full.counts), tokens=dict(full.tokens)) for _ in range(2)]
    for manifest in (workplace.folder / "cache/tokens").glob("*/manifest.json"):
        code = next(
            (code for code, key in full.sources.items() if key == json.loads(manifest.read_text())["key"]), None
        )
        if code is None:
            continue  # of another test
        blocks = torch.from_file(str(manifest.with_name("tokens.bin")), size=4096, dtype=torch.int32).long()
        for half in range(2):
            counter = GateCounter(find_gated_ffns(model), torch.device("cpu"))
            with counter, torch.no_grad():
                for block in blocks.reshape(-1, 128)[half::2]:
                    model.model(input_ids=block.unsqueeze(0))
            halves[half].counts[code], halves[half].tokens[code] = counter.counts_HLN[0], 2048
    pool = [find_language(code) for code in LANGUAGES]
    sets = [select_subnetworks(half, pool, Sizes(0.1, 0.95)) for half in halves]
    for code, stability in found.stability.items():
        assert stability["curve"][-1][1] == pytest.approx(
            sets[0].neurons[code].overlap(sets[1].neurons[code]), abs=0.03
        )


class Killed(BaseException):
    """What a test puts in the place of a kill."""


@pytest.mark.parametrize("looks", [1, 4, 12])
@fault("a count until sets are stable is killed at look {looks}", lost="what was counted since that look")
def test_a_killed_count_until_stable_ends_as_an_undisturbed_one(looks, workplace, monkeypatch, capsys):
    """When a language stops depends on the halves of all, also of those that have stopped."""
    own = ['--profiling.languages=["qaa-Latn","qad-Cyrl","qah-Deva"]', "--profiling.stop_when_stable=0.5"]
    whole = profile(workplace, workplace.folder / f"undisturbed-{looks}.safetensors", *own)
    keep, path = UnfinishedCounts.keep, workplace.folder / f"killed-{looks}.safetensors"

    def kill(self, counts, done):
        keep(self, counts, done)
        if done == looks:
            raise Killed

    monkeypatch.setattr(UnfinishedCounts, "keep", kill)
    with pytest.raises(Killed):
        profile(workplace, path, *own)
    monkeypatch.setattr(UnfinishedCounts, "keep", keep)
    capsys.readouterr()
    found = profile(workplace, path, *own)
    said = next(line for line in capsys.readouterr().out.split("\n") if "going on with" in line)
    assert said.endswith(f"looked {looks} of 20 times")
    note(said)
    assert (found.tokens, found.stability) == (whole.tokens, whole.stability)
    assert all(torch.equal(found.counts[code], counts) for code, counts in whole.counts.items())
    assert not path.with_suffix(".unfinished").exists()


def test_counting_hooks_leave_the_forward_as_it_is(workplace):
    model = AutoModelForCausalLM.from_pretrained(workplace.folder / "runs/base/model")
    ids = torch.arange(20).unsqueeze(0)
    plain = model(input_ids=ids).logits
    counter = GateCounter(find_gated_ffns(model), torch.device("cpu"))
    with counter:
        assert torch.equal(model(input_ids=ids).logits, plain)
    model(input_ids=ids)
    assert 0 < counter.counts_HLN.sum(0).max() <= 20


def test_profiling_again_at_another_precision_uses_the_same_atlas(workplace, capsys):
    """The fingerprint of a base does not depend on the dtype it is loaded in."""
    assert main(["profile", *workplace.adapt()[1:], "--trainer.precision=bf16-mixed"]) == 0
    assert "8 of 8 languages counted before" in capsys.readouterr().out


def test_profile_extends_an_atlas_and_subnetwork_needs_no_model(workplace, capsys):
    atlas = workplace.folder / "extended.safetensors"
    keys = workplace.adapt()[1:]
    verb = ["profile", *keys, f"--profiling.atlas={atlas}"]
    assert main([*verb, '--profiling.languages=["qaa-Latn"]']) == 0
    few = Atlas.load(atlas)
    assert set(few.counts) == {"qaa-Latn", "qah-Deva"}
    assert main([*verb, '--profiling.languages=["qaa-Latn","qab-Latn"]']) == 0
    assert "2 of 3 languages counted before" in capsys.readouterr().out
    more = Atlas.load(atlas)
    assert torch.equal(more.counts["qaa-Latn"], few.counts["qaa-Latn"])
    written = workplace.folder / "selected.safetensors"
    assert main(["subnetwork", f"--atlas={atlas}", "--profiling.rate=0.2", f"--write={written}", "--json"]) == 0
    described = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert [row["neurons"] for row in described["languages"]] == [
        len(pairs) for pairs in Subnetworks.load(written).neurons.values()
    ]
    assert main(["subnetwork", f"--file={written}"]) == 0
    assert "overlap" in capsys.readouterr().out


def test_merged_atlases_are_the_sum(workplace):
    path = workplace.atlas
    one, two = Atlas.load(path), Atlas.load(path)
    one.merge(two, path)
    for code, counts in two.counts.items():
        assert torch.equal(one.counts[code], 2 * counts)
        assert one.tokens[code] == 2 * two.tokens[code]


def test_atlases_of_different_models_or_settings_do_not_merge(workplace):
    path = workplace.atlas
    atlas, other = Atlas.load(path), Atlas.load(path)
    other.model = dataclasses.replace(other.model, fingerprint="0123456789abcdef")
    with pytest.raises(UserError, match="another model"):
        atlas.merge(other, path)
    other = Atlas.load(path)
    other.block_size = 64
    with pytest.raises(UserError, match="blocks of 128"):
        atlas.merge(other, path)
