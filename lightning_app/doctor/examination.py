"""Everything that is looked at, in the order of the report; no check hides another one's finding."""

from collections.abc import Callable

from lightning_app.doctor.access import check_base, check_flores, check_settings, check_text, check_tokenizer
from lightning_app.doctor.environment import check_hub, check_token, check_tokenizer_threads
from lightning_app.doctor.finding import Finding, Findings, State, wrong
from lightning_app.doctor.folders import check_folders
from lightning_app.doctor.machine import check_compiler, check_cores, check_device, check_host_memory
from lightning_app.doctor.needs import check_disk, check_memory
from lightning_app.doctor.processes import check_address, check_launch, check_shared_folders
from lightning_app.doctor.setup import Setup
from lightning_app.errors import UserError
from lightning_app.hub import hasty

# The base before the settings, the tokenizer and the text: what is wrong with it is said once, and as the base's.
CHECKS: dict[Callable[[Setup], Findings], str] = {
    check_device: "device", check_cores: "cores", check_host_memory: "host memory", check_compiler: "compiler",
    check_launch: "processes", check_address: "address", check_shared_folders: "shared folders",
    check_folders: "folders", check_hub: "hub", check_token: "token",
    check_tokenizer_threads: "tokenising", check_base: "base", check_settings: "settings",
    check_tokenizer: "tokenizer", check_text: "text", check_flores: "flores", check_disk: "disk",
    check_memory: "memory",
}  # fmt: skip

_WHAT_FIT_READS = (check_base, check_settings, check_tokenizer, check_text, check_flores)


def examine(setup: Setup) -> Findings:
    """Yields what every check finds; what two of them are stopped by is said once."""
    said: set[str] = set()
    with hasty():
        for check, about in CHECKS.items():
            for finding in _look(check, about, setup):
                if finding.state == "ok" or finding.said not in said:
                    yield finding
                said.add(finding.said)


def _look(check: Callable[[Setup], Findings], about: str, setup: Setup) -> Findings:
    try:
        yield from check(setup)
    except UserError as error:
        yield wrong(about, str(error))
    # A check of what may be broken meets errors that nobody foresaw; the others have to be made all the same.
    except Exception as error:
        state: State = "wrong" if check in _WHAT_FIT_READS else "warning"
        said = f"could not be looked at: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        yield Finding(about, state, said, "plan --debug with the same keys shows where")
