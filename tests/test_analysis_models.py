"""What analyses read out of a model, against plain transformers and models that were changed by hand."""

import copy
import itertools
import math
import statistics
import string

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from datamodules.flores import FloresBlock
from lightning_app.analysis.alignment import mean_states, similarities
from lightning_app.analysis.causality import loss_of, measure_selectivity, switched_off
from lightning_app.analysis.promotion import describe_moved, most_moved, outputs_of, raised_tokens
from lightning_app.analysis.script_control import control_script, count_halves, load_romaniser
from lightning_app.analysis.weight_change import read_vectors
from lightning_app.errors import UserError
from lightning_app.identity import ModelIdentity
from lightning_app.languages import find_language
from lightning_app.methods.adapter_training import merge_adapters
from lightning_app.methods.registry import build_method
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.neurons.atlas import Atlas
from lightning_app.neurons.selection import random_neurons, random_per_layer, select_subnetworks
from lightning_app.neurons.sizes import Sizes
from lightning_app.reports.analysis.every import show
from tests.conftest import tiny_model

CY, EN, MK, SL = map(find_language, ("cy", "en", "mk", "sl"))
SENTENCES = ["one two three", "a", "the quick brown fox jumps over it", "four five", "six seven eight nine"]


def letters():
    """A tokenizer of single letters that puts BOS before a text, of as many entries as the tiny models have."""
    entries = ["<pad>", "<s>", "</s>", "<unk>", *string.ascii_lowercase, *string.ascii_uppercase, *string.punctuation]
    backend = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate([*entries, " "])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def plain_states(model, tokenizer, sentence, with_specials):
    """By transformers alone, a sentence at a time; the last layer's states before the final norm."""
    ids = torch.tensor([tokenizer(sentence)["input_ids"]])
    model = copy.deepcopy(model)
    model.model.norm = torch.nn.Identity()
    states = model(ids, output_hidden_states=True).hidden_states[1:]
    return torch.stack([state[0, 0 if with_specials else 1 :].mean(0) for state in states])


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "phi3"])
@pytest.mark.parametrize("with_specials", [False, True])
def test_mean_states_and_similarities_are_those_of_plain_transformers(architecture, with_specials):
    model, tokenizer = tiny_model(architecture).eval(), letters()
    found = mean_states(model, tokenizer, SENTENCES, with_specials, tokens_at_once=40)
    plain = torch.stack([plain_states(model, tokenizer, each, with_specials) for each in SENTENCES])
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    others = [each[::-1].upper() for each in SENTENCES]
    cosines = similarities(model, tokenizer, list(zip(SENTENCES, others, SENTENCES, strict=True)), with_specials)
    plain_others = [plain_states(model, tokenizer, each, with_specials) for each in others]
    for layer in range(3):
        each = [float(F.cosine_similarity(a[layer], b[layer], dim=0)) for a, b in zip(plain, plain_others, strict=True)]
        assert cosines[0][layer] == pytest.approx(statistics.fmean(each), abs=1e-5)
        assert cosines[1][layer] == pytest.approx(1.0, abs=1e-5)


