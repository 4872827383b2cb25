"""A base in 4 or 8 bits: against the same numbers made dense, PEFT alone, and the base as it is."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from lightning_app.errors import UserError
from lightning_app.methods.masked import MaskedEngine
from lightning_app.methods.packed import PackedEngine
from lightning_app.methods.registry import build_method
from lightning_app.model.base import base_without_weights, load_base
from lightning_app.model.ffn import PROJECTIONS, find_gated_ffns
from lightning_app.model.quantized import dequantized, is_quantized
from lightning_app.neurons.selection import random_neurons
from lightning_app.planning.fitting import Setting
from lightning_app.planning.memory import Batches
from tests.conftest import tiny_model
from tests.deltas import IDS, logits

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

CPU = torch.device("cpu")
NEURONS = random_neurons(20, 3, 48, seed=1)
KINDS = ["nf4", "int8"]


def saved(folder, architecture="llama"):
    tiny_model(architecture).save_pretrained(folder)
    return str(folder)


def quantized(folder, kind, dtype=torch.float32):
    return load_base(str(folder), None, dtype, kind, CPU)


def made_dense(folder, model):
    """The base with the numbers that its quantised form stands for, in ordinary matrices."""
    twin, named = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), dict(model.named_modules())
    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear) and is_quantized(named[name]):
            module.weight.data.copy_(dequantized(named[name]))
    return twin.requires_grad_(False)


def train(steps, *models_and_engines, lr=1e-3):
    """Losses of every model by step, all on the same batches."""
    optimizers = [engine.optimizer(lr, 0.01, (0.9, 0.999)) for _, engine in models_and_engines]
    losses = []
    for step in range(steps):
        ids = torch.randint(3, 97, (4, 20), generator=torch.Generator().manual_seed(step))
        losses.append([])
        for (model, engine), optimizer in zip(models_and_engines, optimizers, strict=True):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            engine.after_step()
            losses[-1].append(loss.item())
    return torch.tensor(losses)


@pytest.mark.parametrize("projections", [PROJECTIONS, ("down",), ("gate", "up")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "llama-bias", "phi3", "gemma2"])
def test_rows_beside_quantised_matrices_train_as_masks_on_the_same_numbers_made_dense(
    tmp_path, architecture, kind, projections
):
    if architecture != "llama" and projections != PROJECTIONS:
        return  # which projections are trained is no matter of the architecture
    base = quantized(saved(tmp_path, architecture), kind)
    twin = made_dense(tmp_path, base.model)
    storage = {name: weight.clone() for name, weight in base.model.named_parameters()}
    packed = PackedEngine(find_gated_ffns(base.model), NEURONS, projections)
    ffns = find_gated_ffns(twin)
    for name, rows in packed.weights().items():
        layer, projection = name.split(".")
        ffns[int(layer)].write(projection, NEURONS.by_layer[int(layer)], rows)
    masked = MaskedEngine(ffns, NEURONS, projections)
    before = {name: rows.clone() for name, rows in packed.weights().items()}
    losses = train(20, (base.model.train(), packed), (twin.train(), masked))
    assert not any(torch.equal(before[name], rows) for name, rows in packed.weights().items())
    torch.testing.assert_close(losses[:, 0], losses[:, 1], rtol=0, atol=1e-5)
    for name, rows in masked.weights().items():
        torch.testing.assert_close(packed.weights()[name], rows, rtol=0, atol=1e-5)
    assert all(torch.equal(weight, storage[name]) for name, weight in base.model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_is_known_as_the_base_itself_and_its_neurons_begin_as_they_were(tmp_path, kind):
    name = saved(tmp_path)
    plain, base = load_base(name, None, torch.float32), quantized(name, kind)
    assert base.identity == plain.identity
    assert (base.quantization, plain.quantization) == (kind, None)
    for one, other in zip(find_gated_ffns(base.model), find_gated_ffns(plain.model), strict=True):
        for projection in PROJECTIONS:
            neurons = NEURONS.by_layer[one.layer]
            assert torch.equal(one.read(projection, neurons), other.read(projection, neurons))


class Matrices(TorchDispatchMode):
    """Counts results with as many numbers as an FFN's matrix has."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.count = numbers, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        found = isinstance(out, torch.Tensor) and out.is_floating_point() and out.numel() == self.numbers
        own = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        self.count += found and out.untyped_storage().data_ptr() not in own
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_is_made_dense_beside_those_that_the_library_makes(tmp_path, kind):
    name = saved(tmp_path)

    def matrices(is_trained):
        model = quantized(name, kind).model.train()
        if is_trained:
            PackedEngine(find_gated_ffns(model), NEURONS, PROJECTIONS)
        embedded = model.get_input_embeddings()(IDS[:1]).requires_grad_()
        with Matrices(32 * 48) as found:
            model(inputs_embeds=embedded).logits.sum().backward()
        return found.count

    assert 0 < matrices(True) <= matrices(False)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_for_the_backward_is_what_packed_rows_of_a_base_as_it_is_keep(tmp_path, kind):
    name = saved(tmp_path)

    def kept(base):
        PackedEngine(find_gated_ffns(base.model.train()), NEURONS, PROJECTIONS)
        sizes = {}
        weights = {weight.untyped_storage().data_ptr() for weight in base.model.parameters()}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in weights:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        ffns = find_gated_ffns(base.model)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            x = torch.randn(2, 9, 32, requires_grad=True)
            out = ffns[0].module(x)
        return sum(sizes.values()), out

    (beside, _), (packed, _) = kept(quantized(name, kind)), kept(load_base(name, None, torch.float32))
    assert 0 < beside <= packed


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "shira"])
def test_an_adapter_on_four_bits_trains_as_peft_alone_trains_it(tmp_path, method):
    from peft import get_peft_model

    name, keys = saved(tmp_path), {"rank": 2} if method != "ia3" else {}
    own = build_method(method, keys)
    base, alone = quantized(name, "nf4").model.train(), quantized(name, "nf4").model.train()
    attached = own.attach(base, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own.seed)
        get_peft_model(alone, own.config(alone, None))

    class Alone:
        @staticmethod
        def optimizer(lr, decay, betas):
            trained = [weight for weight in alone.parameters() if weight.requires_grad]
            return torch.optim.AdamW(trained, lr=lr, weight_decay=decay, betas=betas, fused=True)

        @staticmethod
        def after_step():
            pass

    losses = train(8, (base, attached), (alone, Alone), lr=1e-2)
    assert losses[0, 0] > losses[-1, 0]
    assert torch.equal(losses[:, 0], losses[:, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_the_plan_counts_the_bytes_of_a_quantised_base(tmp_path, architecture, kind):
    shape = {
        "model_type": architecture, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "pad_token_id": 0,
    }  # fmt: skip
    meta = base_without_weights(None, None, torch.float32, shape).model
    AutoModelForCausalLM.from_config(meta.config).save_pretrained(tmp_path)
    model = quantized(tmp_path, kind).model
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, nn.Linear) and is_quantized(module):
            state = getattr(module.weight, "quant_state", None)
            inner = [state.absmax, state.state2.absmax] if state is not None else [module.weight.SCB]
            tensors += [each for each in inner if each is not None]
    measured = sum(tensor.nbytes for tensor in tensors)
    neurons = random_neurons(10, 2, 512, seed=0)
    planned = Setting(build_method("subnetwork", {}), neurons, Batches(), False, kind).memory(meta)
    assert planned.weights == pytest.approx(measured, rel=0.01)


def test_scales_of_an_adapter_on_four_bits(tmp_path):
    name = saved(tmp_path)

    def scaled(method, scale):
        model = quantized(name, "nf4").model
        own = build_method(method, {"rank": 2})
        weights = own.attach(quantized(name, "nf4").model, None).weights()
        own.restore(model, None, {key: torch.full_like(each, 0.05) for key, each in weights.items()}, scale)
        return logits(model)

    plain = logits(quantized(name, "nf4").model)
    assert torch.equal(scaled("lora", 0.0), plain)
    assert torch.equal(scaled("dora", 0.0), plain)
    assert not torch.equal(scaled("lora", 0.5), scaled("lora", 1.0))
    with pytest.raises(UserError, match=r"cannot count 0.5 times; expected 0 or 1"):
        scaled("dora", 0.5)
