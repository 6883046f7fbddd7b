"""Hyperparameters that change during a run, as pure functions of the step a group was issued for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """A number that is constant between steps: `Clock({0: 0.5, 1500: 0.75})` is 0.75 from step 1500 on.

    It stands in place of a number in a field of a frozen dataclass. Nobody reads a live counter: a group that
    is issued again is judged as it would have been the first time.

    Raises ValueError when no value covers step 0.
    """

    values: Mapping[int, float]  # first step -> value

    def __post_init__(self) -> None:
        if 0 not in self.values or min(self.values) < 0:
            raise ValueError(f"Clock: expected first steps >= 0, one of them 0, got {sorted(self.values)}")

    def __call__(self, step: int) -> float:
        starts = sorted(self.values)
        return self.values[starts[bisect_right(starts, step) - 1]]


def at(value: T, step: int) -> T:
    """`value` with every `Clock` in it, through dataclasses, tuples and mappings, replaced by its number.

    Where there is no clock the very same object comes back, so that what has state keeps it.
    """
    return cast("T", _at(value, step))


def _at(value: Any, step: int) -> Any:
    if isinstance(value, Clock):
        return value(step)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: new
            for field in fields(value)
            if field.init and (new := _at(old := getattr(value, field.name), step)) is not old
        }
        return replace(value, **changed) if changed else value
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        new_items = tuple(_at(item, step) for item in items)
        same = all(new is old for new, old in zip(new_items, items, strict=True))
        return items if same else new_items
    if isinstance(value, dict):
        table = cast("dict[Any, Any]", value)
        new_table = {key: _at(item, step) for key, item in table.items()}
        return table if all(new_table[key] is table[key] for key in table) else new_table
    return value


Number = float | Clock


def number(value: Number) -> float:
    """The number, where no clock can be left. Raises TypeError for a clock nobody has read."""
    if isinstance(value, Clock):
        raise TypeError("a Clock was not resolved: judge through judge_group(..., step)")
    return value
