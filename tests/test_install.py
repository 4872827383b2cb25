"""The wheel: one package, nothing under a name that a user's own files may have, and all of the program in it."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import module_from_spec, spec_from_file_location

import pytest

import neuroglot
from lightning_app import __version__
from tests.conftest import ROOT

FOLDERS = ("lightning_app", "callbacks", "datamodules", "configs")
PARTS = (*FOLDERS, "neuroglot", "setup.py", "main.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE",
         "CHANGELOG.md", "CITATION.cff", "constraints.txt")  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind, checkout, out):
    done = subprocess.run([sys.executable, "-c", BUILD, kind, str(out)], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.strip().split("\n")[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the checkout, and the wheel made of it."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "checkout").mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / "checkout" / part)
    return folder, build("build_wheel", folder / "checkout", folder)


@pytest.fixture(scope="module")
def site(built):
    """A folder with what the wheel installs, and one of a user, with modules named like the folders of the checkout."""
    folder, wheel = built
    zipfile.ZipFile(wheel).extractall(folder / "site")
    (folder / "user").mkdir()
    for name in FOLDERS:
        (folder / "user" / f"{name}.py").write_text(f"raise ImportError('{name} of the user')\n")
    return folder / "site", folder / "user"


def run(site, *arguments):
    """Runs Python in the user's folder, whose modules come before the checkout's."""
    path = os.pathsep.join(map(str, site))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site[1],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_only_one_name_is_installed(site):
    names = {path.name for path in site[0].iterdir()}
    assert names == {"neuroglot", f"neuroglot-{__version__}.dist-info"}
    scripts = (site[0] / f"neuroglot-{__version__}.dist-info/entry_points.txt").read_text()
    assert scripts.split() == ["[console_scripts]", "neuroglot", "=", "neuroglot.__main__:main"]


def test_every_file_of_the_checkout_is_in_the_wheel(site):
    expected = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {str(path.relative_to(site[0] / "neuroglot")) for path in (site[0] / "neuroglot").rglob("*")}
    assert expected <= found
    assert "lightning_app/cli/keys.json" in found


def test_nothing_in_the_wheel_names_a_module_of_the_checkout(site):
    names = re.compile(r"(lightning_app|callbacks|datamodules)(\.\w+)*")
    for path in (site[0] / "neuroglot").rglob("*.*"):
        assert "python main.py" not in path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.suffix == ".py" else ():
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not names.fullmatch(node.module), path
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if names.fullmatch(alias.name)], path
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
                assert not names.fullmatch(node.value), path


def test_the_source_distribution_builds_the_same_wheel(built, tmp_path):
    folder, wheel = built
    source = build("build_sdist", folder / "checkout", tmp_path)
    shutil.unpack_archive(source, tmp_path, filter="data")
    again = build("build_wheel", tmp_path / f"neuroglot-{__version__}", tmp_path)
    first, second = ({file.filename: file.CRC for file in zipfile.ZipFile(path).infolist()} for path in (wheel, again))
    assert first == second


def test_the_command_and_every_module_run_where_the_user_has_modules_of_the_same_names(site):
    shown = run(site, "-m", "neuroglot", "fit", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage: neuroglot fit [--config FILE]... [--KEY VALUE]..." in shown.stdout
    program = """
import importlib, pathlib, sys, neuroglot
assert neuroglot.find_language("cy").name == "Welsh" and "torch" not in sys.modules
root = pathlib.Path(neuroglot.__file__).parent
for path in sorted(root.rglob("*.py")):
    if path.name != "__main__.py":
        importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"))
assert all(getattr(neuroglot, name) is not None for name in dir(neuroglot))
assert neuroglot.load_adapted.__module__ == "neuroglot.lightning_app.adapted"
print(root)
"""
    done = run(site, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(site[0] / "neuroglot")


@pytest.fixture(scope="module")
def setup_file():
    spec = spec_from_file_location("setup_file", ROOT / "setup.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from lightning_app import __version__\n", "from neuroglot.lightning_app import __version__\n"),
        ("if x:\n    from  callbacks.console import Console\n",
         "if x:\n    from  neuroglot.callbacks.console import Console\n"),
        ("é = 'é'; a = 'callbacks.console.Console', 'callbacks'\n",
         "é = 'é'; a = 'neuroglot.callbacks.console.Console', 'callbacks'\n"),
        ("from neuroglot.callbacks.console import Console\n", "from neuroglot.callbacks.console import Console\n"),
        ("from .callbacks import x\nfrom callbacks_of_mine import y\n",
         "from .callbacks import x\nfrom callbacks_of_mine import y\n"),
        ("config['callbacks'].x = 'callbacks.unknown'\n", "config['callbacks'].x = 'callbacks.unknown'\n"),
    ],
)  # fmt: skip
def test_what_is_moved_and_what_is_not(text, expected, setup_file):
    assert setup_file.moved(text, "x.py") == expected
    assert setup_file.moved(expected, "x.py") == expected


@pytest.mark.parametrize(
    "text", ["import callbacks.console\n", "import lightning_app as app\n", "f'datamodules.{x}'\n"]
)
def test_what_cannot_be_moved_ends_the_build(text, setup_file):
    with pytest.raises(setup_file.SetupError, match=r"x\.py, line 1: .* cannot be moved"):
        setup_file.moved(text, "x.py")


def test_names_of_the_python_interface_are_typed_and_imported_alike():
    tree = ast.parse(inspect.getsource(neuroglot))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {alias.name: node.module for node in typed.body for alias in node.names}
    assert declared == {name: home for home, names in neuroglot._HOMES.items() for name in names}
    assert {*declared, "__version__"} == set(neuroglot.__all__) == set(dir(neuroglot))
    assert all(getattr(neuroglot, name) is not None for name in declared)
    with pytest.raises(AttributeError, match="no attribute 'lod_adapted'"):
        neuroglot.lod_adapted  # noqa: B018
