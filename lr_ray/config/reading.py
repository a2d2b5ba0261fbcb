"""Config files as trees: YAML, files laid over others, overrides; and what is wrong with a tree, in words."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lr_ray import redact

CLIP = 80  # characters of a value in a message


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: of two, YAML's own loader would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value} is there twice")
            seen.add(key.value)
        return node


def parsed(text: str) -> Any:
    """What YAML says.

    Raises:
        ValueError: it is not valid, or a key is in a mapping twice.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def tree(path: str, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The config file at `path`, which the files `over` are laid over, on its own bases.

    Raises:
        ValueError: one sentence naming the file.
    """
    try:
        found = parsed(Path(path).read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a config is UTF-8 text, and this is not") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot read the config: {error.strerror}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a config is a mapping of sections, this is a {type(found).__name__}")
    bases = found.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise ValueError(f"{path}: base: expected the name of a config file, or a list of them")
    over = (*over, Path(path).resolve())
    below: dict[str, Any] = {}
    for name in bases:
        base = Path(path).parent / name
        if base.resolve() in over:
            raise ValueError(f"{path}: base: {name} is laid over this file itself")
        below = _over(below, tree(str(base), over))
    return _over(below, found)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`."""
    merged = dict(below)
    for key, value in above.items():
        there = merged.get(key)
        merged[key] = _over(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return merged


def apply(tree: dict[str, Any], override: str) -> None:
    """Put a ``section.key=value`` into the tree.

    Raises:
        ValueError: one sentence naming the override.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected section.key=value")
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {override!r}: {section} is not a section")
    try:
        node[leaf] = parsed(value)
    except ValueError as error:
        raise ValueError(f"override {override!r}: {error}") from error


def said(error: ValidationError, tree: Any, under: str = "") -> str:
    """What is wrong first in a tree that is `under` a key: the key, what is due there, and what is there."""
    first = error.errors()[0]
    key = ".".join([under] * bool(under) + _path(first["loc"], tree)) or "(top)"
    value = first["input"]
    what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    told = first["type"] not in ("extra_forbidden", "value_error") and not redact.secret(key)
    if told and isinstance(value, str | int | float | None):
        what += f", not {redact.urls(value)!r:.{CLIP}}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {what}{more}"


def _path(loc: tuple[int | str, ...], tree: Any) -> list[str]:
    """The parts of `loc` that are keys: pydantic puts the names of a union's types between them."""
    found, node = [], tree
    for number, part in enumerate(loc, 1):
        if isinstance(node, list) or (isinstance(node, dict) and part in node):
            node = node[part]  # type: ignore[index]
        elif not isinstance(node, dict) or number < len(loc):
            continue
        found.append(str(part))
    return found
