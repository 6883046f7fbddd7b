"""Replicas come and go with the load: Ray Serve, gateway and conductor are real, the engine is a stub."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
import ray
from ray import serve

from benchmarks.ports import free_port
from benchmarks.serving.chaos.stub import stubs, word
from serving.app import APPLICATION, Server, running
from serving.registry.registry import Entry, Registry
from serving.replicas.conductor import NAME, NAMESPACE
from serving.served import Served, find
from serving.settings import Settings
from serving.wire import Standing

pytestmark = pytest.mark.timeout(300)

MODEL, TOKEN_S = "stub", 0.05
SHORT, LONG = 8, 300  # tokens; the long ones take 15 seconds
CLIENTS, TARGET = 10, 4  # clients that ask all the time are too many for one replica
QUICK = {"upscale_delay_s": 0.5, "downscale_delay_s": 1, "look_back_period_s": 1, "metrics_interval_s": 0.5}
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def server(
    registry: Registry, tmp_path: Path, commit_checkpoint: Callable[..., Path]
) -> Iterator[tuple[Server, Entry, Entry]]:
    """One replica, two at most; the promoted version, and another one."""
    first, second = (registry.register(commit_checkpoint(tmp_path / MODEL, n, float(n))) for n in (1, 2))
    registry.promote(first.id, why="the first version served", against=None)
    port = free_port()
    replicas = {"fewest": 1, "most": 2, "target_requests": TARGET}
    settings = Settings.model_validate({"port": port, "registry": str(registry.folder), "replicas": replicas})
    with running(find(None, settings, MODEL), settings, bound=bound) as started:
        yield started, first, second


def bound(models: Sequence[Served], settings: Settings) -> Any:
    """As of a real server, but for how soon Serve decides."""
    from serving.deployments import Gateway, scales

    options = scales(settings.replicas, settings.load)["stable"]
    options["autoscaling_config"] |= QUICK
    slots = {"stable": stubs(MODEL, "stable", options=options, load_s=0.1, token_s=TOKEN_S)}
    return Gateway.bind(settings, {MODEL: slots}, {MODEL: models[0].capabilities})


def standings() -> list[Standing]:
    return ray.get(ray.get_actor(NAME, namespace=NAMESPACE).standings.remote())


def states() -> Counter[str]:
    """How many replicas Serve has, by its own states."""
    deployment = serve.status().applications[APPLICATION].deployments[f"{MODEL}--stable"]
    return Counter({str(getattr(k, "value", k)): n for k, n in deployment.replica_states.items() if n})


def wait_for(what: str, found: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < until, (what, states(), standings())
        time.sleep(0.1)


async def ask(client: openai.AsyncOpenAI, tokens: int, stream: bool) -> tuple[set[str | None], Sequence[str]]:
    """The versions that an answer names, and its words. Raises where it fails; nothing is tried twice."""
    answer: Any = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=tokens, stream=stream
    )
    if not stream:
        return {answer.system_fingerprint}, answer.choices[0].message.content.split()
    chunks = [chunk async for chunk in answer]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    return {chunk.system_fingerprint for chunk in chunks}, text.split()


def test_a_replica_comes_with_the_promoted_version_and_goes_without_cutting_off_a_stream(
    server: tuple[Server, Entry, Entry], registry: Registry
) -> None:
    started, first, promoted = server
    registry.promote(promoted.id, why="a test", against=first.id)
    wait_for("the promotion", lambda: [one.version for one in standings()] == [promoted.id])
    assert states() == {"RUNNING": 1}
    enough = threading.Event()

    async def keep_asking(
        client: openai.AsyncOpenAI, number: int
    ) -> list[tuple[set[str | None], Sequence[str]]]:
        return [await ask(client, SHORT, (number + n) % 2 == 0) for n in _until(enough)]

    async def story() -> None:
        async with openai.AsyncOpenAI(base_url=started.url, api_key="none", max_retries=0) as client:
            askers = [asyncio.create_task(keep_asking(client, n)) for n in range(CLIENTS)]
            await asyncio.to_thread(wait_for, "a second replica", lambda: _serve(promoted.id, 2))
            enough.set()
            short = [answer for answers in await asyncio.gather(*askers) for answer in answers]
            streams = [asyncio.create_task(ask(client, LONG, True)) for _ in range(TARGET)]
            await asyncio.to_thread(wait_for, "the end of a replica", lambda: states()["STOPPING"] == 1)
            assert not any(stream.done() for stream in streams)
            assert min(one.in_flight for one in standings()) > 0, "the replica that goes has a stream"
            long = await asyncio.gather(*streams)
        said = [word(Path(promoted.path))]
        assert all(answer == ({promoted.id}, said * SHORT) for answer in short) and len(short) > CLIENTS
        assert all(answer == ({promoted.id}, said * LONG) for answer in long)

    try:
        asyncio.run(story())
    finally:
        enough.set()
    wait_for("one replica", lambda: states() == {"RUNNING": 1})


def _until(over: threading.Event) -> Iterator[int]:
    number = 0
    while not over.is_set():
        yield number
        number += 1


def _serve(version: str, replicas: int) -> bool:
    return [(one.version, one.state) for one in standings()] == [(version, "serving")] * replicas


def test_a_replica_that_goes_has_the_time_that_a_request_may_take() -> None:
    """Serve's own default, 20 s, is shorter than many an answer."""
    from serving.deployments import scales

    wanted = {"load": {"request_timeout_s": 77}, "replicas": {"fewest": 1, "most": 3, "canary": 1}}
    settings = Settings.model_validate(wanted)
    found = scales(settings.replicas, settings.load)
    assert {slot: one["graceful_shutdown_timeout_s"] for slot, one in found.items()} == {
        "stable": 77,
        "canary": 77,
    }
    assert found["stable"]["autoscaling_config"]["max_replicas"] == 3
