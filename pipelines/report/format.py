"""Numbers as people read them. A missing or non-finite number is a dash, never 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

DASH: Final = "\N{EN DASH}"
_MINUS: Final = "\N{MINUS SIGN}"

# name -> (what people call it, whether it is a share, whether more is better: None when neither)
MEASURES: Final[dict[str, tuple[str, bool, bool | None]]] = {
    "chair_i": ("Hallucinated mentions (CHAIR-i)", True, False),
    "chair_s": ("Captions with a hallucination (CHAIR-s)", True, False),
    "object_recall": ("Object recall", True, True),
    "exact_scene": ("Exactly right captions", True, True),
    "malformed": ("Malformed captions", True, False),
    "mean_length": ("Mean length", False, None),
    "accuracy": ("accuracy", True, True),
    "yes_ratio": ("share of yes", True, None),
}


def measure(dotted: str) -> tuple[str, bool, bool | None]:
    """Label, whether a share, whether more is better, for a dotted name as in summary.json."""
    if not dotted.startswith("pope."):
        return MEASURES.get(dotted, (dotted, False, None))
    _, kind, name = dotted.split(".")
    label, share, better = MEASURES[name] if name != "malformed" else ("neither yes nor no", True, False)
    return f"POPE {kind}, {label}", share, better


def finite(value: Any) -> float | None:
    """The number, or None for whatever is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 2) -> str:
    known = finite(value)
    return DASH if known is None else _minus(f"{known:,.{digits}f}")


def compact(value: Any) -> str:
    """Whole numbers as they are, others with three significant digits."""
    known = finite(value)
    if known is None:
        return DASH if value is None else str(value)
    return _minus(f"{known:,.0f}" if known == int(known) and abs(known) < 1e12 else f"{known:.3g}")


def percent(value: Any, digits: int = 1) -> str:
    known = finite(value)
    return DASH if known is None else f"{known:.{digits}%}"


def value(dotted: str, amount: Any) -> str:
    """A measure's value: shares in percent."""
    return percent(amount) if measure(dotted)[1] else number(amount)


def change(dotted: str, amount: Any) -> str:
    """A signed difference: shares in percentage points."""
    known = finite(amount)
    if known is None:
        return DASH
    text = f"{known * 100:+.1f}" if measure(dotted)[1] else f"{known:+.2f}"
    return _minus(text) if float(text) else text[1:]  # no sign on a zero


def bounds(dotted: str, interval: Sequence[Any] | None) -> str:
    """ "-34.0 to -30.1"."""
    return DASH if not interval else f"{change(dotted, interval[0])} to {change(dotted, interval[1])}"


def verdict(dotted: str, interval: Sequence[Any] | None) -> str:
    """ "better", "worse", "changed" or "no clear change" (the interval holds 0); "" when unknown."""
    low, high = (finite(interval[0]), finite(interval[1])) if interval else (None, None)
    if low is None or high is None:
        return ""
    if low <= 0 <= high:
        return "no clear change"
    better = measure(dotted)[2]
    return "changed" if better is None else "better" if (low > 0) == better else "worse"


def _minus(text: str) -> str:
    return text.replace("-", _MINUS)
