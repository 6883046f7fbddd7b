"""The producer on Ray: chooses a scorer, awaits only its receipt, and turns every failure into data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
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

from pipelines.loop import Parcel, RoleFailed
from pipelines.types import Fault, Lease, Receipt

# To a type checker a `Remote` stands in for every protocol; at run time Python 3.11 cannot derive from Any.
if TYPE_CHECKING:
    Anything = Any
else:
    Anything = object

SHUN_S = 2.0  # a scorer that just died is least busy; without this it would draw every lease

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
    for kind, reason in REASONS:
        if isinstance(error, kind):
            detail = " ".join(str(error).split())[:500] or type(error).__name__
            return RoleFailed(reason.format(role=role), role, detail)
    return RoleFailed.of(error, role)


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


class RayProducer:
    """Spreads leases over scorer actors.

    Args:
        scorers: handles of `Scorer` actors.
        timeout_s: deadline of one lease; it covers waiting at the generator's gate during a weight sync.
    """

    def __init__(self, scorers: Sequence[Any], timeout_s: float) -> None:
        self._scorers = [Remote(scorer, "scorer", timeout_s) for scorer in scorers]
        self._load = [0] * len(self._scorers)
        self._shunned = [0.0] * len(self._scorers)  # until when, by the monotonic clock

    async def produce(self, lease: Lease, parcel: Parcel) -> Receipt | Fault:
        index = self._choose()
        self._load[index] += 1
        try:
            return await self._scorers[index].produce(lease, parcel)
        except RoleFailed as error:
            self._shunned[index] = time.monotonic() + SHUN_S
            return error.fault(lease.group)
        finally:
            self._load[index] -= 1

    def _choose(self) -> int:
        now = time.monotonic()
        return min(range(len(self._scorers)), key=lambda i: (self._shunned[i] > now, self._load[i], i))
