"""Figures of sets, scores and weights against plain recounts, and the verb that writes them."""

import itertools
import json
import math
import re
import statistics

import pytest
import torch

from lightning_app.analysis.neuron_map import compare_languages, map_neurons
from lightning_app.analysis.scores import distribute_scores, trace_stability
from lightning_app.analysis.weight_change import measure_change, read_vectors
from lightning_app.cli import main as command_line
from lightning_app.errors import UserError
from lightning_app.identity import ModelIdentity
from lightning_app.languages import PAPER_LANGUAGES, find_language
from lightning_app.neurons import lape
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.selection import random_neurons, select_subnetworks
from lightning_app.neurons.sizes import Sizes
from lightning_app.neurons.subnetworks import read_subnetworks
from lightning_app.reports.analysis.every import show
from lightning_app.reports.layout import as_json
from tests.conftest import tiny_model

POOL = [find_language(code) for code in ("cy", "sl", "mk", "sk", "ka", "ru")]
# The paper's masks as method.md knows them: width, neurons of each language, most in one layer, overlaps.
RELEASED = {
    "llama-3.1-5.pt": (
        14336, 32, (3015, 2581, 5033, 6020, 1743, 3212, 2978, 2046, 1940, 3204, 1150, 4625), 1152,
        {("lv", "lt"): 0.23, ("mk", "sl"): 0.245},
    ),
    "mistral-nemo-5.pt": (
        14336, 40, (3611, 3557, 5644, 8239, 2403, 3741, 3840, 2365, 2310, 3815, 2028, 5567), 1213, {},
    ),
}  # fmt: skip


def make_atlas(seed=0, layers=4, neurons=50, tokens=1000):
    generator = torch.Generator().manual_seed(seed)
    atlas = Atlas(ModelIdentity("m", "", "f" * 16, layers, neurons, 16, 10_000), "t", 64)
    for language in POOL:
        counts = (tokens * torch.rand(layers, neurons, generator=generator) ** 3).long()
        atlas.add(language, counts, tokens, {})
    return atlas


@pytest.mark.parametrize("file", RELEASED)
def test_the_released_masks_give_the_papers_figures(shared, file):
    width, layers, neurons, most, overlaps = RELEASED[file]
    subnetworks = read_subnetworks(shared / "masks" / file, ",".join(PAPER_LANGUAGES))
    plain = [
        {(layer, int(i)) for layer, indices in enumerate(language) for i in torch.as_tensor(indices).flatten()}
        for language in torch.load(shared / "masks" / file, weights_only=True)
    ]
    found = map_neurons(subnetworks, width)
    assert found.neurons == neurons == tuple(map(len, plain))
    assert found.layers == layers
    for row, own in zip(found.per_layer, plain, strict=True):
        assert list(row) == [sum(layer == at for layer, _ in own) for at in range(layers)]
    union = set().union(*plain)
    assert list(found.union_per_layer) == [sum(layer == at for layer, _ in union) for at in range(layers)]
    assert round(100 * found.union_share, 1) == 5.0
    assert 0.86 < found.last_third < 0.89
    assert max(map(max, found.per_layer)) == most
    for by in ("family", "script"):
        matrix = compare_languages(subnetworks, by)
        assert round(matrix.median, 2) in (0.05, 0.06)
        short = [each.short for each in matrix.languages]
        for (a, one), (b, other) in itertools.product(enumerate(short), repeat=2):
            first, second = plain[PAPER_LANGUAGES.index(one)], plain[PAPER_LANGUAGES.index(other)]
            assert matrix.shared[a][b] == len(first & second)
            assert matrix.jaccard[a][b] == pytest.approx(len(first & second) / len(first | second))
        for (one, other), jaccard in overlaps.items():
            assert matrix.jaccard[short.index(one)][short.index(other)] == pytest.approx(jaccard, abs=0.005)


