"""The entry point: finds the verb, keeps libraries quiet, and turns bad input into one line and exit code 2."""

import codecs
import contextlib
import errno
import io
import json
import logging
import os
import re
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import TextIO

from lightning_app.cli.configurations import resolve_configs
from lightning_app.cli.keys import HELP, HELP_ALL, Keys, help_page, overview
from lightning_app.cli.verb import Verb
from lightning_app.errors import UserError, did_you_mean
from lightning_app.peers import PeerEnded, company, conclude, has_others, is_of_another

DEBUG = "--debug"
_UNUSABLE = (
    errno.ENAMETOOLONG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
)  # fmt: skip

VERBS = {
    "fit": "fit",
    "validate": "measure",
    "test": "measure",
    "predict": "measure",
    "profile": "profile",
    "plan": "plan",
    "compare": "compare",
    "evaluate": "evaluate",
    "generate": "generate",
    "analyze": "analyze",
    "report": "report",
    "export": "export",
    "apply": "apply",
    "subnetwork": "subnetwork",
    "atlas": "atlas",
    "runs": "runs",
    "doctor": "doctor",
}
"""Every verb, and the file beside this one that is imported when it is called: for `validate` there are `VALIDATE`, a
`Verb`, and the function `validate` in measure.py. ``make keys`` after a change."""

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true",
}  # fmt: skip
"""What libraries read when they are imported."""


def find_verb(name: str) -> tuple[Verb, Callable[[list[str], bool], None]]:
    """Returns a verb and what it does with its arguments, and whether its help shows every key."""
    module = import_module(f".{VERBS[name]}", __package__)
    return getattr(module, name.upper()), getattr(module, name)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0 is success, 2 input that cannot be used, 1 anything else that failed, 130 Ctrl-C, 141 a reader of the output that
    left.

    Raises:
        Exception: What failed, with ``--debug``.
    """
    if arguments is None:
        _write_any_text()
        arguments = sys.argv[1:]
    is_debugged, arguments = DEBUG in arguments, [argument for argument in arguments if argument != DEBUG]
    try:
        if not arguments or arguments[0] in HELP:
            print(overview(), flush=True)
            return 0 if arguments else 2
        with company(_say):
            _run(arguments[0], arguments[1:], [DEBUG] if is_debugged else [])
        sys.stdout.flush()
    except (Exception, PeerEnded) as error:
        if _is_output_closed(error):
            return conclude("", _leave_quietly())
        if is_debugged and not has_others():
            raise
        return _explain(error, is_debugged)
    except KeyboardInterrupt:
        return conclude("interrupted; nothing is lost, the same command goes on", 128 + signal.SIGINT)
    return 0


def _write_any_text() -> None:
    """Starts this process anew where it would read names and print text as ASCII; prints escapes where it must.

    An ASCII locale takes every name that is not ASCII apart into bytes, which no configuration or record can hold.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    codecs.register_error("escaped", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escaped")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Returns what stands for characters that a terminal cannot show: escapes that JSON knows, too."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _require_text(arguments: list[str]) -> None:
    """Raises `UserError` where an argument holds bytes that are no text: nothing that is written could hold them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{argument[:200]!a} is not UTF-8; rename what it names, or call it otherwise") from error


def _explain(error: BaseException, is_debugged: bool = False) -> int:
    """Prints one line about what failed and returns the exit code."""
    if is_of_another(error):
        return conclude("", 1)
    if is_debugged:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        return _fail(str(error), 2)
    from lightning_app.files import is_disk_full

    if is_disk_full(error):
        return _fail(f"the disk is full: {error}; free some space and run the same command again", 2)
    if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename:
        place = str(error.filename)[:200]
        return _fail(
            f"{place} cannot be read or written: {error.strerror}; choose another --name, --run_dir or "
            "--data.cache_dir, or mend the place",
            2,
        )
    said = " ".join(str(error).split())
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for keys that it only now looks at
        return _fail(f"Lightning refuses the --trainer keys: {said[:300]}", 2)
    reason = f"{type(error).__name__}{f': {said[:400]}' if said else ''}"
    return _fail(f"{reason}; the same command with {DEBUG} shows where", 1)


def _run(name: str, arguments: list[str], debug: list[str]) -> None:
    if name not in VERBS:
        raise UserError(f"there is no verb '{name}'; expected one of {', '.join(VERBS)}{did_you_mean(name, VERBS)}")
    _require_text(arguments)
    keys = Keys.of(name)
    if not set(HELP).isdisjoint(arguments):
        print(help_page(name, keys.does, keys.shown))
        return
    if keys.takes_source and arguments and not arguments[0].startswith("-"):
        arguments = ["--source", *arguments]
    arguments, shows_all = ["--help" if each == HELP_ALL else each for each in arguments], HELP_ALL in arguments
    arguments = keys.tidy(arguments)
    keys.require(arguments)
    arguments = resolve_configs(arguments, keys)
    sys.argv[1:] = [name, *arguments, *debug]  # what a launcher of more processes starts again
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # speaks while it is imported, of kernels not here
    _, run = find_verb(name)
    quiet_libraries()  # Lightning makes its loggers talkative when it is imported
    run(arguments, shows_all)


def quiet_libraries() -> None:
    """Leaves the terminal to what concerns the user; what these say is either said better here or not true here.

    A verb that imports them later calls it once more then.
    """
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
        ".*Grad strides do not match.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", pattern)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def _fail(line: str, code: int) -> int:
    if "SLURM_STEP_ID" in os.environ:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # srun ends all tasks when one fails; this, not 143, is the reason
    return conclude(line, code)


def _say(rank: int, line: str) -> None:
    """Prints why the process of a rank ended."""
    where = f" [{rank}]" if rank else ""
    with contextlib.suppress(BrokenPipeError):
        print(f"neuroglot{where}: error: {masked(' '.join(line.split()))}", file=sys.stderr, flush=True)


def masked(line: str) -> str:
    """Returns a line without the user's tokens and passwords.

    >>> masked("refused hf_AbCdEfGhIjKlMnOpQrStUvWx by http://me:secret@proxy:1")
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
