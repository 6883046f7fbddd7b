"""Who works for an attempt: its services and the learner's ranks, as `member` events of the run's journal.

With them the auditor sees that every process ended, and people find the process behind a role.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from actors.nodes import Nodes, Place, placed
from pipelines.journal import Journal

LOOK_S = 0.25  # between two looks for a process that starts


class Roll:
    """Members are named role and "attempt" (a service) or "attempt.rank" (of the learner)."""

    def __init__(self, attempt: int, journal: Journal) -> None:
        self._attempt, self._journal, self._nodes = attempt, journal, Nodes()
        self._there: dict[tuple[str, str], Place] = {}

    async def services(self, handles: Mapping[str, Any]) -> None:
        """Note each service once its process runs."""
        waiting = dict(handles)
        while waiting:
            for role, handle in list(waiting.items()):
                with suppress(Exception):  # Ray's head may be busy
                    if (place := await asyncio.to_thread(self._nodes.find, handle)) is not None:
                        self._enter(role, str(self._attempt), place)
                        del waiting[role]
            await asyncio.sleep(LOOK_S)

    def rank(self, number: int, node: str, pid: int) -> None:
        """A rank of the learner says where it is."""
        self._enter("learner", f"{self._attempt}.{number}", placed(node, pid))

    def dismiss(self) -> None:
        """See those out who were told to end: on this machine none may still write afterwards. Blocks."""
        for place in self._there.values():
            self._nodes.outlive(place)

    def over(self, why: str) -> None:
        """The attempt has ended, and everybody with it."""
        for (role, index), place in self._there.items():
            self._write(role, index, "gone", place, why)
        self._there.clear()

    def _enter(self, role: str, index: str, place: Place) -> None:
        self._there[role, index] = place
        self._write(role, index, "serving", place, "answers")

    def _write(self, role: str, index: str, state: str, place: Place, why: str) -> None:
        where = {"pid": place.pid, "node": place.node, "began": place.began}
        self._journal.write("member", role=role, index=index, state=state, why=why, **where)
