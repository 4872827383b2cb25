"""The entry point: finds the verb, keeps libraries quiet, and turns bad input into one line and exit code 2."""

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial

from lightning_app.cli.compare import COMPARE, compare
from lightning_app.cli.fit import FIT, fit
from lightning_app.cli.measure import PREDICT, TEST, VALIDATE, measure
from lightning_app.cli.parser import HELP_ALL, Verb, resolve_configs
from lightning_app.cli.plan import PLAN, plan
from lightning_app.cli.profile import PROFILE, profile
from lightning_app.cli.subnetwork import SUBNETWORK, subnetwork
from lightning_app.errors import UserError, did_you_mean
from lightning_app.files import is_disk_full

VERBS: dict[str, tuple[Verb, Callable[[list[str], bool], None]]] = {
    FIT.name: (FIT, fit),
    **{verb.name: (verb, partial(measure, verb)) for verb in (VALIDATE, TEST, PREDICT)},
    PROFILE.name: (PROFILE, profile),
    PLAN.name: (PLAN, plan),
    COMPARE.name: (COMPARE, compare),
    SUBNETWORK.name: (SUBNETWORK, subnetwork),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, or 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _quiet_libraries()
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview(), flush=True)
            return 0 if arguments else 2
        _run(arguments[0], arguments[1:])
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        return _fail(f"the disk is full: {error}; free some space and run the same command again")
    return 0


def _run(name: str, arguments: list[str]) -> None:
    if name not in VERBS:
        raise UserError(f"there is no verb '{name}'; expected one of {', '.join(VERBS)}{did_you_mean(name, VERBS)}")
    shows_all = HELP_ALL in arguments
    arguments = resolve_configs(["--help" if argument == HELP_ALL else argument for argument in arguments])
    sys.argv[1:] = [name, *arguments]  # what a launcher of more processes starts again
    VERBS[name][1](arguments, shows_all)


def _overview() -> str:
    lines = ["Neuroglot: teach a language model a language by training only the neurons that speak it.", ""]
    lines += ["usage: python main.py VERB [--config FILE]... [--KEY VALUE]...", ""]
    lines += [f"  {name:<12}{re.split('[;:]', verb.does)[0].rstrip('.')}" for name, (verb, _) in VERBS.items()]
    return "\n".join([*lines, "", "python main.py VERB --help shows the keys of a verb."])


def _quiet_libraries() -> None:
    """Leaves the terminal to what concerns the user; what these say is either said better here or not true here."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*", ".*is smaller than the logging interval.*", ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*", ".*Checkpoint directory.*", ".*`srun` command is available.*",
        ".*predict_dataloader.* returned 0 length.*", ".*Total length of.*",
        ".*callbacks used to create the checkpoint.*", ".*recommended to use `self.log.*sync_dist.*",
        ".*your dataloader is not resumable.*", ".*Sparse invariant checks.*", ".*is_gradient_checkpointing.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", pattern)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _fail(line: str) -> int:
    rank = os.environ.get("SLURM_PROCID", os.environ.get("RANK", os.environ.get("LOCAL_RANK", "")))
    if "SLURM_STEP_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun ends all tasks when one fails; 2, not 143, is the reason
    print(f"neuroglot{f' [{rank}]' if rank not in ('', '0') else ''}: error: {line}", file=sys.stderr, flush=True)
    return 2
