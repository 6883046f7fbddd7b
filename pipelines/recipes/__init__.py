"""Published methods, one file each: a module with `recipe(*, ...) -> Recipe`, found by a walk."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, validate_call

from pipelines.recipe import Recipe

# Acronyms that several papers use -> the methods of that name which are here.
SHARED_NAMES: Mapping[str, tuple[str, ...]] = {
    "apo": ("apo_accelerated", "apo_zero", "apo_down"),
    "hypo": ("hypo_coverage", "hypo_gating"),
    "mpo": ("internvl_mpo",),
    "rdpo": ("robust_dpo", "realign_rdpo", "rationale_dpo"),
    "rpo": ("rpo_sft", "rrpo"),
    "spo": ("spo_degrees", "sppo"),
    "tdpo": ("haven_tdpo",),
    "tpo": ("tpo_tree", "tpo_triple", "task_po"),
    "vpo": ("vpo_incentivized",),
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    name: str
    type: str  # as written in the code
    default: Any


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `plumbline recipes` shows of one recipe."""

    name: str
    summary: str  # first line of the docstring
    paper: str
    source: str
    experimental: bool  # the primary text was not seen
    stages: int
    parameters: tuple[Parameter, ...]


def names() -> list[str]:
    """Names of the recipes of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def available() -> list[Summary]:
    """All recipes of this package with their parameters."""
    summaries: list[Summary] = []
    for name in names():
        built = load(name, {})
        summaries.append(
            Summary(
                name=name,
                summary=document(name).partition("\n")[0],
                paper=built.paper,
                source=built.source,
                experimental=built.experimental,
                stages=len(built.stages),
                parameters=parameters(name),
            )
        )
    return summaries


def document(name: str) -> str:
    """The docstring of a recipe: what it is, its formula, its source."""
    return inspect.getdoc(_function(name)) or ""


def parameters(name: str) -> tuple[Parameter, ...]:
    """What a recipe can be given."""
    signature = inspect.signature(_function(name))
    return tuple(
        Parameter(name=p.name, type=str(p.annotation), default=p.default)
        for p in signature.parameters.values()
    )


def load(name: str, params: Mapping[str, Any]) -> Recipe:
    """Build the recipe `name`: one of this package, or "package.module:function" of the user.

    Raises ValueError for an unknown name or parameter (naming the nearest) and for a value that the recipe
    refuses.
    """
    build = _function(name)
    signature = inspect.signature(build)
    known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in params:
        if key not in known and not open_ended:
            expected = f"; its parameters are {', '.join(known) or 'none'}"
            raise ValueError(f"recipe {name!r} has no parameter {key!r}{_nearest(key, known)}{expected}")
    try:
        recipe = validate_call(build)(**params)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}, got {e.get('input')!r}"
            for e in error.errors()
        )
        raise ValueError(f"recipe {name!r}: {problems}") from error
    except ValueError as error:
        raise ValueError(f"recipe {name!r}: {error}") from error
    except Exception as error:  # a function of the user may fail in any way
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"recipe {name!r} failed at {place.filename}:{place.lineno}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe {name!r}: expected a Recipe, got {type(recipe).__name__}")
    return recipe


def _function(name: str) -> Callable[..., Any]:
    if ":" not in name:
        if name not in names():
            raise ValueError(
                f"unknown recipe {name!r}{_meant(name)}; known: {', '.join(names())}, "
                "or package.module:function"
            )
        return importlib.import_module(f"{__name__}.{name}").recipe
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user may fail in any way
        raise ValueError(f"recipe {name!r} cannot be imported: {error}") from error
    if not inspect.isfunction(function):
        raise ValueError(f"recipe {name!r}: expected a function, got {type(function).__name__}")
    return function


def _meant(name: str) -> str:
    shared = SHARED_NAMES.get(name.lower().replace("-", "").replace("_", ""), ())
    if not shared:
        return _nearest(name, names())
    modules = (importlib.import_module(f"{__name__}.{key}") for key in shared)
    told = [f"{key} ({inspect.getdoc(m)})" for key, m in zip(shared, modules, strict=True)]
    return f"; papers share this name: choose {' or '.join(told)}"


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
