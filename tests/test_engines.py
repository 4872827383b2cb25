import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_app.errors import UserError
from lightning_app.methods.masked import MaskedEngine
from lightning_app.methods.packed import PackedEngine, _PackedFFN
from lightning_app.model.ffn import find_gated_ffns
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.neurons.neuron_set import NeuronSet
from lightning_app.training.compilation import compile_layers
from tests.conftest import ARCHITECTURES, tiny_model

NEURONS = NeuronSet({1: torch.tensor([0, 5, 6, 47]), 2: torch.tensor([3])})
ADAMW = {"lr": 3e-2, "weight_decay": 0.1, "betas": (0.9, 0.999)}


def train(model, engine, steps=4, accumulate=2, clip=0.5, checkpointing=False):
    """A plain loop with accumulation, clipping and weight decay. Returns the losses."""
    head, optimizer, losses = OutputHead.of(model), engine.optimizer(**ADAMW), []
    generator = torch.Generator().manual_seed(0)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        for _ in range(accumulate):
            ids = torch.randint(0, 97, (2, 11), generator=generator)
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            loss = token_loss_sum(hidden[:, :-1], head, ids[:, 1:]) / 20 / accumulate
            loss.backward()
        engine.require_frozen_gradients_zero()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        optimizer.zero_grad()
        engine.after_step()
        losses.append(loss.item())
    return losses


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("projections", [("gate", "up", "down"), ("down",), ("gate", "up")])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("architecture", ["llama", "llama-bias", "cohere", "gemma2", "phi3"])
def test_masked_and_packed_end_with_the_same_weights(architecture, dtype, tolerance, projections):
    masked, packed = tiny_model(architecture, dtype), tiny_model(architecture, dtype)
    before = weights(masked)
    losses = [
        train(model, engine(find_gated_ffns(model), NEURONS, projections))
        for model, engine in ((masked, MaskedEngine), (packed, PackedEngine))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=10 * tolerance)
    after = weights(masked)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    for name, weight in weights(packed).items():
        torch.testing.assert_close(weight, after[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("engine", [MaskedEngine, PackedEngine])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_weights_stay_bit_identical_and_neurons_move(architecture, engine):
    model = tiny_model(architecture)
    before = weights(model)
    ffns = find_gated_ffns(model)
    train(model, engine(ffns, NEURONS, ("gate", "up", "down")))
    after = weights(model)
    for ffn in ffns:
        if ffn.layer not in NEURONS.layers:
            continue
        for projection in ("gate", "up", "down"):
            name = next(n for n, w in model.named_parameters() if w is ffn.linear(projection).weight)
            index = ffn.rows_of(projection, NEURONS.by_layer[ffn.layer])
            old, new = (w[name].t() if projection == "down" else w[name] for w in (before, after))
            assert (old[index] != new[index]).any(dim=1).all()
            for w in (old, new):
                w[index] = 0
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_weight_decay_shrinks_neurons_only_where_gradients_vanish():
    """With zero gradients AdamW is weight decay alone, which tells what it touches."""
    for engine_class in (MaskedEngine, PackedEngine):
        model = tiny_model("llama", torch.float64)
        before = weights(model)
        engine = engine_class(find_gated_ffns(model), NeuronSet({1: torch.tensor([4])}), ("gate",))
        optimizer = engine.optimizer(lr=0.1, weight_decay=0.5, betas=(0.9, 0.999))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        engine.after_step()
        expected = before["model.layers.1.mlp.gate_proj.weight"].clone()
        expected[4] *= 1 - 0.1 * 0.5
        torch.testing.assert_close(model.model.layers[1].mlp.gate_proj.weight.detach(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_forward_is_the_models_own(architecture):
    model = tiny_model(architecture)
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = model(input_ids=ids).logits
    PackedEngine(find_gated_ffns(model), NEURONS, ("gate", "up", "down"))
    torch.testing.assert_close(model(input_ids=ids).logits, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama-bias", "phi3", "gemma"])
@pytest.mark.parametrize("needs_x", [True, False])
def test_packed_function_passes_gradcheck(architecture, needs_x):
    """The rows are made part of the function by writing them into the live weights before every evaluation."""
    ffn = find_gated_ffns(tiny_model(architecture, torch.float64))[1]
    neurons = torch.tensor([2, 9])
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(needs_x)
    rows = [ffn.read(projection, neurons).requires_grad_() for projection in ("gate", "up", "down")]

    def function(x, gate, up, down):
        for projection, row in zip(("gate", "up", "down"), (gate, up, down), strict=True):
            ffn.write(projection, neurons, row.detach())
        return _PackedFFN.apply(x, gate, up, down, ffn, neurons)

    assert torch.autograd.gradcheck(function, (x, *rows))


def test_packed_keeps_x_gate_and_up_for_the_backward_where_the_frozen_model_keeps_three_products():
    def saved_bytes(model, needs_grad):
        total = {}

        def pack(tensor):
            if not any(
                tensor.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() for p in model.parameters()
            ):
                total[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        embedded = model.get_input_embeddings()(torch.arange(60).reshape(2, 30)).requires_grad_(needs_grad)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.base_model(inputs_embeds=embedded, use_cache=False)
        return sum(total.values())

    frozen = saved_bytes(tiny_model("llama"), True)
    model = tiny_model("llama")
    trained = NeuronSet({layer: torch.arange(2) for layer in range(3)})
    PackedEngine(find_gated_ffns(model), trained, ("gate", "up", "down"))
    layers, tokens, neurons, hidden_size, bytes_each = 3, 60, 48, 32, 4
    spared = neurons - hidden_size - 2  # what the trained neurons give to down is kept too
    assert frozen - saved_bytes(model, True) == layers * tokens * spared * bytes_each


@pytest.mark.parametrize("engine", [MaskedEngine, PackedEngine])
def test_layers_below_the_first_trained_one_run_without_a_graph(engine):
    model = tiny_model("llama")
    engine(find_gated_ffns(model), NeuronSet({2: torch.tensor([1])}), ("gate", "up", "down"))
    hidden = model.base_model(input_ids=torch.arange(6).unsqueeze(0), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in hidden] == [False, False, False, True]


@pytest.mark.parametrize("engine", [MaskedEngine, PackedEngine])
def test_activation_checkpointing_changes_nothing(engine):
    runs = []
    for is_checkpointed in (False, True):
        model = tiny_model("llama", torch.float64)
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        runs.append(train(model, engine(find_gated_ffns(model), NEURONS, ("gate", "up", "down"))))
    assert runs[0] == pytest.approx(runs[1], abs=1e-12)


@pytest.mark.parametrize(
    ("architecture", "checkpointing"),
    [
        ("llama", False),
        ("llama", True),
        ("gemma2", False),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("cohere", "phi3")),
    ],
)
def test_compiled_layers_have_no_graph_breaks_and_train_as_eager_ones(architecture, checkpointing):
    """Layer 1 is the first trained one, whose input needs no gradient; layer 2 passes gradients on."""
    runs = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        model = tiny_model(architecture, torch.float64)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        engine = PackedEngine(find_gated_ffns(model.train()), NEURONS, ("gate", "up", "down"))
        if is_compiled:
            compile_layers(model, engine, fullgraph=True, backend="aot_eager")
        losses = train(model, engine)
        with torch.no_grad():
            prompt = torch.arange(3, 14).unsqueeze(0)
            logits = model.eval()(input_ids=prompt).logits
            mask = torch.ones_like(prompt)
            continuation = model.generate(prompt, attention_mask=mask, max_new_tokens=2, do_sample=False)
        runs.append((losses, engine.weights(), logits, continuation))
    (losses, rows, logits, continuation), (compiled_losses, compiled_rows, compiled_logits, same) = runs
    assert torch.equal(continuation, same)
    assert compiled_losses == pytest.approx(losses, abs=1e-12)
    torch.testing.assert_close(compiled_logits, logits, rtol=0, atol=1e-10)
    for name, vectors in rows.items():
        torch.testing.assert_close(compiled_rows[name], vectors, rtol=0, atol=1e-12)


def test_layers_with_different_numbers_of_neurons_share_a_compilation():
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=48, num_hidden_layers=14, num_attention_heads=4, vocab_size=50
    )
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).train()
    neurons = NeuronSet({layer: torch.arange(layer) for layer in range(2, 14) if layer != 5})
    engine = PackedEngine(find_gated_ffns(model), neurons, ("gate", "up", "down"))
    compilations = CompileCounterWithBackend("eager")
    compile_layers(model, engine, fullgraph=True, backend=compilations)
    for _ in range(2):
        model.base_model(input_ids=torch.arange(8).unsqueeze(0), use_cache=False).last_hidden_state.sum().backward()
    assert compilations.frame_count == 4  # below the first trained layer, that layer, without neurons, and the rest


def test_bf16_base_keeps_fp32_rows_and_small_updates():
    model = tiny_model("llama", torch.bfloat16)
    engine = PackedEngine(find_gated_ffns(model), NEURONS, ("gate", "up", "down"))
    assert {p.dtype for p in engine.parameters()} == {torch.float32}
    optimizer = engine.optimizer(lr=1e-6, weight_decay=0.0, betas=(0.9, 0.999))
    before = copy.deepcopy(engine.weights())
    ids = torch.randint(0, 97, (2, 11))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        token_loss_sum(hidden[:, :-1], OutputHead.of(model), ids[:, 1:]).backward()
    optimizer.step()
    engine.after_step()
    moved = [(engine.weights()[name] != rows).float().mean() for name, rows in before.items()]
    assert min(moved) > 0.9
    name, rows = next(iter(engine.weights().items()))
    live = model.model.layers[int(name.split(".")[0])].mlp.gate_proj.weight[NEURONS.by_layer[1]]
    assert torch.equal(live, rows.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.0625, None), (1.0, 3.0), (0.5, 2.0)])
def test_chunked_loss_is_torchs_own(dtype, scale, softcap, monkeypatch):
    monkeypatch.setattr("lightning_app.model.loss._ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(16, 50, dtype=dtype)
    hidden = torch.randn(3, 10, 16, dtype=dtype, generator=generator).requires_grad_()
    labels = torch.randint(0, 50, (3, 10), generator=generator)
    labels[0, :4] = -100
    head = OutputHead(linear, scale, softcap)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    plain = cross_entropy(head.logits(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    expected = torch.autograd.grad(plain, [hidden, linear.weight])
    chunked = token_loss_sum(hidden, head, labels)
    torch.testing.assert_close(chunked, plain, **tolerance)
    linear.bias.requires_grad_(False)
    for found, right in zip(torch.autograd.grad(chunked, [hidden, linear.weight]), expected, strict=True):
        torch.testing.assert_close(found, right, **tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_is_that_of_transformers(architecture):
    model = tiny_model(architecture)
    ids = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids, labels=ids).loss.item()
    head = OutputHead.of(model)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert token_loss_sum(hidden[:, :-1], head, ids[:, 1:]).item() / 22 == pytest.approx(expected, rel=1e-5)
    head.require_agreement(model, ids[:1, :8])


def test_an_unknown_logit_transform_is_refused():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, out: out.clone().mul_(3))
    head = OutputHead(torch.nn.Linear(32, 97, bias=False))
    with pytest.raises(UserError, match="transforms its logits"):
        head.require_agreement(model, torch.arange(8).unsqueeze(0))


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        ("gpt_neox", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}),
        (
            "mixtral",
            {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "num_local_experts": 2},
        ),
    ],
)  # fmt: skip
def test_an_architecture_without_gated_ffn_is_refused_by_name(model_type, keys):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=50, **keys))
    with pytest.raises(UserError, match=type(model).__name__):
        find_gated_ffns(model)


def test_an_ffn_that_computes_something_else_is_refused():
    model = tiny_model("llama")
    original = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: 2 * original(x)
    with pytest.raises(UserError, match="something else"):
        find_gated_ffns(model)
