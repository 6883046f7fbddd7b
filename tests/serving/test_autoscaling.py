"""Replicas come and go with the load: those of a stub, whose answers are as long as wanted, and vLLM."""

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
from benchmarks.serving.chaos.real import perturbed
from benchmarks.serving.chaos.stub import stubs, word
from benchmarks.serving.questions import describe
from pipelines.worlds.glyphs import BASE_MODEL, Glyphs
from serving.app import APPLICATION, Server, running
from serving.registry.registry import Entry, Registry
from serving.replicas.conductor import NAME, NAMESPACE
from serving.served import Served, find
from serving.settings import Settings
from serving.wire import Standing

pytestmark = pytest.mark.timeout(900)

MODEL, TOKEN_S = "stub", 0.05
SHORT, LONG = 8, 400  # tokens; the long ones take 20 seconds
CLIENTS, TARGET = 10, 4  # clients that ask all the time are too many for one replica
REPLICAS = {"fewest": 1, "most": 2, "target_requests": TARGET, "more_after_s": 1, "fewer_after_s": 5}
PATIENCE_S = 120.0
CROWD, PAUSE_S = (
    4,
    0.2,
)  # clients of vLLM, which leave it some time: an engine that starts needs the cores too
COLD_START_S = 400.0  # of an engine, on a busy machine


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
    settings = scaled(registry)
    with running(find(None, settings, MODEL), settings, bound=bound) as started:
        yield started, first, second


def scaled(registry: Registry, **replicas: int) -> Settings:
    return Settings.model_validate(
        {"port": free_port(), "registry": str(registry.folder), "replicas": {**REPLICAS, **replicas}}
    )


def bound(models: Sequence[Served], settings: Settings) -> Any:
    """As of a real server, but for the engine."""
    from serving.deployments import Gateway, scales

    options = scales(settings.replicas, settings.load)["stable"]
    slots = {"stable": stubs(MODEL, "stable", options=options, load_s=0.1, token_s=TOKEN_S)}
    return Gateway.bind(settings, {MODEL: slots}, {MODEL: models[0].capabilities})


def standings() -> list[Standing]:
    return ray.get(ray.get_actor(NAME, namespace=NAMESPACE).standings.remote())


def states() -> Counter[str]:
    """How many replicas Serve has, by its own states."""
    deployments = serve.status().applications[APPLICATION].deployments
    [deployment] = [one for name, one in deployments.items() if name.endswith("--stable")]
    return Counter({str(getattr(k, "value", k)): n for k, n in deployment.replica_states.items() if n})


def wait_for(what: str, found: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + patience_s
    while not found():
        assert time.monotonic() < until, (what, states(), standings())
        time.sleep(0.1)


async def begin(client: openai.AsyncOpenAI, tokens: int, stream: bool) -> Any:
    """The answer, or a stream that has begun. Raises where it fails; nothing is tried twice."""
    return await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=tokens, stream=stream
    )


async def read(answer: Any) -> tuple[set[str | None], Sequence[str]]:
    """The versions that it names, and its words."""
    if not isinstance(answer, openai.AsyncStream):
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
        return [await read(await begin(client, SHORT, (number + n) % 2 == 0)) for n in _until(enough)]

    async def story() -> None:
        async with openai.AsyncOpenAI(base_url=started.url, api_key="none", max_retries=0) as client:
            askers = [asyncio.create_task(keep_asking(client, n)) for n in range(CLIENTS)]
            await asyncio.to_thread(wait_for, "a second replica", lambda: _serve(promoted.id, 2))
            enough.set()
            short = [answer for answers in await asyncio.gather(*askers) for answer in answers]
            # One after the other, each to the replica that has fewer.
            begun = [await begin(client, LONG, True) for _ in range(TARGET)]
            streams = [asyncio.create_task(read(one)) for one in begun]
            await asyncio.to_thread(wait_for, "a stream of each replica", lambda: _busy() == 2)
            assert states() == {"RUNNING": 2}
            await asyncio.to_thread(wait_for, "the end of a replica", lambda: states()["STOPPING"] == 1)
            assert not any(stream.done() for stream in streams)
            long = await asyncio.gather(*streams)
        said = [word(Path(promoted.path))]
        assert all(answer == ({promoted.id}, said * SHORT) for answer in short) and len(short) > CLIENTS
        assert all(answer == ({promoted.id}, said * LONG) for answer in long)

    try:
        asyncio.run(story())
    finally:
        enough.set()
    wait_for("one replica", lambda: states() == {"RUNNING": 1})


def test_a_replica_of_vllm_comes_with_the_promoted_version_and_goes_unnoticed(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    first = registry.register(Path(BASE_MODEL))
    promoted = registry.register(perturbed(tmp_path / "second", 0.05, 0))
    registry.promote(first.id, why="the first version served", against=None)
    world = Glyphs()
    [row] = world.rows("heldout", 1, 0, "caption")
    question: Any = {
        "model": "glyphs",
        "messages": [{"role": "user", "content": describe(world.image(row))}],
        "max_tokens": SHORT,
    }
    settings = scaled(registry, target_requests=1)
    over = threading.Event()
    answers: list[Any] = []

    async def keep_asking(client: openai.AsyncOpenAI, enough: threading.Event) -> None:
        while not (enough.is_set() or over.is_set()):
            answers.append(await client.chat.completions.create(**question))
            await asyncio.sleep(PAUSE_S)

    async def story(started: Server) -> None:
        busy = threading.Event()
        async with openai.AsyncOpenAI(base_url=started.url, api_key="none", max_retries=0) as client:
            lasting = asyncio.create_task(keep_asking(client, over))
            crowd = [asyncio.create_task(keep_asking(client, busy)) for _ in range(CROWD)]
            await asyncio.to_thread(wait_for, "two replicas", lambda: _serve(promoted.id, 2), COLD_START_S)
            busy.set()
            await asyncio.gather(*crowd)
            await asyncio.to_thread(wait_for, "one replica", lambda: states() == {"RUNNING": 1})
            over.set()
            await lasting

    with running(find(None, settings, "glyphs"), settings) as started:
        registry.promote(promoted.id, why="a test", against=first.id)
        wait_for("the promotion", lambda: _serve(promoted.id, 1))
        try:
            asyncio.run(story(started))
        finally:
            over.set()
    assert {answer.system_fingerprint for answer in answers} == {promoted.id}
    assert {answer.choices[0].finish_reason for answer in answers} <= {"stop", "length"}
    assert len(answers) > CROWD


def _until(over: threading.Event) -> Iterator[int]:
    number = 0
    while not over.is_set():
        yield number
        number += 1


def _busy() -> int:
    return sum(one.in_flight > 0 for one in standings())


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


def test_serve_is_told_how_long_to_wait_and_never_looks_back_further() -> None:
    from serving.deployments import scales

    def told(**wanted: float) -> dict[str, Any]:
        settings = Settings.model_validate({"replicas": {"fewest": 1, "most": 3, **wanted}})
        return scales(settings.replicas, settings.load)["stable"]["autoscaling_config"]

    usual, quick = told(), told(more_after_s=3, fewer_after_s=9)
    assert (usual["upscale_delay_s"], usual["downscale_delay_s"]) == (30, 600)
    assert (usual["look_back_period_s"], usual["metrics_interval_s"]) == (30, 10)
    assert (quick["upscale_delay_s"], quick["downscale_delay_s"]) == (3, 9)
    assert (quick["look_back_period_s"], quick["metrics_interval_s"]) == (3, 1)
    assert told(more_after_s=300)["look_back_period_s"] == 30
