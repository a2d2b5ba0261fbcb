"""All keys of a config as one page: `make format` writes README.md beside this file, a test holds it.

python -m lr_ray.config.reference > lr_ray/config/README.md
"""

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lr_ray.config import Config
from lr_ray.config.section import Section

HEAD = """# Every key of a config

Written by `python -m lr_ray.config.reference` from the docstrings beside the keys; unknown keys are refused.
On the command line a key is `section.key=value`, with YAML as the value. `base: [other.yaml]` lays a file
over others: sections are merged, everything else is replaced.
"""


def page() -> str:
    """The page, in markdown: a table for each section, in the order of the code."""
    top = [(name, field) for name, field in Config.model_fields.items() if not _sections(field.annotation)]
    parts = [HEAD, _table(top, "")]
    for name, field in Config.model_fields.items():
        for section in _sections(field.annotation):
            parts.append(f"\n## {name}\n\n{_text(field)}\n")
            parts.append(_table(list(_keys(section, "")), f"{name}."))
    return "\n".join(parts) + "\n"


def _keys(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """The keys of a section and of those inside it; of a list of sections, `[]` stands for one of them."""
    for name, field in section.model_fields.items():
        inner = _sections(field.annotation)
        if not inner or not _always(field):
            yield prefix + name, field
        mark = "[]" if get_origin(field.annotation) is list else ""
        for one in inner:
            yield from _keys(one, f"{prefix}{name}{mark}.")


def _always(field: FieldInfo) -> bool:
    """Whether the key is a section and nothing else, so that its keys say all."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a key of this type holds."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _table(keys: list[tuple[str, FieldInfo]], prefix: str) -> str:
    rows = [f"| `{prefix}{name}` | {_default(field)} | {_text(field)} |" for name, field in keys]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    assert default is not PydanticUndefined
    return "none" if default is None else f"`{json.dumps(default, default=str, ensure_ascii=False)}`"


def _text(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    choices = [str(choice) for choice in _choices(field.annotation)]
    # Where the sentence names them all, they need not stand twice.
    unnamed = [choice for choice in choices if choice not in text]
    return f"{text} One of: {', '.join(choices)}." if unnamed else text


def main() -> None:
    """Print the page."""
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
