"""Sizes of subnetworks beside the paper's one rate, and atlases of many languages."""

import json

import pytest
import torch

from lightning_app.cli import main
from lightning_app.errors import UserError
from lightning_app.identity import ModelIdentity
from lightning_app.languages import expand_languages, find_language, known_languages
from lightning_app.neurons import lape
from lightning_app.neurons.atlas import Atlas, sum_atlases
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.neurons.selection import select_subnetworks
from lightning_app.neurons.sizes import Sizes, select
from lightning_app.neurons.subnetworks import Subnetworks, overlaps, read_released_masks
from tests.faults import fault, note

POOL = [find_language(code) for code in ("mt", "af", "is", "cy")]
D = 8


def random_atlas(seed=0, layers=5, neurons=40, pool=POOL):
    generator = torch.Generator().manual_seed(seed)
    atlas = Atlas(ModelIdentity("tiny", "", "f", layers, neurons, D, 9999), "tokenizer", 64)
    for language in pool:
        counts = torch.randint(0, 1000, (layers, neurons), generator=generator)
        atlas.add(language, counts, 1000, {"data_set": "x", "configuration": language.glotcc})
    return atlas


def ranked(prob_LNK, tau):
    """All neurons as (layer, neuron), lowest entropy first."""
    neurons = prob_LNK.shape[1]
    return [divmod(place, neurons) for place in lape.rank_neurons(prob_LNK, tau).tolist()]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rate", "quantile"), [(0.05, 0.95), (0.3, 0.5), (1.0, 0.2)])
def test_the_default_sizes_are_the_papers_selection(seed, rate, quantile):
    prob_LNK = random_atlas(seed).probability(POOL)
    expected, tau = lape.select(prob_LNK, rate, quantile)
    pairs, taus = select(prob_LNK, POOL, Sizes(rate, quantile), D)
    assert taus == [tau] * len(POOL)
    assert all(torch.equal(*each) for each in zip(pairs, expected, strict=True))


def test_a_rate_of_its_own_leaves_the_others_as_they_are():
    atlas = random_atlas()
    plain = select_subnetworks(atlas, POOL, Sizes(0.1, 0.5))
    deeper = select_subnetworks(atlas, POOL, Sizes(0.1, 0.5, {"Welsh": 0.4}))
    alike = select_subnetworks(atlas, POOL, Sizes(0.4, 0.5))
    for language in POOL:
        expected = alike if language.short == "cy" else plain
        assert torch.equal(deeper.of(language).pairs, expected.of(language).pairs)
    assert len(deeper.of(POOL[3])) > len(plain.of(POOL[3]))


@pytest.mark.parametrize("neurons", [1, 7, 23])
def test_a_budget_of_parameters_takes_each_languages_best_neurons(neurons):
    atlas, sizes = random_atlas(), Sizes(0.05, 0.5, parameters=neurons * 3 * D + 5)
    prob_LNK = atlas.probability(POOL)
    tau = lape.activation_threshold(prob_LNK, 0.5)
    for k, language in enumerate(POOL):
        best = [(i, n) for i, n in ranked(prob_LNK, tau) if prob_LNK[i, n, k] > tau][:neurons]
        found = select_subnetworks(atlas, POOL, sizes).of(language)
        assert [tuple(pair) for pair in found.pairs.tolist()] == sorted(best)
        assert found.parameters(D) == neurons * 3 * D


def test_thresholds_of_each_language_are_quantiles_of_its_own_probabilities():
    atlas = random_atlas()
    atlas.counts["cym-Latn"] //= 10  # a language that opens few gates gets nothing by the pool's threshold
    by_pool = select_subnetworks(atlas, POOL, Sizes(0.3, 0.9))
    found = select_subnetworks(atlas, POOL, Sizes(0.3, 0.9, threshold="language"))
    assert len(by_pool.of(POOL[3])) == 0 < len(found.of(POOL[3]))
    prob_LNK = atlas.probability(POOL)
    for k, language in enumerate(POOL):
        tau = lape.activation_threshold(prob_LNK[..., k], 0.9)
        assert found.sizes["taus"][language.glotcc] == tau
        layer, neuron = found.of(language).pairs.T
        assert (prob_LNK[layer, neuron, k] > tau).all()
    assert found.tau is None


