"""Work beside the event loop, and in its place."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from pipelines.rewards.threads import WorkFailed, in_place, in_thread


def run(work, *, here: bool):
    context = contextvars.copy_context()
    context.run(in_place.set, here)
    with asyncio.Runner() as runner:
        return runner.run(in_thread(work), context=context)


@pytest.mark.parametrize("here", [True, False])
def test_where_work_is_done(here: bool):
    assert (run(threading.get_ident, here=here) == threading.get_ident()) is here


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("error", [ValueError("odd"), StopIteration(), SystemExit(3)])
def test_what_it_raises_is_the_cause(here: bool, error: BaseException):
    def work() -> None:
        raise error

    with pytest.raises(WorkFailed) as raised:
        run(work, here=here)
    assert raised.value.__cause__ is error
