"""The methods that ours is compared with, against PEFT itself and against naive computations of their papers."""

from contextlib import nullcontext

import peft
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from lightning_app.methods.gradient import score_neurons
from lightning_app.methods.method import Calibration
from lightning_app.methods.registry import build_method
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.layers import decoder_layers
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.selection import highest_neurons
from tests.conftest import tiny_model
from tests.test_methods import NEURONS

FFN = ["gate_proj", "up_proj", "down_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", *FFN]
PEFT = {
    "lora": ({"rank": 4, "alpha": 8.0}, lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=FFN)),
    "lora_all": ({"rank": 2}, lambda: peft.LoraConfig(r=2, lora_alpha=64 / 62, target_modules=ALL)),
    "lora_matched": ({}, lambda: peft.LoraConfig(r=1, lora_alpha=32 / 62, target_modules=FFN)),
    "dora": ({"rank": 4, "alpha": 8.0}, lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=FFN, use_dora=True)),
    "shira": ({"rank": 4}, lambda: peft.ShiraConfig(r=4, random_seed=0, target_modules=FFN)),
    "ia3": ({}, lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"],
                                       feedforward_modules=["down_proj"])),
}  # fmt: skip


def batches(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 97, (2, 12), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", PEFT)
def test_adapters_give_pefts_own_losses(name):
    """Our way (decoder, chunked loss, our optimiser) beside a plain PEFT loop with transformers' own loss."""
    keys, config = PEFT[name]
    model = tiny_model("llama")
    attached = build_method(name, keys).attach(model, NEURONS)
    ours, optimizer = [], attached.optimizer(lr=1e-2, weight_decay=0.01, betas=(0.9, 0.999))
    for ids in batches(6):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        loss = token_loss_sum(hidden[:, :-1], OutputHead.of(model), ids[:, 1:]) / ids[:, 1:].numel()
        loss.backward()
        clip_grad_norm_(attached.trained(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ours.append(loss.item())
    plain = tiny_model("llama")
    torch.manual_seed(0)
    plain = peft.get_peft_model(plain, config())
    trained = [weight for weight in plain.parameters() if weight.requires_grad]
    assert attached.trained_parameters == sum(weight.numel() for weight in trained)
    theirs, optimizer = [], torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01, fused=True)
    for ids in batches(6):
        loss = plain(input_ids=ids, labels=ids).loss
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert abs(ours[0] - ours[-1]) > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "phi3", "glm"])
@pytest.mark.parametrize("name", PEFT)
def test_peft_alone_reloads_a_saved_adapter_with_every_trained_tensor(name, architecture, tmp_path):
    """The paper's export named gate and up only, and lost what down_proj had learnt."""
    keys, _ = PEFT[name]
    model = tiny_model(architecture)
    attached = build_method(name, keys).attach(model, NEURONS)
    optimizer = attached.optimizer(lr=1e-2, weight_decay=0.01, betas=(0.9, 0.999))
    for ids in batches(2):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        token_loss_sum(hidden[:, :-1], OutputHead.of(model), ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    attached.save(tmp_path)
    alone = peft.PeftModel.from_pretrained(tiny_model(architecture), str(tmp_path))
    again = peft.get_peft_model_state_dict(alone)
    saved = attached.weights()
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[key], saved[key]) for key in saved)
    assert sum(w.numel() for w in again.values() if w.is_floating_point()) == attached.trained_parameters
    ids = batches(1)[0]
    assert torch.equal(alone(input_ids=ids).logits, model(input_ids=ids).logits)


def calibration(blocks):
    return Calibration(lambda code, sequences, tokens: blocks, torch.device("cpu"), nullcontext)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2", "cohere"])
