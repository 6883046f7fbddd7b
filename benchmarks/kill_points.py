"""Points at which a run in one process can be killed: calls between its parts, and changes of its files."""

from __future__ import annotations

import inspect
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

Visit = Callable[[str], None]
FILE_EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 0, "os.remove": 0, "os.rmdir": 0, "os.link": 0}


@dataclass(frozen=True)
class Points:
    """The points that a run passed, in order."""

    passed: tuple[str, ...]

    def draw(self, drawn: random.Random) -> tuple[str, int]:
        """A kind of point, all alike, and which of its occurrences: 1 for the first."""
        kinds = Counter(self.passed)
        kind = drawn.choice(sorted(kinds))
        return kind, drawn.randint(1, kinds[kind])


def install(run_dir: Path, visit: Visit) -> None:
    """Have this process call `visit` with the name of every point that it passes. It cannot be undone."""
    from actors import checkpoints, learner_loop
    from actors.decoder import HuggingFaceGenerator
    from actors.decoder_subject import WeightLoader
    from actors.learner import Learner
    from actors.ledger import Ledger
    from actors.references import References
    from pipelines.journal import Journal

    places: list[tuple[Any, str]] = [
        *((Ledger, name) for name in ("issue", "accept", "pull", "published", "trained", "snapshot")),
        *((HuggingFaceGenerator, name) for name in ("sample", "adopt")),
        (WeightLoader, "load"),
        *((Learner, name) for name in ("train_step", "_accumulate", "_optimize", "end_stage", "begin_stage")),
        *((Learner, name) for name in ("canary", "save")),
        (References, "save"),
        *((checkpoints, name) for name in ("begin", "commit", "prune")),
        (learner_loop, "write_comparisons"),
        (Journal, "append"),
    ]
    for owner, name in places:
        setattr(owner, name, _watched(getattr(owner, name), f"{owner.__name__.split('.')[-1]}.{name}", visit))
    _watch_files(run_dir, visit)


def _watched(function: Callable[..., Any], name: str, visit: Visit) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def waiting(*args: Any, **kwargs: Any) -> Any:
            visit(f"before {name}")
            result = await function(*args, **kwargs)
            visit(f"after {name}")
            return result

        return waiting

    @wraps(function)
    def calling(*args: Any, **kwargs: Any) -> Any:
        visit(f"before {name}")
        result = function(*args, **kwargs)
        visit(f"after {name}")
        return result

    return calling


def _watch_files(run_dir: Path, visit: Visit) -> None:
    """Points just before a file or folder of the run is opened for writing, made, renamed or removed."""
    root = f"{run_dir.absolute()}/"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(root):
            return
        if event == "open" and not set(str(arguments[1])) & set("wax+"):
            return
        visit(f"before {event} of {Path(str(arguments[0])).suffix or 'a folder'}")

    sys.addaudithook(hook)
