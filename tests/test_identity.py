import torch

from lightning_app.identity import fingerprint
from tests.conftest import tiny_model


def test_any_single_changed_entry_is_another_base():
    model = tiny_model("llama")
    before = fingerprint(model.named_parameters())
    for weight in list(model.parameters())[:5]:
        with torch.no_grad():
            entry = weight.flatten()[7].item()
            weight.view(-1)[7] += 0.5
            assert fingerprint(model.named_parameters()) != before
            weight.view(-1)[7] = entry
    assert fingerprint(model.named_parameters()) == before


def test_two_exchanged_rows_are_another_base():
    model = tiny_model("llama")
    before = fingerprint(model.named_parameters())
    weight = model.model.layers[1].mlp.gate_proj.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert fingerprint(model.named_parameters()) != before


def test_the_dtype_it_is_loaded_in_does_not_matter():
    model = tiny_model("llama", torch.bfloat16)
    before = fingerprint(model.named_parameters())
    assert fingerprint(model.float().named_parameters()) == before
    assert fingerprint(model.double().named_parameters()) == before
