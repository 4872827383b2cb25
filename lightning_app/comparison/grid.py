"""Which runs a comparison is made of: methods x learning rates x seeds, each an ordinary run."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_app.errors import UserError
from lightning_app.files import JSON
from lightning_app.methods.registry import METHODS, build_method, find_method, method_keys


@dataclass(frozen=True)
class GridRun:
    """One run of a comparison.

    Attributes:
        method: As ``--model.method`` names it.
        lr: Learning rate.
        seed: Of everything that is drawn.
    """

    method: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder.

        >>> GridRun("lora", 0.0001, 1).name
        'lora-lr0.0001-seed1'
        """
        return f"{self.method}-lr{self.lr:g}-seed{self.seed}"

    def configure(self, config: JSON, run_dir: str) -> JSON:
        """Returns a configuration with this run's method, rate and seed; keys of other methods are at their defaults.

        Args:
            config: Resolved, of all runs of the comparison.
            run_dir: Folder of the comparison.
        """
        own = method_keys(self.method)
        every = {key: default for name in METHODS for key, default in method_keys(name).items()}
        config = copy.deepcopy(config)
        for key, default in every.items():
            if key in config["model"] and key not in own:
                config["model"][key] = list(default) if isinstance(default, tuple) else default
        config["model"] |= {"method": self.method, "lr": self.lr}
        return {**config, "seed_everything": self.seed, "name": self.name, "run_dir": run_dir}


def make_grid(methods: Sequence[str], rates: Sequence[str], seeds: Sequence[int]) -> list[GridRun]:
    """Returns the runs of a comparison, seeds innermost.

    Args:
        methods: Names.
        rates: Learning rates, ``3e-4``, or multiples of each method's own, ``3x``.
        seeds: Whole numbers.

    Raises:
        UserError: There is no such method, a rate is no number above zero, or something is named twice.

    >>> [run.name for run in make_grid(["subnetwork", "ffn"], ["3x"], [0])]
    ['subnetwork-lr0.0003-seed0', 'ffn-lr3e-05-seed0']
    """
    for what, given in (("--methods", methods), ("--lrs", rates), ("--seeds", seeds)):
        if not given:
            raise UserError(f"{what} is empty; expected at least one")
    runs: list[GridRun] = []
    for method in methods:
        for rate in rates:
            lr = _rate(rate, find_method(method).lr)
            runs += [GridRun(method, lr, seed) for seed in seeds]
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the comparison has {twice} twice; name every method, rate and seed once")
    return runs


def check_grid(grid: Sequence[GridRun], config: JSON) -> None:
    """Refuses before the first run what would end every run, or some of them.

    Raises:
        UserError: There is no language or no base, a key is refused by its method, or is no key of any in the grid.
    """
    model = config["model"]
    if not config["language"]:
        raise UserError("no language to compare methods for: give --language (cy, say) or --config cy.yaml")
    if not model["base"]:
        raise UserError("no base model: give --model.base (a hub name or a folder)")
    methods = dict.fromkeys(run.method for run in grid)
    keys = {key: default for name in METHODS for key, default in method_keys(name).items() if key in model}
    for key, default in keys.items():
        is_read = any(key in method_keys(name) for name in methods)
        if not is_read and model[key] != (list(default) if isinstance(default, tuple) else default):
            raise UserError(f"--model.{key} is {model[key]}, a key that none of {', '.join(methods)} has; leave it out")
    for name in methods:
        build_method(name, {key: model[key] for key in keys if key in method_keys(name)})


def _rate(text: str, own: float) -> float:
    try:
        rate = float(text.removesuffix("x")) * (own if text.endswith("x") else 1.0)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(
            f"--lrs has '{text}'; expected rates such as 3e-4, or multiples of each method's own such as 3x"
        )
    return float(f"{rate:.6g}")
