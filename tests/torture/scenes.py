"""What is killed: the program's own commands on invented languages, small enough that a run takes a few seconds."""

import json
from dataclasses import dataclass
from pathlib import Path

POOL = ["qaa-Latn", "qaf-Grek", "qah-Deva"]
TARGET, WATCHED = "qaf-Grek", "qaa-Latn"
_LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Commands that follow one another in a folder of their own.

    Attributes:
        name: Short.
        commands: Arguments of the command line; paths are relative to the folder.
        starts_processes: Whether a command starts others, which makes it slow.
        whole: What a command says that was killed when it had done everything, and is given again.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    starts_processes: bool = False
    whole: str | None = None


def _keys(hub: Path, **changes: object) -> list[str]:
    settings = {
        "run_dir": "runs", "data.cache_dir": "cache", "data.source": hub, "data.flores": hub, "data.block_size": 32,
        "data.batch_size": 4, "trainer.precision": "32-true", "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": 2, "trainer.validate_every": 4, "trainer.save_every": 1e-4,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in (settings | changes).items()]


def new_base(hub: Path) -> Scene:
    """A tokenizer and a base from scratch: caching, training, validating, saving, a model folder."""
    keys = {
        "model.base": "null", "model.method": "full", "model.architecture": json.dumps(_LLAMA), "model.lr": 5e-3,
        "data.mixture": json.dumps(dict.fromkeys(POOL, 1)), "data.watch": "[]", "data.train_tokenizer": 320,
        "data.token_budget": 3072, "name": "base",
    }  # fmt: skip
    return Scene("a base from scratch", (("fit", *_keys(hub, **keys)),))


def _adapting(hub: Path, base: Path, **changes: object) -> list[str]:
    settings = {
        "language": TARGET, "name": "adapted", "model.base": base, "model.lr": 3e-3, "data.watch": f'["{WATCHED}"]',
        "data.token_budget": 3072, "profiling.languages": json.dumps(POOL), "profiling.tokens_per_language": 2048,
        "profiling.block_size": 64, "profiling.rate": 0.3, "profiling.quantile": 0.5,
    }  # fmt: skip
    return _keys(hub, **(settings | changes))


def adapted(hub: Path, base: Path) -> Scene:
    """Neurons of a language, with all that has a state: accumulated steps, a schedule, an average of the weights."""
    fit = _adapting(
        hub, base, **{"model.ema": 0.9, "model.schedule": "cosine", "model.warmup_steps": 2,
                      "data.replay": json.dumps({WATCHED: 0.25}), "trainer.accumulate_grad_batches": 2,
                      "data.batch_size": 2},
    )  # fmt: skip
    found = next(index for index, key in enumerate(fit) if key.startswith("--name="))
    return Scene("neurons of a language", (("fit", *fit), ("predict", *fit[:found], *fit[found + 1 :])))


def adapter(hub: Path, base: Path) -> Scene:
    """PEFT's LoRA with dropout, whose result is an adapter folder."""
    return Scene(
        "an adapter",
        (("fit", *_adapting(hub, base, **{"model.method": "lora", "model.rank": 2, "model.dropout": 0.1})),),
    )


def profiles(hub: Path, base: Path) -> Scene:
    """Activations counted until the sets are stable, and neurons selected into a file."""
    keys = _adapting(hub, base, **{"profiling.stop_when_stable": 0.6, "profiling.atlas": "atlas.safetensors"})
    select = ["subnetwork", "--atlas=atlas.safetensors", "--profiling.rate=0.3", "--profiling.quantile=0.5"]
    return Scene("activations counted", (("profile", *keys), (*select, "--write=neurons.safetensors")))


def comparison(hub: Path, base: Path) -> Scene:
    """Two methods compared, each run a process of its own."""
    keys = [key for key in _adapting(hub, base, name="compared") if not key.startswith("--model.lr")]
    grid = ["--methods=subnetwork,ffn", "--lrs=10x", "--scale=0.5,1"]
    return Scene("a comparison", (("compare", *keys, *grid),), starts_processes=True)


def exports(hub: Path, run: Path) -> Scene:
    """What a run trained, in every form but that of another program; put onto its base, and taken off again."""
    keys = [f"--source={run}", *_keys(hub)]
    forms = {"delta": "delta.safetensors", "hf": "whole", "lora": "adapter"}
    commands = [("export", f"--to={form}", f"--out={out}", *keys) for form, out in forms.items()]
    off = ("apply", "--remove", "--base=applied", "--out=bare")
    return Scene(
        "exports",
        (*commands, ("apply", "delta.safetensors", "--out=applied"), off),
        whole="exists; choose another --out",
    )