@pytest.mark.parametrize("by", ["family", "script"])
def test_languages_of_one_group_stand_side_by_side_and_means_are_those_of_the_pairs(by):
    subnetworks = select_subnetworks(make_atlas(), POOL, Sizes(0.4, 0.5))
    found = compare_languages(subnetworks, by)
    assert set(found.languages) == set(POOL)
    assert [group for group, _ in itertools.groupby(found.groups)] == sorted(set(found.groups))
    within, between = [], []
    for a, b in itertools.combinations(range(len(POOL)), 2):
        one, other = (subnetworks.of(found.languages[place]) for place in (a, b))
        same = getattr(found.languages[a], by) == getattr(found.languages[b], by)
        (within if same else between).append(one.overlap(other))
    assert found.within == pytest.approx(statistics.fmean(within))
    assert found.between == pytest.approx(statistics.fmean(between))
    assert found.median == pytest.approx(statistics.median(within + between))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_counted_and_cut_as_a_naive_loop_does(seed):
    atlas, rate, quantile = make_atlas(seed), 0.1, 0.9
    found = distribute_scores(atlas, POOL, rate, quantile)
    prob = atlas.probability(POOL)
    entropies = []
    for row in prob.tolist():
        for p in row:
            q = [x / sum(p) for x in p if x] if sum(p) else []
            entropies.append((-math.fsum(x * math.log(x) for x in q), max(p) > found.tau))
    active = sorted(entropy for entropy, is_active in entropies if is_active)
    assert found.neurons == len(entropies) == 200
    assert found.silent == len(entropies) - len(active) == sum(found.silent_entropies.counts)
    assert sum(found.entropies.counts) == len(active)
    assert found.taken == 20
    assert found.cut == pytest.approx(active[19])
    assert sum(found.probabilities.counts) == prob.numel()
    for histogram, values in ((found.entropies, active), (found.probabilities, prob.flatten().tolist())):
        edges = histogram.edges
        for i in range(len(edges) - 1):
            is_last = i == len(edges) - 2
            inside = [edges[i] + 1e-12 < v < edges[i + 1] - 1e-12 for v in values]
            touching = [edges[i] - 1e-12 <= v <= edges[i + 1] + 1e-12 for v in values]
            assert sum(inside) <= histogram.counts[i] <= sum(touching) or is_last
    pairs, tau = lape.select(prob, rate, quantile)
    assert tau == found.tau
    taken = torch.cat(pairs).unique(dim=0)
    assert lape.entropy(prob)[taken[:, 0], taken[:, 1]].max() == found.cut


def test_fewer_active_neurons_than_the_rate_takes_have_no_cut():
    found = distribute_scores(make_atlas(), POOL, 1.0, 0.99)
    assert found.cut is None
    assert found.taken == found.neurons - found.silent
    assert show(found).table