@pytest.mark.parametrize("budget", [None, 20 * 3 * D])
def test_caps_and_floors_of_layers_keep_the_best_of_each(budget):
    atlas = random_atlas()
    prob_LNK = atlas.probability(POOL)
    tau = lape.activation_threshold(prob_LNK, 0.5)
    found = select_subnetworks(atlas, POOL, Sizes(0.2, 0.5, parameters=budget, most_per_layer=5, fewest_per_layer=3))
    for k, language in enumerate(POOL):
        counts = found.of(language).per_layer(5)
        assert all(3 <= count <= 5 for count in counts)
        for layer, indices in found.of(language).by_layer.items():
            best = [n for i, n in ranked(prob_LNK, tau) if i == layer and prob_LNK[i, n, k] > tau]
            assert indices.tolist() == sorted(best[: len(indices)])
        if budget is not None:
            assert sum(counts) == 20


def test_sizes_are_kept_in_the_file_and_told_beside_the_rate(tmp_path, capsys):
    atlas = random_atlas()
    atlas.save(tmp_path / "atlas.safetensors")
    command = ["subnetwork", f"--atlas={tmp_path}/atlas.safetensors", "--profiling.quantile=0.5"]
    more = ["--profiling.parameters=0.5k", "--profiling.rate=0.2", f"--write={tmp_path}/s.safetensors", "--json"]
    assert main([*command, *more]) == 0
    figures = json.loads(capsys.readouterr().out)
    loaded = Subnetworks.load(tmp_path / "s.safetensors")
    assert loaded.sizes == figures["sizes"] == {"parameters": 500}
    default = select_subnetworks(atlas, POOL, Sizes(0.2, 0.5))
    for row in figures["languages"]:
        language = find_language(row["short"])
        assert row["neurons"] == len(loaded.of(language)) == 500 // (3 * D)
        assert row["neurons_by_rate"] == len(default.of(language))
    assert main([*command, *more[:-1]]) == 0
    assert "by rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        ({"rates": {"cy": 0.0}}, "expected each language once, with a rate above 0, up to 1"),
        ({"rates": {"cy": 0.1, "Welsh": 0.2}}, "each language once"),
        ({"parameters": "many"}, "expected a number of weights above zero, as 50M or 800k"),
        ({"parameters": 0}, "weights above zero"),
        ({"most_per_layer": 0}, "0 <= fewest <= most"),
        ({"most_per_layer": 2, "fewest_per_layer": 3}, "0 <= fewest <= most"),
        ({"rate": 2.0}, "expected 0 < rate <= 1"),
    ],
)
@fault("a size of a subnetwork is none")
def test_sizes_that_cannot_be_are_refused(keys, pattern):
    with pytest.raises(UserError, match=pattern) as refusal:
        Sizes(**keys)
    note(str(refusal.value))


@fault("a language has a rate and is not in the pool")
def test_a_rate_of_a_language_outside_the_pool_is_refused():
    with pytest.raises(UserError, match=r"names Georgian \(ka\), which is not in the pool") as refusal:
        select_subnetworks(random_atlas(), POOL, Sizes(0.1, 0.5, {"ka": 0.2}))
    note(str(refusal.value))


