"""What a deterministic run asks of the other settings: one process, one thread, float32, nothing ahead.

Such a run can be interrupted anywhere and resumed, and is then equal to one that never was, bit for bit:
weights, optimizer, random states and the fate of every group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from pipelines.settings import Settings

# Key, the only value that fits, and why.
FITTING: Final[tuple[tuple[str, Any, str], ...]] = (
    ("sync.max_lag", 0, "answers come from the weights that they train"),
    ("sync.every", 1, "a checkpoint holds the weights that its next answers come from"),
    ("sync.in_flight", "wait", "no answer mixes two versions"),
    ("rollout.generators", 1, "one engine decodes a whole step in one call"),
    ("rollout.standbys", 0, "it runs in one process"),
    ("rollout.scorers", 1, "it runs in one process"),
    ("rollout.perturbers", 1, "it runs in one process"),
    ("rollout.engine.gpus", 0, "kernels of a GPU may add in any order"),
    ("rollout.engine.dtype", "float32", "generator and learner compute alike"),
    ("learner.workers", 1, "it runs in one process"),
    ("learner.gpus", 0, "kernels of a GPU may add in any order"),
    ("learner.dtype", "float32", "generator and learner compute alike"),
    ("ray_address", None, "it runs in one process, without Ray"),
)
BOUNDS: Final = ("rollout.max_generators", "rollout.max_scorers", "rollout.max_perturbers")


def with_fitting_lag(given: Any) -> Any:
    """Settings as given; the default lag, which does not fit, becomes 0 where nobody asked for another."""
    if not isinstance(given, dict):
        return given  # pydantic says what is wrong with it
    whole = cast("dict[str, Any]", given)
    sync: Any = whole.get("sync", {})
    if whole.get("deterministic") is not True or not isinstance(sync, dict):
        return whole
    return {**whole, "sync": {"max_lag": 0, **cast("dict[str, Any]", sync)}}


def contradictions(run: Settings) -> Iterator[str]:
    """What cannot be promised with these settings, one line per key."""
    if not run.deterministic:
        return
    for key, fitting, why in FITTING:
        value = _value(run, key)
        if value != fitting:
            yield f"{key}: a deterministic run needs {_text(fitting)}, got {value!r}: {why}"
    for key in BOUNDS:
        if (_value(run, key) or 1) > 1:
            yield f"{key}: a deterministic run has one of each, got {_value(run, key)}"
    if run.rollout.engine.backend == "vllm":
        yield (
            "rollout.engine.backend: a deterministic run is decoded by transformers, in its own thread; "
            "leave it at auto (vLLM's thread batches what arrives in time)"
        )


def _value(run: Settings, key: str) -> Any:
    value: Any = run
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
