"""Builds the wheel: what is installed is one package, ``neuroglot``, with the folders of the checkout inside it.

``callbacks``, ``datamodules`` and ``configs`` are names that a user's own files have, so they are never installed as
such: every module that names one of the folders is copied with ``neuroglot.`` in front of the name, and messages say
``neuroglot`` instead of ``python main.py``. All else is in pyproject.toml.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
FOLDERS = ("lightning_app", "callbacks", "datamodules")
_STARTS = tuple(f"{folder}." for folder in FOLDERS)
_NAME = re.compile(rf"(?:{'|'.join(FOLDERS)})(?:\.\w+)*")


class BuildInside(build_py):
    """Copies the folders into the package."""

    def run(self) -> None:
        """Builds; an editable install stays as the checkout is."""
        if self.editable_mode:
            return super().run()
        rmtree(Path(self.build_lib, "neuroglot"), ignore_errors=True)  # of an earlier build, with files that are gone
        for folder in FOLDERS:
            self.packages += [f"neuroglot.{name}" for name in (folder, *_inside(folder))]
            self.package_dir[f"neuroglot.{folder}"] = folder
            self.package_data[f"neuroglot.{folder}"] = ["**/*"]
        self.packages.append("neuroglot.configs")
        self.package_dir["neuroglot.configs"] = "configs"
        self.package_data["neuroglot.configs"] = ["**/*"]
        self.exclude_package_data[""] = ["*.py", "*.py[cod]"]
        super().run()
        for file in map(Path, self.get_outputs(include_bytecode=False)):
            file.write_text(moved(file.read_text(encoding="utf-8"), file.name), encoding="utf-8")


def _inside(folder: str) -> list[str]:
    return [f"{folder}.{name}" for name in find_packages(str(ROOT / folder))]


def moved(text: str, name: str) -> str:
    r"""Returns a file's text as it stands inside the package.

    >>> moved("from callbacks.console import Console\nUSAGE = 'python main.py fit'\n", "x.py")
    "from neuroglot.callbacks.console import Console\nUSAGE = 'neuroglot fit'\n"

    Raises:
        SetupError: A module names one of the folders in a way that cannot be followed.
    """
    if name.endswith(".py"):
        text = _with_prefixes(text, name)
    return text.replace("python main.py", "neuroglot")


def _with_prefixes(source: str, name: str) -> str:
    """Puts the package in front of what `from ... import` and dotted names in text name: ``"callbacks.console"``."""
    found = {place for node in ast.walk(ast.parse(source, name)) for place in _places(node, name)}
    lines = source.encode().split(b"\n")  # positions are bytes
    for line, column, module in sorted(found, reverse=True):
        at = lines[line - 1].index(module.encode(), column)
        lines[line - 1] = lines[line - 1][:at] + b"neuroglot." + lines[line - 1][at:]
    return b"\n".join(lines).decode()


def _places(node: ast.AST, file: str) -> Iterator[tuple[int, int, str]]:
    """Yields line, column and name of a module of the folders that a node names."""
    match node:
        case ast.ImportFrom(module=str(module), level=0) if _NAME.fullmatch(module):
            yield node.lineno, node.col_offset, module
        case ast.Constant(value=str(text)) if _NAME.fullmatch(text) and _is_here(text):
            yield node.lineno, node.col_offset, text
        case ast.Import(names=names) if used := [each.name for each in names if _NAME.fullmatch(each.name)]:
            raise SetupError(f"{file}, line {node.lineno}: import {used[0]} cannot be moved; write from ... import")
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if text.startswith(_STARTS):
            raise SetupError(f"{file}, line {node.lineno}: a name that is put together cannot be moved: {text}")


def _is_here(name: str) -> bool:
    """Tells whether a dotted name leads to a module; a folder's own is a word like any other, ``"callbacks"``."""
    parts = name.split(".")
    paths = [ROOT.joinpath(*parts[:length]) for length in range(2, len(parts) + 1)]
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in paths)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildInside})