def test_stability_is_what_the_atlas_kept():
    atlas = make_atlas()
    atlas.stability["cym-Latn"] = {"rate": 0.05, "quantile": 0.95, "curve": [[100, 0.5], [200, 0.75]]}
    (curve,) = trace_stability(atlas).curves
    assert (curve.language.short, curve.tokens, curve.overlaps) == ("cy", (100, 200), (0.5, 0.75))
    assert "0.750" in show(trace_stability(atlas)).table


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_weight_change_is_that_of_a_plain_loop_over_the_matrices(architecture):
    before, after = tiny_model(architecture), tiny_model(architecture)
    neurons = random_neurons(20, 3, 48, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, index in neurons.pairs.tolist():
            mlp = after.model.layers[layer].mlp
            fused = architecture == "phi3"
            rows = [mlp.gate_up_proj.weight[index], mlp.gate_up_proj.weight[48 + index]] if fused else []
            rows = rows or [mlp.gate_proj.weight[index], mlp.up_proj.weight[index]]
            for row, size in (*((row, 0.1) for row in rows), (mlp.down_proj.weight[:, index], 0.4)):
                row += size * torch.randn(32, generator=generator)
    found = measure_change(read_vectors(before, neurons), read_vectors(after, neurons), layers=3)
    for each in found.changes:
        old, new = (_plain_vectors(m.model.layers[each.layer].mlp, each.projection) for m in (before, after))
        own = [i for layer, i in neurons.pairs.tolist() if layer == each.layer]
        norms = [math.dist(new[i], old[i]) for i in own]
        assert each.neurons == len(own)
        assert each.mean_l2 == pytest.approx(statistics.fmean(norms))
        assert each.l2 == pytest.approx(math.hypot(*norms))
        assert each.relative == pytest.approx(math.hypot(*norms) / math.hypot(*(x for i in own for x in old[i])))
        assert sum(each.histogram.counts) == len(own)
        low, high = each.histogram.edges[0], each.histogram.edges[-1]
        assert low <= min(norms) * (1 + 1e-6)
        assert max(norms) <= high * (1 + 1e-6)
    by_key = {(each.layer, each.projection): each.mean_l2 for each in found.changes}
    for layer, ratio in found.asymmetry.items():
        assert ratio == pytest.approx(2 * by_key[layer, "down"] / (by_key[layer, "gate"] + by_key[layer, "up"]))
        assert 3 < ratio < 5
    assert found.asymmetry_last_third == pytest.approx(found.asymmetry[2])


def _plain_vectors(mlp, projection):
    """Rows of gate and up, columns of down, as lists."""
    if projection == "down":
        return mlp.down_proj.weight.t().tolist()
    if hasattr(mlp, "gate_up_proj"):
        return mlp.gate_up_proj.weight.tolist()[:48] if projection == "gate" else mlp.gate_up_proj.weight.tolist()[48:]
    return getattr(mlp, f"{projection}_proj").weight.tolist()


def test_a_model_against_itself_changed_nowhere_and_other_neurons_are_refused():
    vectors = read_vectors(tiny_model("llama"), None)
    found = measure_change(vectors, vectors, layers=3)
    assert len(found.changes) == 9
    assert all(each.neurons == each.unmoved == 48 and each.l2 == 0 for each in found.changes)
    assert found.asymmetry == {}
    assert show(found).table
    with pytest.raises(UserError, match="not of the same neurons"):
        measure_change(vectors, read_vectors(tiny_model("llama"), random_neurons(5, 3, 48, seed=0)), layers=3)


def test_a_run_is_analysed_into_files_that_say_what_the_terminal_says(workplace, tmp_path, capsys):
    run = workplace.folder / "runs/adapted"
    keys = [f"--data.flores={workplace.hub}", "--sentences=6", "--trainer.accelerator=cpu"]
    assert command_line(["analyze", str(run), "--out", str(tmp_path), *keys]) == 0
    said = capsys.readouterr().out
    of_language = ("tokens-qah-Deva", "alignment-qah-Deva")
    for name in ("neurons", "overlap-family", "overlap-script", "scores", "change", *of_language, "causal"):
        for suffix in ("json", "png", "svg"):
            assert (tmp_path / f"{name}.{suffix}").stat().st_size > 500
    for name, why in (("stability", "stop_when_stable"), ("script", "--what names it")):
        assert re.search(f"left out: {name}, .*{why}", said)
    neurons = json.loads((tmp_path / "neurons.json").read_text())["result"]
    place = neurons["languages"].index("qah-Deva")
    change = json.loads((tmp_path / "change.json").read_text())["result"]
    gates = [each["neurons"] for each in change["changes"] if each["projection"] == "gate"]
    assert sum(gates) == neurons["neurons"][place] == sum(neurons["per_layer"][place])
    assert all(each["unmoved"] < each["neurons"] for each in change["changes"])
    scores = json.loads((tmp_path / "scores.json").read_text())["result"]
    assert f"{scores['tau']:.4f}" in said
    assert scores["rate"] == 0.1
    # FLORES has none of the paper's languages here: those of the pool are compared.
    alignment = json.loads((tmp_path / "alignment-qah-Deva.json").read_text())["result"]
    assert sorted(alignment["others"]) == sorted(set(neurons["languages"]) - {"qah-Deva"})


def test_what_cannot_be_analysed_is_one_line(workplace, tmp_path, capsys):
    atlas = str(workplace.atlas)
    for arguments, line in (
        ([atlas, "--what", "neuron"], "--what has no 'neuron'; did you mean 'neurons'?"),
        ([atlas, "--what", "change"], "change cannot be made: there is no adapted model"),
        ([str(tmp_path / "nowhere")], "there is nothing at"),
        ([str(tmp_path)], "is no run with a checkpoint"),
        ([atlas, "--languages", "cy"], "lacks Welsh"),
    ):
        assert command_line(["analyze", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_become_json_with_codes_for_languages():
    found = map_neurons(select_subnetworks(make_atlas(), POOL, Sizes(0.4, 0.5)))
    data = json.loads(as_json(found))
    assert data["languages"] == [language.short for language in POOL]
    assert data["per_layer"] == [list(row) for row in found.per_layer]