def zeroed(model, neurons):
    """The model with every number of these neurons set to 0 by hand."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer, i in neurons.pairs.tolist():
            ffn = model.model.layers[layer].mlp
            ffn.down_proj.weight[:, i] = 0
            if hasattr(ffn, "gate_up_proj"):
                ffn.gate_up_proj.weight[[i, 48 + i]] = 0
                continue
            for linear in (ffn.gate_proj, ffn.up_proj):
                linear.weight[i] = 0
                if linear.bias is not None:
                    linear.bias[i] = 0
    return model


@pytest.mark.parametrize("architecture", ["llama", "llama-bias", "phi3", "gemma2"])
def test_switching_neurons_off_equals_a_model_whose_rows_are_zeroed(architecture):
    model, neurons = tiny_model(architecture).eval(), random_neurons(30, 3, 48, seed=2)
    ids = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    before, expected = model(ids).logits, zeroed(model, neurons)(ids).logits
    with switched_off(model, neurons):
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert torch.equal(model(ids).logits, before)


def test_selectivity_is_the_rise_of_plain_losses_of_zeroed_models():
    model, generator = tiny_model("llama").eval(), torch.Generator().manual_seed(0)
    sets = {CY: random_neurons(20, 3, 48, seed=1), MK: random_neurons(9, 3, 48, seed=2)}
    texts = {
        each: [FloresBlock(torch.randint(3, 97, (length,), generator=generator), 9) for length in (11, 30, 7)]
        for each in (CY, EN, MK)
    }

    def plain_loss(model, blocks):
        nats = [
            F.cross_entropy(model(b.input_ids[None]).logits[0, :-1], b.input_ids[1:], reduction="sum") for b in blocks
        ]
        return float(sum(nats)) / sum(len(b.input_ids) - 1 for b in blocks)

    found = measure_selectivity(model, sets, texts, draws=2, seed=5)
    assert (found.switched, found.measured, found.neurons) == ((CY, MK), (CY, EN, MK), (20, 9))
    before = [plain_loss(model, blocks) for blocks in texts.values()]
    assert found.before == pytest.approx(before, rel=1e-5)
    for row, neurons in enumerate(sets.values()):
        drawn = [random_per_layer(neurons.per_layer(3), 48, seed) for seed in (5, 6)]
        for column, blocks in enumerate(texts.values()):
            rise = plain_loss(zeroed(model, neurons), blocks) - before[column]
            assert found.rises[row][column] == pytest.approx(rise, abs=1e-5)
            control = [plain_loss(zeroed(model, each), blocks) - before[column] for each in drawn]
            assert found.random_rises[row][column] == pytest.approx(statistics.fmean(control), abs=1e-5)
    assert found.own(1) == found.rises[1][2]
    assert found.others(1) == pytest.approx(statistics.fmean(found.rises[1][:2]))
    assert loss_of(model, texts[EN]) == found.before[1]
    assert "Macedonian" in show(found).table


def test_the_most_moved_neurons_are_those_of_a_plain_loop_and_raise_what_the_head_says():
    base, model, tokenizer = tiny_model("llama").eval(), tiny_model("llama").eval(), letters()
    neurons, generator = random_neurons(20, 3, 48, seed=3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for size, (layer, i) in enumerate(neurons.pairs.tolist()):
            mlp = model.model.layers[layer].mlp
            for row in (mlp.gate_proj.weight[i], mlp.up_proj.weight[i], mlp.down_proj.weight[:, i]):
                row += 0.02 * (size % 7) * torch.randn(32, generator=generator)
    before, after = read_vectors(base, neurons), read_vectors(model, neurons)

    def moved(layer, i):
        parts = [(m.gate_proj.weight[i], m.up_proj.weight[i], m.down_proj.weight[:, i])
                 for m in (base.model.layers[layer].mlp, model.model.layers[layer].mlp)]  # fmt: skip
        return math.hypot(*(float(x) for old, new in zip(*parts, strict=True) for x in new - old))

    expected = sorted(neurons.pairs.tolist(), key=lambda pair: -moved(*pair))[:5]
    found = most_moved(before, after, neurons, 5)
    assert [[layer, i] for layer, i, _ in found] == expected
    assert found[0][2] == pytest.approx(moved(*expected[0]), rel=1e-5)

    shown = describe_moved(model, tokenizer, before, after, neurons, CY, SENTENCES, count=5)
    for each in shown.neurons:
        mlps = [m.model.layers[each.layer].mlp for m in (base, model)]
        old, new = (each.sign * mlp.down_proj.weight[:, each.neuron] for mlp in mlps)
        for vector, tokens in ((old, each.raised_before), (new, each.raised_after), (new - old, each.raised_by_change)):
            logits = model.lm_head.weight @ (model.model.norm.weight * vector)
            best = logits[: len(tokenizer)].argsort(descending=True)[:10]
            assert list(tokens) == [tokenizer.decode([i]) for i in best]
        assert sum(piece.output for piece in each.pieces) * each.sign >= 0
        sizes = [abs(piece.output) for piece in each.pieces]
        assert sizes == sorted(sizes, reverse=True)
    assert show(shown).table
    assert raised_tokens(model, tokenizer, torch.zeros(0, 32)) == []


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_what_a_neuron_puts_out_is_its_gate_times_its_up(architecture):
    model = tiny_model(architecture).eval()
    ids = torch.randint(3, 97, (1, 20), generator=torch.Generator().manual_seed(0))
    wanted = [(2, 5), (0, 47), (2, 0)]
    seen = {}
    handles = [
        ffn.module.register_forward_pre_hook(lambda _, args, layer=ffn.layer: seen.update({layer: args[0][0]}))
        for ffn in find_gated_ffns(model)
    ]
    found = outputs_of(model, ids, wanted)
    for handle in handles:
        handle.remove()
    for place, (layer, i) in enumerate(wanted):
        mlp = model.model.layers[layer].mlp
        fused = architecture == "phi3"
        gate, up = (mlp.gate_up_proj.weight[[i, 48 + i]]) if fused else (mlp.gate_proj.weight[i], mlp.up_proj.weight[i])
        torch.testing.assert_close(
            found[:, place], F.silu(seen[layer] @ gate) * (seen[layer] @ up), rtol=1e-4, atol=1e-5
        )


def make_atlas(model, texts, block_size=8):
    atlas = Atlas(ModelIdentity("m", "", "f" * 16, 3, 48, 32, 10_000), "t", block_size)
    for language, ids in texts.items():
        counts, tokens = count_halves(model, ids, block_size)
        atlas.add(language, counts.sum(0), int(tokens.sum()), {})
    return atlas


def random_ids(seed, low, high, count=400):
    return torch.randint(low, high, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_halves_count_the_gates_that_open_block_by_block():
    model, ids = tiny_model("llama").eval(), random_ids(0, 3, 97, 83)
    counts, tokens = count_halves(model, ids, block_size=8)
    assert tokens.tolist() == [40, 40]
    plain = torch.zeros(2, 3, 48, dtype=torch.int64)
    for number, first in enumerate(range(0, 80, 8)):
        opened = {}
        handles = [
            ffn.gate.register_forward_hook(
                lambda _, __, out, layer=ffn.layer, into=opened: into.update({layer: (out > 0).sum((0, 1))})
            )
            for ffn in find_gated_ffns(model)
        ]
        model(torch.tensor([ids[first : first + 8]]))
        for handle in handles:
            handle.remove()
        plain[number % 2] += torch.stack([opened[layer] for layer in range(3)])
    assert torch.equal(counts, plain)
    with pytest.raises(UserError, match="less than two blocks of 8"):
        count_halves(model, ids[:15], 8)


def test_the_script_control_selects_from_each_text_as_an_atlas_of_it_would():
    model, pool, sizes = tiny_model("llama").eval(), [CY, MK, SL], Sizes(0.3, 0.7)
    texts = {CY: random_ids(1, 3, 30), MK: random_ids(2, 30, 60), SL: random_ids(3, 3, 40)}
    romanised = random_ids(4, 3, 35)
    atlas = make_atlas(model, texts)
    found = control_script(model, texts[MK], romanised, MK, atlas, pool, sizes)
    own = select_subnetworks(atlas, pool, sizes).of(MK)
    other = select_subnetworks(make_atlas(model, {**texts, MK: romanised}), pool, sizes).of(MK)
    pairs, others = ({tuple(pair) for pair in each.pairs.tolist()} for each in (own, other))
    assert (found.neurons, found.neurons_romanised, found.shared) == (len(pairs), len(others), len(pairs & others))
    assert found.overlap == pytest.approx(len(pairs & others) / len(pairs | others))
    assert found.follows_script == pytest.approx(len(pairs - others) / len(pairs))
    assert list(found.per_layer_shared) == [sum(layer == at for layer, _ in pairs & others) for at in range(3)]
    same = control_script(model, texts[MK], texts[MK], MK, atlas, pool, sizes)
    assert (same.follows_script, same.overlap) == (0.0, 1.0)
    assert found.follows_script > 0
    assert "follow the script" in " ".join(show(found).table.split())


def test_the_romaniser_leaves_latin_letters_only():
    pytest.importorskip("anyascii")
    romanise = load_romaniser()
    for text in ("Македонскиот јазик", "ქართული ენა", "नेपाली भाषा"):
        written = romanise(text)
        assert written.isascii()
        assert sum(letter.isalpha() for letter in written) > len(text) // 2


def test_without_the_romaniser_its_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "anyascii", None)
    with pytest.raises(UserError, match="pip install anyascii"):
        load_romaniser()


def test_batches_of_sentences_do_not_change_their_states():
    model, tokenizer = tiny_model("llama").eval(), letters()
    one, many = (mean_states(model, tokenizer, SENTENCES, tokens_at_once=size) for size in (1, 10_000))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)
    order = list(itertools.chain([3, 1], [0, 2, 4]))
    mixed = mean_states(model, tokenizer, [SENTENCES[i] for i in order])
    torch.testing.assert_close(mixed, many[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "shira"])
def test_a_merged_adapter_computes_what_the_attached_one_does_with_plain_modules(method):
    model = tiny_model("llama").eval()
    ids = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    before = model(ids).logits
    keys = {"seed": 0} | ({} if method == "ia3" else {"rank": 4})
    attached = build_method(method, keys).attach(model, None)
    generator = torch.Generator().manual_seed(1)
    attached.load_weights(
        {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in attached.weights().items()}
    )
    expected = model.eval()(ids).logits
    merge_adapters(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert len(find_gated_ffns(model)) == 3
    assert len(read_vectors(model, None)) == 9
