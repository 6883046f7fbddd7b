"""The engine's thread and the gate, with an engine that is a few lines of Python."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from actors.engine import EngineError, EngineThread
from actors.gate import Gate, Quarantined

WAIT_S = 10


class FakeEngine:
    """Finishes a request after as many steps as its prompt says."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.aborted: list[str] = []
        self.step_error: Exception | None = None
        self.abort_error: Exception | None = None
        self.threads: set[int] = set()
        self.may_step = threading.Event()
        self.may_step.set()
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def add_request(self, name: str, prompt: int, params: object, lora_request: object) -> None:
        self.threads.add(threading.get_ident())
        if prompt < 0:
            raise ValueError("a bad prompt")
        self.left[name] = prompt

    def step(self) -> list[SimpleNamespace]:
        self.threads.add(threading.get_ident())
        assert self.may_step.wait(WAIT_S)
        if self.step_error is not None:
            error, self.step_error = self.step_error, None
            raise error
        for name in self.left:
            self.left[name] -= 1
        done = [name for name, left in self.left.items() if left <= 0]
        for name in done:
            del self.left[name]
        return [SimpleNamespace(request_id=name, finished=True) for name in done]

    def abort_request(self, names: list[str]) -> None:
        if self.abort_error is not None:
            raise self.abort_error
        self.aborted += names
        for name in names:
            self.left.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def thread(engine):
    thread = EngineThread(lambda: engine)
    thread.start().result(WAIT_S)
    yield thread
    engine.may_step.set()
    thread.stop()


def test_requests_finish_and_only_one_thread_touches_the_engine(engine, thread):
    futures = [thread.submit(steps, None) for steps in (3, 1, 2)]
    assert [future.result(WAIT_S).finished for future in futures] == [True] * 3
    assert len(engine.threads) == 1 and threading.get_ident() not in engine.threads


def test_a_request_that_cannot_be_added_fails_alone(thread):
    good, bad = thread.submit(2, None), thread.submit(-1, None)
    with pytest.raises(ValueError, match="a bad prompt"):
        bad.result(WAIT_S)
    assert good.result(WAIT_S).finished


def test_a_step_that_raises_fails_all_in_flight_and_the_engine_goes_on(engine, thread):
    engine.may_step.clear()
    futures = [thread.submit(2, None), thread.submit(3, None)]
    engine.step_error = RuntimeError("encoder cache miss")
    engine.may_step.set()
    for future in futures:
        with pytest.raises(EngineError, match="RuntimeError: encoder cache miss"):
            future.result(WAIT_S)
    assert thread.submit(1, None).result(WAIT_S).finished
    assert thread.alive and thread.faults >= 1


def test_an_engine_that_cannot_be_emptied_is_given_up(engine, thread):
    engine.step_error, engine.abort_error = RuntimeError("first"), RuntimeError("second")
    with pytest.raises(EngineError, match="first"):
        thread.submit(1, None).result(WAIT_S)
    with pytest.raises(EngineError, match=r"does not run|has stopped"):
        thread.submit(1, None).result(WAIT_S)
    assert not thread.alive


def test_a_cancelled_request_is_aborted_in_the_engine(engine, thread):
    engine.may_step.clear()
    future = thread.submit(10**9, None)
    thread.submit(0, None)  # the thread is stepping once this one was taken
    assert future.cancel()
    engine.may_step.set()
    assert thread.call(lambda e: None).result(WAIT_S) is None
    assert thread.call(lambda e: list(e.left)).result(WAIT_S) == []


def test_stopping_fails_what_is_in_flight_and_refuses_what_comes_later(thread):
    future = thread.submit(10**9, None)
    thread.stop()
    with pytest.raises(EngineError, match="has stopped"):
        future.result(WAIT_S)
    with pytest.raises(EngineError, match="does not run"):
        thread.call(lambda e: 1).result(WAIT_S)


def test_an_engine_that_does_not_start_says_why():
    def build() -> None:
        raise OSError("no such checkpoint")

    thread = EngineThread(build)
    with pytest.raises(OSError, match="no such checkpoint"):
        thread.start().result(WAIT_S)


def test_calls_run_between_steps_and_their_errors_reach_the_caller(thread):
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda engine: 1 / 0).result(WAIT_S)
    assert thread.call(lambda engine: len(engine.left)).result(WAIT_S) == 0


# -- the gate ----------------------------------------------------------------------------------------------


def test_nobody_is_inside_while_the_gate_is_closed():
    async def scenario() -> list[str]:
        gate, events = Gate("g"), []
        release = asyncio.Event()

        async def guest(name: str) -> None:
            async with gate.pass_through(WAIT_S, before_first=True):
                events.append(f"{name} in")
                await release.wait()
            events.append(f"{name} out")

        first = asyncio.create_task(guest("first"))
        while gate.inside == 0:
            await asyncio.sleep(0)

        async def change() -> None:
            async with gate.closed(WAIT_S):
                events.append(f"changing with {gate.inside} inside")

        changing = asyncio.create_task(change())
        await asyncio.sleep(0)
        second = asyncio.create_task(guest("second"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert events == ["first in"]  # the change waits for the first, the second waits for the change
        release.set()
        await asyncio.gather(first, changing, second)
        return events

    events = asyncio.run(scenario())
    assert events[:3] == ["first in", "first out", "changing with 0 inside"]
    assert events[3] == "second in"


def test_a_quarantine_wakes_those_who_wait_and_lets_nobody_in():
    async def scenario() -> None:
        gate = Gate("g")
        waiting = asyncio.create_task(gate.pass_through(WAIT_S).__aenter__())
        await asyncio.sleep(0)
        async with gate.closed(WAIT_S):
            gate.quarantine = "weight version 3 is not proved"
        with pytest.raises(Quarantined, match="weight version 3"):
            await waiting
        assert not gate.open
        async with gate.closed(WAIT_S):
            gate.quarantine = None
        async with gate.pass_through(WAIT_S):
            assert gate.open and gate.inside == 1

    asyncio.run(scenario())


def test_every_wait_has_a_deadline():
    async def scenario() -> None:
        gate = Gate("g")
        with pytest.raises(TimeoutError, match="has not adopted a weight version"):
            async with gate.pass_through(0.01):
                pass
        async with gate.pass_through(WAIT_S, before_first=True):
            with pytest.raises(TimeoutError, match="1 requests did not end"):
                async with gate.closed(0.01):
                    pass
        assert gate.inside == 0
        async with gate.closed(WAIT_S):
            pass
        assert gate.open

    asyncio.run(scenario())
