"""Finished runs made by hand, and the interval that their seeds should have."""

import json
import math
import statistics

from lightning_app.comparison.results import read_result
from lightning_app.run import RunFolder

BEFORE = {"cy": [2.5, 1.0], "en": [2.0, 0.8], "fr": [2.1, 0.9]}
METHODS = {"subnetwork": {}, "lora": {"rank": 8}, "random_neurons": {}}
GAIN = {"subnetwork": 0.30, "lora": 0.25, "random_neurons": 0.10}
RISE = {"subnetwork": 0.02, "lora": 0.06, "random_neurons": 0.05}


def write_run(folder, method="lora", lr=1e-4, seed=0, gain=0.2, rise=0.05, settings=None, **changes):
    """A finished run by hand: the target falls by `gain`, English rises by `rise`, French by half of that."""
    best = {"cy": [2.5 - gain, 1.0 - gain / 3], "en": [2.0 + rise, 0.8], "fr": [2.1 + rise / 2, 0.9]}
    record = {
        "status": "complete", "configuration": folder.name, "device": "cpu", "processes": 1,
        "base": {"name": "tiny", "fingerprint": "f1"}, "method": method, "lr": lr, "seed": seed,
        "language": ["cym-Latn"], "targets": {"cy": 1.0}, "settings": settings or {},
        "validation": {code: f"text of {code}" for code in BEFORE},
        "result": {
            "trained_parameters": 1_200_000, "parameters": 100_000_000, "tokens": 600_000, "steps": 600,
            "seconds": 60.0 + seed, "tokens_per_second": 10_000.0, "peak_gib": 1.5, "before": BEFORE,
            "best": {"step": 600, "losses": best}, "last": {"step": 600, "losses": best},
        },
    }  # fmt: skip
    for key, value in changes.items():
        (record["result"] if key in record["result"] else record)[key] = value
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    lines = [json.dumps({"step": step, "train/loss": 1.0}) for step in (20, 40)]
    for step in range(60, 601, 60):
        loss = 2.5 - gain * (1 - math.exp(-step / 150))
        lines.append(json.dumps({"step": step, "val/loss": loss, "val/loss/cy": loss, "val/change/en": rise}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return RunFolder(folder)


def noise(*key):
    """A number in -1..1 that depends on the key only."""
    return math.sin(sum((i + 1) * ord(c) for i, c in enumerate(str(key))))


def make_results(folder):
    """Three methods at two rates under two or three seeds; seeds shift all methods alike."""
    runs = []
    for method, settings in METHODS.items():
        for lr, factor in ((1e-4, 0.6), (1e-3, 1.0)):
            for seed in range(2 if method == "lora" else 3):
                gain = factor * GAIN[method] + 0.02 * seed + 1e-3 * noise(method, lr, seed)
                rise = factor**2 * RISE[method] + 2e-3 * noise(seed, method, lr)
                runs.append(write_run(folder / f"{method}-{lr}-{seed}", method, lr, seed, gain, rise, settings))
    return [read_result(run) for run in runs]


def t_quantile(freedom):
    """97.5 % quantile of Student's t, by integrating its density and halving intervals."""
    norm = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)

    def upper_tail(x, n=4000):  # with x = sqrt(freedom) tan(angle) the density becomes a power of the cosine
        start, end = math.atan(x / math.sqrt(freedom)), math.pi / 2
        width = (end - start) / n
        return norm * math.sqrt(freedom) * width * sum(
            math.cos(start + (i + 0.5) * width) ** (freedom - 1) for i in range(n)
        )  # fmt: skip

    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle) > 0.025 else (low, middle)
    return low


def interval(values):
    return t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
