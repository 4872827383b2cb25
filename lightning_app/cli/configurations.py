"""Configuration files by name, looked at before they are parsed: what a YAML library takes in silence is refused."""

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from lightning_app.cli.keys import Keys, no_such_key
from lightning_app.cli.verb import say
from lightning_app.errors import UserError, did_you_mean

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
_GROUPS = ("trainer", "model", "data", "profiling")


def resolve_configs(arguments: list[str], keys: Keys) -> list[str]:
    """Returns the arguments with every ``--config NAME`` that is not in the working directory taken from configs/.

    Raises:
        UserError: There is no such file in either place, or it is no configuration of a verb with such keys.
    """
    resolved = list(arguments)
    for index, argument in enumerate(arguments):
        if argument in ("--config", "-c"):
            if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
                raise UserError("--config is without a value; expected --config FILE")
            resolved[index + 1] = _resolve(arguments[index + 1], keys)
        elif argument.startswith("--config="):
            resolved[index] = f"--config={_resolve(argument.removeprefix('--config='), keys)}"
    return resolved


def _resolve(name: str, keys: Keys) -> str:
    if name.lstrip().startswith("{"):
        check_text(name, "--config", None, keys)
        return name
    found = _find(name)
    check_file(Path(found), keys)
    return found


def _find(name: str) -> str:
    if os.path.isdir(name):
        raise UserError(f"--config {name} is a folder; expected a file such as {name.rstrip('/')}/config.yaml")
    if os.path.isfile(name):
        return name
    for candidate in (CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if os.path.isfile(candidate):
            say(f"configuration {os.path.relpath(candidate) if candidate.is_relative_to(Path.cwd()) else candidate}")
            return str(candidate)
    known = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
    raise UserError(
        f"there is no configuration {name}, neither here nor in configs/{did_you_mean(name, known) or ';'} "
        f"configs/ has {' '.join(known)}"
    )


def check_file(path: Path, keys: Keys, seen: tuple[Path, ...] = ()) -> None:
    """Looks at a configuration and at those that it inherits from with ``config: FILE``.

    Raises:
        UserError: It cannot be read, or `check_text` refuses it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"configuration {path} is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}; "
            "save it as UTF-8"
        ) from error
    parent = check_text(text, f"configuration {path}", path.parent, keys)
    if parent is not None and parent.is_file():
        if parent.resolve() in (*seen, path.resolve()):
            raise UserError(f"configuration {path} inherits from itself by `config: {parent.name}`; take that line out")
        check_file(parent, keys, (*seen, path.resolve()))


def check_text(text: str, name: str, folder: Path | None, keys: Keys) -> Path | None:
    """Returns the file that a configuration inherits from, if any.

    Raises:
        UserError: It is no YAML, empty, no mapping, has a key twice or one that there is not, or gives a group
            something else than keys.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or " ".join(str(error).split())
        raise UserError(f"{name} is no YAML{f', line {mark.line + 1}' if mark else ''}: {reason}") from error
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply to be a configuration") from error
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        raise UserError(f"{name} is empty; expected keys, for example `language: cy`")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text '{root.value[:40]}'"
        raise UserError(f"{name} is {kind}; expected keys with values, for example `language: cy`")
    for line, key, first in _repeated(root):
        raise UserError(f"{name} has the key {key} twice, in lines {first} and {line}; keep one")
    parent = None
    for key_node, value in root.value:
        if key_node.value in _GROUPS and not isinstance(value, yaml.MappingNode):
            kind = "a list" if isinstance(value, yaml.SequenceNode) else value.value or "null"
            raise UserError(
                f"{name} gives {key_node.value} as {kind}, line {value.start_mark.line + 1}; expected keys under it, "
                "or leave it out"
            )
        if key_node.value == "config" and isinstance(value, yaml.SequenceNode):
            raise UserError(f"{name} inherits from a list, line {value.start_mark.line + 1}; expected config: FILE")
        if key_node.value == "config" and isinstance(value, yaml.ScalarNode) and folder is not None:
            parent = folder / value.value
    for line, key in _unknown(root, keys):
        raise UserError(f"{name}, line {line}: {no_such_key(key, keys.kinds)}")
    return parent


def _unknown(root: yaml.MappingNode, keys: Keys, prefix: str = "") -> Iterator[tuple[int, str]]:
    """Yields line and dotted name of what is no key; what stands inside a value is left to the parser."""
    for key, value in root.value:
        name = f"{prefix}{key.value}".removesuffix("+")
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if keys.kind(name) is None:
            yield key.start_mark.line + 1, name
        elif keys.kind(name) == "group" and isinstance(value, yaml.MappingNode) and value is not root:
            yield from _unknown(value, keys, f"{name}.")


def _repeated(root: yaml.MappingNode) -> Iterator[tuple[int, str, int]]:
    """Yields line, dotted name and first line of keys that stand twice in one mapping."""
    waiting: list[tuple[yaml.Node, str]] = [(root, "")]
    seen: set[int] = set()  # anchors are shared, and may hold themselves
    while waiting:
        node, prefix = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(part, prefix) for part in node.value]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines and name != "<<":
                    yield line, f"{prefix}{name}", lines[name]
                lines[name] = line
                waiting.append((value, f"{prefix}{name}."))