def test_shielded_columns_are_those_with_the_highest_wanda_score(architecture):
    """arXiv 2512.04844: |W_ij| * ||X_j||, summed over a column; the highest half is frozen, the embeddings train."""
    blocks = [ids[0] for ids in batches(4)]
    model = tiny_model(architecture)
    method = build_method("ssu", {"freeze_ratio": 0.5})
    attached = method.attach(model, None)
    attached.calibrate(calibration(blocks))
    seen = {}
    plain = tiny_model(architecture)
    linears = {name: module for name, module in plain.named_modules()
               if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}"}  # fmt: skip
    for name, module in linears.items():
        module.register_forward_pre_hook(lambda m, x, name=name: seen.setdefault(name, []).append(x[0].flatten(0, -2)))
    for block in blocks:
        plain(input_ids=block.unsqueeze(0))
    frozen = {k.removeprefix("frozen_columns."): v for k, v in attached.weights().items() if k.startswith("frozen")}
    assert frozen.keys() == linears.keys()
    for name, module in linears.items():
        inputs = torch.cat(seen[name])
        score = []
        for j in range(module.in_features):
            norm = float((inputs[:, j].double() ** 2).sum()) ** 0.5
            score.append(sum(abs(float(w)) * norm for w in module.weight[:, j]))
        highest = sorted(range(len(score)), key=lambda j: -score[j])[: len(score) // 2]
        assert set(frozen[name].nonzero().flatten().tolist()) == set(highest), name
    trained = {id(weight) for weight in attached.trained()}
    assert id(model.get_input_embeddings().weight) in trained
    assert id(model.get_output_embeddings().weight) in trained


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2", "cohere"])
def test_gradient_scores_agree_with_a_naive_loop(architecture):
    """|h * dL/dh| by scaling one neuron at one token at a time, in fp64."""
    model = tiny_model(architecture, dtype=torch.float64)
    blocks = [torch.randint(3, 97, (5,), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    score_LN = score_neurons(model, blocks, calibration(blocks))
    layer, ffn = 1, find_gated_ffns(model)[1]
    step = 3e-3  # norms are computed in fp32 whatever the model is

    def loss(block, neuron, token, factor):
        def scale(module, inputs):
            hidden = inputs[0].clone()
            hidden[0, token, neuron] *= factor
            return (hidden,)

        hook = ffn.down.register_forward_pre_hook(scale)
        logits = model(input_ids=block.unsqueeze(0)).logits[0, :-1]
        hook.remove()
        return torch.nn.functional.cross_entropy(logits.double(), block[1:], reduction="sum")

    for neuron in (0, 7, 47):
        total = 0.0
        for block in blocks:
            for token in range(len(block)):
                up, down = (loss(block, neuron, token, 1 + sign * step) for sign in (1, -1))
                total += abs((up - down).item()) / (2 * step)
        assert score_LN[layer, neuron].item() == pytest.approx(total / 10, rel=5e-3, abs=1e-6)
    assert len(highest_neurons(score_LN, 9)) == 9
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_half_fine_tuning_freezes_two_of_four_and_two_or_one_of_three(seed):
    model = tiny_model("llama")
    attached = build_method("hft", {"seed": seed}).attach(model, None)
    trained = {id(weight) for weight in attached.trained()}
    of_ffn = []
    for layer in decoder_layers(model):
        attention = [getattr(layer.self_attn, f"{part}_proj").weight for part in "qkvo"]
        assert sum(id(weight) in trained for weight in attention) == 2
        of_ffn.append(sum(id(getattr(layer.mlp, f"{part}_proj").weight) in trained for part in ("gate", "up", "down")))
    assert sorted(of_ffn) == [1, 2, 2]  # of three layers, one has two frozen
    every = {id(w) for name, w in model.named_parameters() if "proj" not in name}
    assert every <= trained
    again = build_method("hft", {"seed": seed}).attach(tiny_model("llama"), None)
    assert attached.weights().keys() == again.weights().keys()
    others = [build_method("hft", {"seed": s}).attach(tiny_model("llama"), None).weights().keys() for s in range(5)]
    assert any(names != others[0] for names in others[1:])


def test_a_lora_of_equal_size_has_about_the_parameters_of_the_neurons():
    for count in (4, 40, 100):
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(48))[:count]
        neurons = type(NEURONS).from_pairs(pairs)
        attached = build_method("lora_matched", {}).attach(tiny_model("llama"), neurons)
        per_rank = 3 * 3 * (32 + 48)
        wanted = neurons.parameters(32)
        assert abs(attached.trained_parameters - wanted) <= max(per_rank / 2, per_rank - wanted)
