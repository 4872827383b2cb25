"""Configuration files, looked at before they are parsed: what a YAML library takes in silence is refused here."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from lightning_app.errors import UserError

_GROUPS = ("trainer", "model", "data", "profiling")


def check_file(path: Path, seen: tuple[Path, ...] = ()) -> None:
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
    parent = check_text(text, f"configuration {path}", path.parent)
    if parent is not None and parent.is_file():
        if parent.resolve() in (*seen, path.resolve()):
            raise UserError(f"configuration {path} inherits from itself by `config: {parent.name}`; take that line out")
        check_file(parent, (*seen, path.resolve()))


def check_text(text: str, name: str, folder: Path | None) -> Path | None:
    """Returns the file that a configuration inherits from, if any.

    Raises:
        UserError: It is no YAML, empty, no mapping, names a key twice, or gives a group something else than keys.
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
    return parent


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
