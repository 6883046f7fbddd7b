"""Actors called like objects: with deadlines, and with failures that are named by their cause."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from ray.actor import ActorHandle
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from pipelines.loop import RoleFailed

# To a type checker a `Remote` stands in for every protocol; at run time Python 3.11 cannot derive from Any.
if TYPE_CHECKING:
    Anything = Any
else:
    Anything = object

SHOWN = 500  # characters of what Ray says

# The first match counts: OwnerDiedError is an ObjectLostError. All of these may go well the next time.
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (RayActorError, "{role}_died"),
    (WorkerCrashedError, "{role}_died"),
    (OutOfMemoryError, "{role}_out_of_memory"),
    (OwnerDiedError, "owner_died"),
    (ObjectLostError, "object_lost"),
    (GetTimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (RayError, "ray_error"),
)


def named(error: BaseException, role: str) -> RoleFailed:
    """What went wrong in the remote `role`, by its cause rather than by how Ray wraps it."""
    if isinstance(error, RayTaskError):
        return RoleFailed.of(error.cause, role)
    if isinstance(error, RayActorError) and error.actor_init_failed:  # its traceback ends with the cause
        return RoleFailed(f"{role}_not_made", role, str(error).strip().splitlines()[-1])
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return RoleFailed(reason.format(role=role), role, cause_of_death(error))
    return RoleFailed.of(error, role)


def cause_of_death(error: BaseException) -> str:
    """What Ray says of a lost process, short: which one, where, why, and at the end the actor's id."""
    text = " ".join(str(error).split())
    process = re.search(r"\bpid[:=] ?(\d+)", text)
    node = re.search(r"\b(?:node_)?ip[:=] ?'?([0-9a-fA-F.:]+)", text)
    actor = re.search(r"\bactor_id: (\w+)|The actor (\w+) is unavailable", text)
    which = f" [actor {actor[1] or actor[2]}]" if actor else ""
    _, known, why = text.partition("The actor is dead because ")
    if not known:
        return (text[:SHOWN] or type(error).__name__) + which
    why = why.partition(" Some common causes")[0][:SHOWN]
    where = f"process {process[1]}" if process else "its process"
    return f"{where}{f' on {node[1]}' if node else ''} died: {why}{which}"


class Remote(Anything):
    """An actor handle that is called like the object itself: `await Remote(handle).pull(...)`.

    Every call has the deadline `timeout_s` and raises RoleFailed.
    """

    def __init__(self, handle: Any, role: str = "actor", timeout_s: float = 600.0) -> None:
        self._handle, self._role, self._timeout_s = handle, role, timeout_s

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not a remote method: pickle and copy ask for some
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            try:
                submitted = getattr(self._handle, name).remote(*args, **kwargs)
                return await asyncio.wait_for(submitted, self._timeout_s)
            except Exception as error:
                if type(error) is TimeoutError:  # of this wait; the object's own comes as a RayTaskError
                    detail = f"`{name}` took over {self._timeout_s:g} s"
                    raise RoleFailed("timeout", self._role, detail) from error
                raise named(error, self._role) from error

        return call


def reach(target: Any, role: str, timeout_s: float) -> Any:
    """A handle as a `Remote`; an object of this process as it is."""
    return Remote(target, role, timeout_s) if isinstance(target, ActorHandle) else target
