"""What only a GPU shows; skipped where there is none."""

import pytest
import torch

from datamodules.chunking import batch_documents
from lightning_app.cli import main
from lightning_app.files import load_checkpoint
from lightning_app.model.attention import attend_without_masks, require_documents_apart, seen_within_documents
from lightning_app.model.loss import OutputHead, token_loss_sum
from lightning_app.run import RunFolder
from tests.conftest import tiny_model

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("architecture", ["llama", "cohere", "qwen3", "granite"])
def test_documents_are_apart_by_their_bounds_as_by_a_mask(architecture, monkeypatch):
    """Loss and gradient in bf16, by torch's flash attention and by its others."""
    model = attend_without_masks(tiny_model(architecture, torch.bfloat16).to(GPU))
    require_documents_apart(model)
    weight = model.get_input_embeddings().weight.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 97, (2, 60), generator=generator)
    positions = torch.stack([torch.arange(60) % length for length in (17, 60)])
    batch = batch_documents([*torch.stack((ids, positions), dim=1)])
    batch = {key: each.to(GPU) for key, each in batch.items()}
    found = []
    for is_taken in (True, False):
        if not is_taken:
            monkeypatch.setattr("lightning_app.model.attention.takes_bounds", lambda model, device: False)
        inputs = seen_within_documents(model, batch)
        assert ("cu_seq_lens_q" in inputs) == is_taken
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        loss = token_loss_sum(hidden[:, :-1], OutputHead.of(model), batch["labels"][:, 1:])
        found.append((loss, *torch.autograd.grad(loss, weight)))
    (loss, grad), (expected, right) = found
    assert float(loss) == pytest.approx(float(expected), rel=5e-3)
    assert float((grad - right).norm() / right.norm()) < 3e-2


def on_gpu(workplace, *keys, **changes):
    assert main([*workplace.adapt("gpu", **changes), "--trainer.accelerator=gpu", *keys]) == 0
    return RunFolder(workplace.folder / "gpu" / changes["name"])


def losses(folder):
    return {code: loss for code, (loss, _) in folder.record()["result"]["best"]["losses"].items()}


def test_a_run_in_fp32_ends_as_on_a_cpu(workplace):
    found = losses(on_gpu(workplace, name="fp32"))
    assert found == pytest.approx(losses(RunFolder(workplace.folder / "runs/adapted")), abs=2e-3)


@pytest.mark.parametrize("keys", [{}, {"model__quantization": "nf4"}, {"model__compile": True}, {"model__ema": 0.9}])
def test_a_run_in_bf16_that_was_cut_short_goes_on(workplace, keys):
    """A GPU adds up in no order of its own, so that the ends are close, and not equal."""
    name = "-".join(["bf16", *keys])
    whole = on_gpu(workplace, "--trainer.precision=bf16-mixed", name=name, **keys)
    cut = on_gpu(workplace, "--trainer.precision=bf16-mixed", name=f"{name}-cut", trainer__max_steps=16, **keys)
    on_gpu(workplace, "--trainer.precision=bf16-mixed", name=f"{name}-cut", **keys)
    ends = [load_checkpoint(folder.last_checkpoint) for folder in (whole, cut)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 48
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-2)