def test_masks_are_written_as_they_are_released(shared, tmp_path):
    order = [find_language(code) for code in ("mt", "af", "is", "cy", "mk", "lv", "lt", "sl", "sk", "et", "ka", "ne")]
    read_released_masks(shared / "masks/llama-3.1-5.pt", order).save_released(tmp_path / "masks.pt")
    released, written = (torch.load(path, weights_only=True) for path in (
        shared / "masks/llama-3.1-5.pt", tmp_path / "masks.pt"))  # fmt: skip
    assert [len(layers) for layers in written] == [32] * 12
    for ours, theirs in zip(written, released, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_overlaps_of_many_are_those_of_each_two():
    generator = torch.Generator().manual_seed(1)
    sets = {
        name: NeuronSet({n: torch.randint(0, 30, (size,), generator=generator) for n in range(3)})
        for name, size in (("a", 9), ("b", 20), ("c", 1), ("d", 0))
    }
    assert overlaps(sets) == {a: {b: sets[a].overlap(sets[b]) for b in sets if b != a} for a in sets}
    assert overlaps({}) == {}


def test_two_subnetworks_are_compared_language_by_language(tmp_path, capsys):
    for seed, path in ((0, "one"), (1, "other")):
        random_atlas(seed).save(tmp_path / f"{path}.safetensors")
    keys = ["--profiling.quantile=0.5", "--profiling.rate=0.3", "--json"]
    one = ["subnetwork", f"--atlas={tmp_path}/one.safetensors", *keys]
    assert main([*one, f"--against={tmp_path}/one.safetensors"]) == 0
    for row in json.loads(capsys.readouterr().out)["languages"]:
        assert (row["overlap"], row["depth_distance"], row["shared"]) == (1.0, 0.0, row["neurons"])
    assert main([*one, f"--against={tmp_path}/other.safetensors"]) == 0
    found = json.loads(capsys.readouterr().out)["languages"]
    sets = [select_subnetworks(random_atlas(seed), POOL, Sizes(0.3, 0.5)) for seed in (0, 1)]
    for row in found:
        language = find_language(row["short"])
        assert row["overlap"] == sets[0].of(language).overlap(sets[1].of(language))
        assert 0 < row["depth_distance"] < 1


def test_groups_of_languages_are_named_by_family_script_file_and_all(tmp_path):
    (tmp_path / "mine.txt").write_text("# mine\nWelsh\n\nfamily:Baltic  # and these\n")
    pool, optional = expand_languages(f"mt,{tmp_path}/mine.txt")
    assert [language.short for language in pool] == ["mt", "cy", "lv", "lt", "ltg"]
    assert {language.short for language in optional} == {"lv", "lt", "ltg"}
    pool, optional = expand_languages("all, cy")
    assert pool == list(known_languages())
    assert find_language("cy") not in optional
    assert {language.script for language in expand_languages("script:Geor")[0]} == {"Geor"}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("family:Celtik", "did you mean 'Celtic'"), ("script:Xxxx", "the table has"), ("mt,,cy", "no language between"),
     ("klingon", "unknown language")],
)  # fmt: skip
@fault("languages to profile are unknown")
def test_unknown_groups_are_refused(text, pattern):
    with pytest.raises(UserError, match=pattern) as refusal:
        expand_languages(text)
    note(str(refusal.value))


def test_parts_of_a_job_add_up_to_the_atlas_of_all(tmp_path, capsys):
    whole = random_atlas()
    for part in (0, 1):
        some = random_atlas()
        for language in POOL[1 - part :: 2]:
            some.remove(language)
        some.save(tmp_path / f"part-{part}.safetensors")
    command = ["atlas", f"--atlas={tmp_path}/part-*.safetensors", f"--write={tmp_path}/sum.safetensors"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "4 languages" in said
    assert "Welsh (cy)" in said
    summed = Atlas.load(tmp_path / "sum.safetensors")
    assert summed.tokens == {code: whole.tokens[code] for code in summed.tokens}
    assert all(torch.equal(summed.counts[code], whole.counts[code]) for code in whole.counts)
    with pytest.raises(UserError, match="which no file matches"):
        sum_atlases(f"{tmp_path}/nothing-*.safetensors")


def test_a_job_over_a_group_leaves_out_what_has_no_text_and_goes_on_by_parts(workplace, tmp_path, capsys):
    (tmp_path / "pool.txt").write_text("qae-Cyrl\n")
    keys = [key for key in workplace.adapt()[1:] if not key.startswith("--name")]
    command = ["profile", *keys, f"--languages=family:Celtic,{tmp_path}/pool.txt,qag-Geor"]
    paths = [tmp_path / f"atlases/{part}.safetensors" for part in (1, 2)]
    for part, path in enumerate(paths, start=1):
        assert main([*command, f"--profiling.atlas={path}", f"--part={part}/2"]) == 0
        said = capsys.readouterr()
        assert "left out: " in said.out
    atlas = sum_atlases(str(tmp_path / "atlases/*.safetensors"))
    assert set(atlas.counts) == {"qae-Cyrl", "qag-Geor"}
    before = Atlas.load(workplace.atlas)
    assert all(torch.equal(atlas.counts[code], before.counts[code]) for code in atlas.counts)
    assert main([*command, f"--profiling.atlas={paths[0]}", "--part=3/2"]) == 2
    assert "--part is 3/2; expected a part of the" in capsys.readouterr().err
