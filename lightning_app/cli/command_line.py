"""The entry point: finds the verb, keeps libraries quiet, and turns bad input into one line and exit code 2."""

import contextlib
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TextIO

from lightning_app.cli.compare import COMPARE, compare
from lightning_app.cli.fit import FIT, fit
from lightning_app.cli.measure import PREDICT, TEST, VALIDATE, measure
from lightning_app.cli.parser import HELP_ALL, Verb, resolve_configs
from lightning_app.cli.plan import PLAN, plan
from lightning_app.cli.profile import PROFILE, profile
from lightning_app.cli.subnetwork import SUBNETWORK, subnetwork
from lightning_app.errors import UserError, did_you_mean
from lightning_app.files import is_disk_full

DEBUG = "--debug"

VERBS: dict[str, tuple[Verb, Callable[[list[str], bool], None]]] = {
    FIT.name: (FIT, fit),
    **{verb.name: (verb, partial(measure, verb)) for verb in (VALIDATE, TEST, PREDICT)},
    PROFILE.name: (PROFILE, profile),
    PLAN.name: (PLAN, plan),
    COMPARE.name: (COMPARE, compare),
    SUBNETWORK.name: (SUBNETWORK, subnetwork),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0 is success, 2 input that cannot be used, 1 anything else that failed, 141 a reader of the output that left.

    Raises:
        Exception: What failed, with ``--debug``.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    is_debugged, arguments = DEBUG in arguments, [argument for argument in arguments if argument != DEBUG]
    try:
        _quiet_libraries()
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview(), flush=True)
            return 0 if arguments else 2
        _run(arguments[0], arguments[1:], [DEBUG] if is_debugged else [])
        sys.stdout.flush()
    except Exception as error:
        if _is_output_closed(error):
            return _leave_quietly()
        if is_debugged:
            raise
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    """Prints one line about what failed and returns the exit code."""
    if isinstance(error, UserError):
        return _fail(str(error), 2)
    if is_disk_full(error):
        return _fail(f"the disk is full: {error}; free some space and run the same command again", 2)
    said = " ".join(str(error).split())
    reason = f"{type(error).__name__}{f': {said[:400]}' if said else ''}"
    return _fail(f"{reason}; the same command with {DEBUG} shows where", 1)


def _run(name: str, arguments: list[str], debug: list[str]) -> None:
    if name not in VERBS:
        raise UserError(f"there is no verb '{name}'; expected one of {', '.join(VERBS)}{did_you_mean(name, VERBS)}")
    shows_all = HELP_ALL in arguments
    arguments = resolve_configs(["--help" if argument == HELP_ALL else argument for argument in arguments])
    sys.argv[1:] = [name, *arguments, *debug]  # what a launcher of more processes starts again
    VERBS[name][1](arguments, shows_all)


def _overview() -> str:
    lines = ["Neuroglot: teach a language model a language by training only the neurons that speak it.", ""]
    lines += ["usage: python main.py VERB [--config FILE]... [--KEY VALUE]...", ""]
    lines += [f"  {name:<12}{re.split('[;:]', verb.does)[0].rstrip('.')}" for name, (verb, _) in VERBS.items()]
    return "\n".join(
        [
            *lines,
            "",
            "python main.py VERB --help shows the keys of a verb; --debug shows where an unforeseen error arose.",
        ]
    )


def _quiet_libraries() -> None:
    """Leaves the terminal to what concerns the user; what these say is either said better here or not true here."""
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "httpx",
        "datasets",
        "huggingface_hub",
    ):
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


def _fail(line: str, code: int) -> int:
    rank = os.environ.get("SLURM_PROCID", os.environ.get("RANK", os.environ.get("LOCAL_RANK", "")))
    if "SLURM_STEP_ID" in os.environ:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # srun ends all tasks when one fails; this, not 143, is the reason
    where = f" [{rank}]" if rank not in ("", "0") else ""
    with contextlib.suppress(BrokenPipeError):
        print(f"neuroglot{where}: error: {_masked(' '.join(line.split()))}", file=sys.stderr, flush=True)
    return code


def _masked(line: str) -> str:
    """Returns a line without the user's tokens and passwords.

    >>> _masked("refused hf_AbCdEfGhIjKlMnOpQrStUvWx by http://me:secret@proxy:1")
    'refused hf_*** by http://***@proxy:1'
    """
    line = re.sub(r"hf_[A-Za-z0-9]{16,}", "hf_***", line)
    own = {os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")}
    for token in own:
        if len(token) >= 8:
            line = line.replace(token, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", line)


def _is_output_closed(error: BaseException | None) -> bool:
    """Tells whether a pipe broke because who read stdout or stderr left: `| head -1`; others are failures."""
    while error is not None and not isinstance(error, BrokenPipeError):
        error = error.__cause__ or error.__context__
    return error is not None and any(map(_is_closed, (sys.stdout, sys.stderr)))


def _is_closed(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):
        return False  # no file: a test's or a notebook's
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _leave_quietly() -> int:
    """Drops what is still to be written, so that the interpreter has nothing to complain of at its end."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(_is_closed, (sys.stdout, sys.stderr)):
        os.dup2(nothing, stream.fileno())
    os.close(nothing)
    return 128 + signal.SIGPIPE
