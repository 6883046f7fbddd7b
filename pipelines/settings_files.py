"""Settings from a YAML file and dotted overrides; each value knows where it was given, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from pipelines import marked_yaml
from pipelines.settings_errors import Key, SettingsError, explain

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What messages say about one kind of settings, and what is short for what."""

    owner: str  # of the file: "a run"
    line: str  # one of a file: "model: PATH"
    override: str  # one as people write it: "learner.lr=5e-7"
    # section -> its key that a plain text stands for
    short: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass
class Given:
    """What somebody gave, not yet validated."""

    value: dict[str, Any]
    origins: dict[Key, str]  # where each key was given
    default: str  # where all others would be

    def override(self, override: str, kind: Kind) -> None:
        """Set one dotted key, whose value is YAML on one line. Raises SettingsError for anything else."""
        where = f"override {override!r}"
        key, new = _parsed(override, where, kind)
        section = self.value
        for depth, name in enumerate(key[:-1], start=1):
            inner = section.setdefault(name, {})
            if inner is None:  # `learner.lora: null` in the file, `learner.lora.rank=4` here
                inner = section[name] = {}
            if not isinstance(inner, dict):
                raise SettingsError(f"{where}: {'.'.join(key[:depth])} is a value, not a section")
            section = cast("dict[str, Any]", inner)
        section[key[-1]] = new
        self.origins = {known: at for known, at in self.origins.items() if known[: len(key)] != key}
        self.origins[key] = where

    def validated(self, model: type[Model]) -> Model:
        """The settings. Raises SettingsError with every problem found."""
        try:
            return model.model_validate(self.value)
        except ValidationError as error:
            raise explain(error, model, self.origins, self.default) from None


def given(path: Path | None, kind: Kind) -> Given:
    """What a file says; nothing without one. Raises SettingsError when it cannot be read."""
    if path is None:
        return Given({}, {}, "settings")
    try:
        found = read(path, f"keys and values such as '{kind.line}'")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; give the YAML file of {kind.owner}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    for section, key in kind.short.items():
        if isinstance(found.value.get(section), str):
            found.value[section] = {key: found.value[section]}
    return found


def read(path: Path, expected: str) -> Given:
    """What a file of keys and values says, an empty one nothing.

    Raises SettingsError for any other content, which names what is `expected`, and OSError.
    """
    try:
        document = marked_yaml.parse(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: expected UTF-8 text, got something else ({error.reason})") from None
    except marked_yaml.YamlError as error:
        raise SettingsError(str(error)) from None
    value: Any = {} if document.value is None else document.value
    if not isinstance(value, dict):
        got = "list" if isinstance(value, list) else f"single value {value!r}"
        raise SettingsError(f"{path}: expected {expected}, got a {got}")
    origins = {key: f"{path}:{line}" for key, line in document.lines.items()}
    return Given(cast("dict[str, Any]", value), origins, str(path))


def _parsed(override: str, where: str, kind: Kind) -> tuple[Key, Any]:
    dotted, separator, text = override.partition("=")
    key = tuple(dotted.strip().split("."))
    if not separator or not all(key):
        raise SettingsError(f"{where}: expected key=value, as in {kind.override}")
    try:
        new = marked_yaml.parse_scalar(text, where)
    except marked_yaml.YamlError as error:
        raise SettingsError(str(error)) from None
    if len(key) == 1 and key[0] in kind.short and isinstance(new, str):
        key = (key[0], kind.short[key[0]])
    return key, new
