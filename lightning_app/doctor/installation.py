"""Python and the packages that are installed. Imports none of them: one of them may be what is wrong."""

import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lightning_app.doctor.finding import Finding, Findings, ok, wrong

_DISTRIBUTION = "neuroglot"
_PYPROJECT = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
_NAMED = ("torch", "lightning", "transformers", "datasets", "huggingface_hub")


def check_python() -> Findings:
    """Python is one that this program runs on."""
    needed, found = SpecifierSet(_read_project()[0]), platform.python_version()
    if needed.contains(found, prereleases=True):
        yield ok("python", f"{found} on {platform.system()} {platform.machine()}")
    else:
        yield wrong("python", f"{found}; expected {needed}", "make another environment, with such a Python")


def check_packages() -> Findings:
    """Every package is there, in a version within the range that is supported."""
    found: dict[str, str] = {}
    refused: list[Finding] = []
    for requirement in _read_project()[1]:
        try:
            version = found[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            refused.append(wrong("packages", f"{requirement.name} is not installed", _install(requirement)))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            said = f"{requirement.name} is {version}; expected {requirement.specifier}"
            refused.append(wrong("packages", said, _install(requirement)))
    yield from refused
    if not refused:
        versions = ", ".join(f"{name} {found[name]}" for name in _NAMED)
        yield ok("packages", f"{versions}; all {len(found)} within the ranges that are supported")


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement}'"


def _read_project() -> tuple[str, list[Requirement]]:
    """Returns which Python and which packages are needed, of the checkout or else of what is installed."""
    if _PYPROJECT.is_file():
        project = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], [Requirement(each) for each in project["dependencies"]]
    found = metadata.metadata(_DISTRIBUTION)
    needed = [Requirement(each) for each in found.get_all("Requires-Dist", [])]
    return found["Requires-Python"], [each for each in needed if each.marker is None or each.marker.evaluate()]
