"""The page of all methods, from the recipes themselves: `make docs` writes docs/methods.md."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from pipelines import recipes
from pipelines.comparisons import Joined
from pipelines.objectives.base import Objective
from pipelines.recipe import Recipe, Stage
from pipelines.rollout import Pipe

DOCS = Path(__file__).parents[1] / "docs"
SIGNATURES = DOCS / "signatures.json"  # written by `make signatures`


def spelt(value: Any) -> str:
    """A plug as one would write it: only the fields that differ from their defaults."""
    match value:
        case Pipe():
            return " >> ".join(spelt(step) for step in value.steps)
        case Joined():
            return " | ".join(spelt(part) for part in value.parts)
        case Objective():
            return " + ".join(
                spelt(term) if weight == 1 else f"{weight:g} {spelt(term)}" for weight, term in value.terms
            )
        case frozenset():
            return "{" + ", ".join(sorted(spelt(item) for item in cast("frozenset[Any]", value))) + "}"
        case Mapping():
            pairs = cast("Mapping[str, Any]", value).items()
            return "{" + ", ".join(f"{key}: {spelt(item)}" for key, item in pairs) + "}"
        case tuple():
            return "(" + ", ".join(spelt(item) for item in cast("tuple[Any, ...]", value)) + ")"
        case float():
            return f"{value:g}"
        case _ if is_dataclass(value) and not isinstance(value, type):
            return f"{type(value).__name__}({', '.join(_arguments(value))})"
        case _ if inspect.isfunction(value):
            return value.__name__
        case _:
            return repr(value)


def _arguments(value: Any) -> Iterable[str]:
    for field in fields(value):
        given = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if given != default or field.name == "on":  # what a term reads is said in any case
            required = field.default is MISSING and field.default_factory is MISSING
            yield spelt(given) if required or field.name == "on" else f"{field.name}={spelt(given)}"


def stage_lines(stage: Stage, number: int, of: int) -> list[str]:
    """The slots of a stage that differ from the usual."""
    lines = [f"stage {number} of {of}" + (f", share {stage.share:g}" if stage.share != 1 else "")] * (of > 1)
    slots = ("rollout", "compare", "objective", "reference", "order", "init", "trainable", "uses", "replay")
    plain = {field.name: field for field in fields(Stage)}
    for name in (*slots, "max_lag", "then"):
        given, field = getattr(stage, name), plain[name]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if given != default:
            lines.append(f"{name:<10} {spelt(given)}")
    return lines


def section(name: str) -> str:
    """One method: summary, formula and source, composition, parameters, signature."""
    recipe, text = recipes.load(name, {}), recipes.document(name)
    title, _, body = text.partition("\n")
    parts = [f"### `{name}`", f"**{title}**", body.strip(), f"*Paper:* {recipe.paper}.", _source(recipe)]
    count = len(recipe.stages)
    composition = [line for i, stage in enumerate(recipe.stages) for line in stage_lines(stage, i + 1, count)]
    parts.append("```text\n" + "\n".join(composition) + "\n```")
    given = ", ".join(f"`{p.name}={p.default!r}`" for p in recipes.parameters(name))
    parts.append(f"*Parameters:* {given}." if given else "*Parameters:* none.")
    if measured := _signatures().get(name):
        parts.append("*Measured here:* " + "; ".join(measured) + " ([signatures](signatures.md)).")
    return "\n\n".join(part for part in parts if part)


def _source(recipe: Recipe) -> str:
    note = " **Experimental:** the primary text was not seen." if recipe.experimental else ""
    return f"*Formula taken from:* {recipe.source}.{note}"


def _signatures() -> dict[str, list[str]]:
    """Recipe -> what was found about it."""
    if not SIGNATURES.exists():
        return {}
    found: dict[str, list[str]] = {}
    for row in json.loads(SIGNATURES.read_text())["rows"]:
        for name in row["recipes"]:
            found.setdefault(name, []).append(f"{row['claim']}: {row['verdict']}")
    return found


def page() -> str:
    """The whole of docs/methods.md: the written introduction, the index and one section per method."""
    names = recipes.names()
    rows = [f"| [`{name}`](#{name}) | {_summary(name)} |" for name in names]
    index = "\n".join(["| recipe | loss, or what is special |", "|---|---|", *rows])
    introduction = (DOCS / "parts" / "methods_introduction.md").read_text().rstrip()
    exceptions = (DOCS / "parts" / "methods_exceptions.md").read_text().rstrip()
    sections = "\n\n".join(section(name) for name in names)
    return f"{introduction}\n\n{index}\n\n{exceptions}\n\n## Every method\n\n{sections}\n"


def _summary(name: str) -> str:
    """The first line of a recipe's docstring, as a cell of a table."""
    return recipes.document(name).partition("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    if "--write" in sys.argv:
        (DOCS / "methods.md").write_text(page())
    else:
        print(page(), end="")
