import torch

from lightning_app.identity import fingerprint
from tests.conftest import tiny_model


def by_name(model):
    return sorted(model.named_parameters(), key=lambda item: item[0])


def test_any_single_changed_entry_is_another_base():
    model = tiny_model("llama")
    before = fingerprint(by_name(model))
    for weight in list(model.parameters())[:5]:
        with torch.no_grad():
            entry = weight.flatten()[7].item()
            weight.view(-1)[7] += 0.5
            assert fingerprint(by_name(model)) != before
            weight.view(-1)[7] = entry
    assert fingerprint(by_name(model)) == before


def test_two_exchanged_rows_are_another_base():
    model = tiny_model("llama")
    before = fingerprint(by_name(model))
    weight = model.model.layers[1].mlp.gate_proj.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert fingerprint(by_name(model)) != before


def test_the_dtype_it_is_loaded_in_does_not_matter():
    model = tiny_model("llama", torch.bfloat16)
    before = fingerprint(by_name(model))
    assert fingerprint(by_name(model.float())) == before
    assert fingerprint(by_name(model.double())) == before
