# pyright: basic
# PyYAML ships no types.
"""YAML for people: plain values with the line of every key, and errors that say where.

Only what settings need: mappings, lists and scalars as YAML 1.2 reads them, so that `5e-7` is a number and
`on` is text (YAML 1.1, PyYAML's own reading, disagrees). No tags, anchors or merge keys; a key occurs once.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str, ...]  # keys from the root


class YamlError(ValueError):
    """Text that is not usable YAML; the message starts with where."""


@dataclass(frozen=True)
class Document:
    value: Any
    lines: dict[Path, int] = field(default_factory=dict[Path, int])  # 1-based line of every key


class _Loader(yaml.SafeLoader):
    """A safe loader that resolves scalars as YAML 1.2's core schema does."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read back as the same text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'  # only this style can escape what YAML cannot hold as it is
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(value: Any) -> str:
    """YAML that `parse` reads back as the same value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def parse(text: str, where: str) -> Document:
    """Read one YAML document. Raises YamlError whose message starts with `where` and, if known, the line."""
    document = Document(None)
    try:
        loader = _Loader(text)
        try:
            _refuse_aliases(text, where)
            node = loader.get_single_node()
            value = None if node is None else _value(node, (), document.lines, where)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise YamlError(f"{where}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:  # unreadable characters
        raise YamlError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise YamlError(f"{where}: nested too deeply") from None
    return Document(value, document.lines)


def parse_scalar(text: str, where: str) -> Any:
    """The value of an override: a YAML scalar, list or mapping on one line."""
    return parse(text, where).value


def _refuse_aliases(text: str, where: str) -> None:
    # A few lines of nested aliases expand to gigabytes; settings have no use for them.
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise YamlError(f"{where}:{line}: anchors and aliases are not supported; write the value out")


def _value(node: yaml.Node, path: Path, lines: dict[Path, int], where: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, where)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(index)), lines, where) for index, item in enumerate(node.value)]
    return _scalar(node, where)


def _mapping(node: yaml.MappingNode, path: Path, lines: dict[Path, int], where: str) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key: Any = _value(key_node, path, lines, where)
        if not isinstance(key, Hashable) or key is None:
            raise YamlError(f"{where}:{line}: expected a key of text, got {key!r}")
        key = str(key)
        inner = (*path, key)
        if key in mapping:
            raise YamlError(
                f"{where}:{line}: {'.'.join(inner)!r} is given twice, first on line {lines[inner]}; keep one"
            )
        lines[inner] = line
        mapping[key] = _value(value_node, inner, lines, where)
    return mapping


def _scalar(node: yaml.Node, where: str) -> Any:
    text = str(node.value)
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text) if len(text) < 400 else float(text)  # Python refuses to read longer integers
        case "float":
            special = text.lower().lstrip("+-")
            return float(text.replace(".", "") if special in (".inf", ".nan") else text)
        case "str":
            return text
        case _:
            line = node.start_mark.line + 1
            raise YamlError(f"{where}:{line}: the tag {node.tag!r} is not supported; write a plain value")
