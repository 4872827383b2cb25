"""Fixtures: tiny models of several architectures, and a corpus of invented languages."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import callbacks  # noqa: E402
import datamodules  # noqa: E402
import lightning_app  # noqa: E402

for package in (callbacks, datamodules, lightning_app):
    if Path(package.__file__).resolve().parent.parent != ROOT:
        pytest.exit(f"{package.__name__} was imported from {package.__file__}, not from this checkout", returncode=3)

# One thread each, of processes that tests start too: as many tests run at a time as there are cores.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: E402

from datamodules.invented import write_hub  # noqa: E402
from lightning_app.cli.fit import FIT  # noqa: E402
from lightning_app.model.architecture import read_architecture  # noqa: E402
from tests.examined import doctor  # noqa: E402, F401 - a fixture
from tests.fake_hub import server  # noqa: E402, F401 - a fixture
from tests.faults import (  # noqa: E402, F401 - hooks and a fixture
    _fault_under_test,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)

SHARED = Path(os.environ.get("NEUROGLOT_SHARED", ROOT.parent / "shared"))
LANGUAGES = ["qaa-Latn", "qab-Latn", "qac-Latn", "qad-Cyrl", "qae-Cyrl", "qaf-Grek", "qag-Geor", "qah-Deva"]

torch.set_num_threads(1)
# Runs in this process make a report only where a test asks for one: drawing takes longer than most of them train.
FIT.options.update(samples=(int, 0, ""), report=(bool, False, ""))

ARCHITECTURES = {
    "llama": {"model_type": "llama"},
    "llama-bias": {"model_type": "llama", "mlp_bias": True},
    "mistral": {"model_type": "mistral"},
    "cohere": {"model_type": "cohere"},
    "cohere2": {"model_type": "cohere2"},
    "gemma": {"model_type": "gemma", "head_dim": 8},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 5.0},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 8},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "phi3": {"model_type": "phi3"},
    "granite": {"model_type": "granite", "logits_scaling": 4.0},
    "olmo2": {"model_type": "olmo2"},
    "glm": {"model_type": "glm", "head_dim": 8},
}


def tiny_model(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A model of 3 layers, 32 hidden and 48 neurons, with weights large enough to matter."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64, "initializer_range": 0.2,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = read_architecture({**shape, **ARCHITECTURES[architecture]})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
    return model.requires_grad_(False)


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line changes sys.argv for the processes that a launcher starts."""
    monkeypatch.setattr(sys, "argv", ["main.py"])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and released masks."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: tests on real data and released masks are skipped")
    return SHARED


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of invented languages in the hub's layout."""
    root = tmp_path_factory.mktemp("hub")
    write_hub(root, megabytes=0.25, dev=24, devtest=24, seed=0)
    return root


TINY_LLAMA = {
    "model_type": "llama", "hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


class Workplace:
    """A folder with text, caches and runs, and the keys that point the program at them."""

    def __init__(self, folder: Path, hub: Path) -> None:
        self.folder, self.hub = folder, hub
        self.atlas = folder / "cache/atlases"  # the file, once the adapted run has made it

    def keys(self, run_dir: str = "runs") -> list[str]:
        return [
            f"--run_dir={self.folder / run_dir}", f"--data.cache_dir={self.folder / 'cache'}",
            f"--data.source={self.hub}", f"--data.flores={self.hub}", "--trainer.precision=32-true",
            "--trainer.accelerator=cpu", "--data.block_size=64", "--data.batch_size=4",
        ]  # fmt: skip

    def new_base(self) -> list[str]:
        mixture = dict(zip(LANGUAGES, (10, 10, 10, 10, 10, 10, 10, 6), strict=True))
        return [
            "fit", "--model.base=null", "--model.method=full", f"--model.architecture={json.dumps(TINY_LLAMA)}",
            f"--data.mixture={json.dumps(mixture)}", "--data.watch=[]", "--data.train_tokenizer=512", "--name=base",
            "--data.token_budget=80000", "--model.lr=4e-3", "--trainer.validate_every=200", *self.keys(),
        ]  # fmt: skip

    def adapt(self, run_dir: str = "runs", **changes: object) -> list[str]:
        settings = {
            "language": "qah-Deva", "name": "adapted", "model.base": self.folder / "runs/base/model",
            "model.lr": 3e-3, "data.watch": '["qaa-Latn"]', "data.token_budget": 12288, "trainer.validate_every": 20,
            "profiling.languages": json.dumps(LANGUAGES), "profiling.tokens_per_language": 4096,
            "profiling.block_size": 128, "profiling.rate": 0.1,
        }  # fmt: skip
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        return ["fit", *(f"--{key}={value}" for key, value in settings.items()), *self.keys(run_dir)]


@pytest.fixture(scope="session")
def workplace(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with a base from scratch and one adapted run, both made by the command line."""
    from lightning_app.cli import main as command_line

    place = Workplace(tmp_path_factory.mktemp("workplace"), hub)
    before = sys.argv[:]
    assert command_line(place.new_base()) == 0
    assert command_line(place.adapt()) == 0
    sys.argv[:] = before
    (place.atlas,) = place.atlas.glob("*.safetensors")
    return place
