"""What is wrong with somebody's settings, in words: where, what, got, expected, and the nearest right key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Key = tuple[str, ...]
CHOSEN = "NAME"

#: What other libraries call our keys, where no likeness of letters leads from one to the other.
ELSEWHERE = {
    "learning_rate": "learner.lr",
    "batch_size": "learner.groups_per_step",
    "per_device_train_batch_size": "learner.micro_batch",
    "max_steps": "learner.steps",
    "max_grad_norm": "learner.clip",
    "max_new_tokens": "rollout.max_tokens",
    "max_completion_length": "rollout.max_tokens",
    "tensor_parallel_size": "rollout.engine.gpus",
    "num_workers": "learner.workers",
    "model_name_or_path": "model",
    "dataset": "data",
    "output_dir": "output",
    "reward_funcs": "reward",
}


class SettingsError(ValueError):
    """Settings that cannot be used; one line per problem."""


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a settings class, sections included; NAME stands for names that users choose."""
    for name, entry in model.model_fields.items():
        yield prefix + name
        section, inside = section_of(entry.annotation), f"{prefix}{name}."
        if section is None and get_origin(entry.annotation) is dict:
            section, inside = section_of(get_args(entry.annotation)[1]), f"{inside}{CHOSEN}."
        if section is not None:
            yield from keys(section, inside)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class of a key that is a section (or a section or null)."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)


def nearest(key: str, known: list[str]) -> str | None:
    """The known key that somebody most likely meant."""
    leaf = key.rpartition(".")[2]
    if ELSEWHERE.get(leaf) in known:
        return ELSEWHERE[leaf]
    same_leaf = [candidate for candidate in known if candidate.rpartition(".")[2] == leaf]
    if same_leaf:  # right key, wrong section
        return max(same_leaf, key=lambda candidate: difflib.SequenceMatcher(None, candidate, key).ratio())
    section = key.rpartition(".")[0]
    siblings = [candidate for candidate in known if candidate.rpartition(".")[0] == section]
    for pool in (siblings, known):
        by_leaf = {candidate.rpartition(".")[2]: candidate for candidate in pool}
        found = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.65)
        if found:
            return by_leaf[found[0]]
    return None


def explain(
    error: ValidationError, model: type[BaseModel], origins: Mapping[Key, str], default: str
) -> SettingsError:
    """A SettingsError from pydantic's; `origins` says for each key where it was given."""
    known = list(keys(model))
    lines = [_line(dict(problem), known, origins, default) for problem in error.errors(include_url=False)]
    return SettingsError("\n".join(lines))


def _line(problem: dict[str, Any], known: list[str], origins: Mapping[Key, str], default: str) -> str:
    key: Key = tuple(str(part) for part in problem["loc"])
    where = _origin(key, origins, default)
    dotted = ".".join(key)
    if problem["type"] == "extra_forbidden":
        asked = _as_known(dotted, known)
        guess = nearest(asked, known)
        section = asked.rpartition(".")[0]
        names = sorted(k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section)
        hint = f"did you mean {guess!r}?" if guess else f"known keys here: {', '.join(names)}"
        return f"{where}: unknown key {dotted!r}; {hint}"
    message = str(problem["msg"])
    if problem["type"] == "value_error":  # our own checks name their keys
        texts = message.removeprefix("Value error, ").split("\n")
        return "\n".join(
            f"{_origin(tuple(t.partition(':')[0].split('.')), origins, default)}: {t}" for t in texts
        )
    expected = message.replace("Input should be", "expected").replace(
        "String should", "expected text that should"
    )
    if problem["type"] in ("too_long", "too_short"):
        context = problem["ctx"]
        expected = f"expected {context.get('max_length') or context.get('min_length')} values"
    if problem["type"] in ("model_type", "model_attributes_type"):
        expected = "expected a section with keys of its own"
    got = problem["input"]
    return f"{where}: {dotted}: {expected}, got {_shown(got)}"


def _as_known(dotted: str, known: list[str]) -> str:
    """With NAME for each name that users choose."""
    found = ""
    for part in dotted.split("."):
        chosen = any(key.startswith(f"{found}{CHOSEN}.") for key in known)
        found += f"{CHOSEN if chosen else part}."
    return found[:-1]


def _origin(key: Key, origins: Mapping[Key, str], default: str) -> str:
    """Where a key was given: itself, the section around it, or something inside it."""
    for length in range(len(key), 0, -1):
        if key[:length] in origins:
            return origins[key[:length]]
    return next((where for given, where in origins.items() if given[: len(key)] == key), default)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
