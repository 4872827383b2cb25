"""``doctor``: whether a run could be made here, and what mends it where not."""

import json
from dataclasses import asdict, replace

from lightning_app.cli.command_line import masked, quiet_libraries
from lightning_app.cli.verb import Verb, say
from lightning_app.doctor.finding import Finding, Findings, wrong
from lightning_app.doctor.installation import check_packages, check_python
from lightning_app.errors import UserError
from lightning_app.run import is_first_process

DOCTOR = Verb(
    "doctor",
    "Look at machine, packages, folders, hub, base and text, and say what is wrong and what mends it; train nothing.",
    (
        "language", "model.base", "model.revision", "data.source", "data.files", "data.flores", "data.watch",
        "data.cache_dir", "run_dir", "trainer.devices", "trainer.num_nodes", "json",
    ),
    {"json": (bool, False, "Print JSON.")},
)  # fmt: skip


def doctor(arguments: list[str], shows_all: bool) -> None:
    """Prints a line for everything that was looked at.

    Raises:
        UserError: Something would stop ``fit``.
    """
    if not is_first_process():
        return  # one is enough to ask the hub, and to look at what all share
    is_json = "--json" in arguments
    found: list[Finding] = []
    for finding in _examine(arguments, shows_all):
        finding = replace(finding, said=_plain(finding.said), mend=_plain(finding.mend))
        found.append(finding)
        if not is_json:
            say(finding.line)
    if is_json:
        print(json.dumps([asdict(finding) for finding in found], ensure_ascii=False, indent=2), flush=True)
    if refused := list(dict.fromkeys(finding.about for finding in found if finding.state == "wrong")):
        raise UserError(f"fit would not work here: {', '.join(refused)}; what mends it stands above")


def _plain(text: str) -> str:
    return masked(" ".join(text.split()))


def _examine(arguments: list[str], shows_all: bool) -> Findings:
    try:
        from lightning_app.cli.setup import read_setup
        from lightning_app.doctor.examination import examine
    except (ImportError, OSError) as error:
        yield from (*check_python(), *check_packages())
        said = f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        yield wrong("packages", said, "reinstall what it names: pip install --force-reinstall PACKAGE")
        return
    quiet_libraries()
    setup = read_setup(arguments, shows_all)
    yield from (*check_python(), *check_packages())
    yield from examine(setup)
