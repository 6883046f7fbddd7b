"""Throws malformed requests at a gateway and judges every answer.

    python -m benchmarks.serving.fuzz --requests 50000          # on stub replicas
    python -m benchmarks.serving.fuzz --real --requests 500     # on vLLM, with the embedded model
    python -m benchmarks.serving.fuzz --requests 2000 --json FILE

A real HTTP server on loopback in a process of its own, with decoder processes for the corpus of bad media.
A tenth of the requests is made by schemathesis from the API's own description, a fifth are rows of the
bad-input matrix with their one right status, and the rest are valid requests with up to three things broken
in them. Exit status 1 on an undocumented status, any 500, a leak of paths, class names or addresses, a dead
or replaced replica, or (on stub replicas) memory that grows by more than a tenth after warming up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.ports import free_port
from benchmarks.serving import shots
from benchmarks.serving.judge import Judge, Tally
from benchmarks.serving.shots import Shot
from pipelines.worlds.glyphs import BASE_MODEL

AT_ONCE = 8
REQUESTS, REAL_REQUESTS = 50_000, 500
SCHEMA_SHARE, ROW_SHARE = 0.1, 0.2
START_S = 420.0  # vLLM on a busy machine
GROWTH = 0.10
WARM = 0.2  # share of the requests after which memory is first looked at
REPLACED = 40  # runs of schemathesis, so that its requests are not all held at once


def plan(document: dict[str, Any], matrix: list[Shot], count: int, seed: int) -> Iterator[Shot]:
    """`count` requests in random order; every row of the matrix comes at least once if there is room."""
    dice = random.Random(seed)
    broken = shots.mutants(dice)
    generated = _generated(document, seed, int(count * SCHEMA_SHARE))
    rows = _repeated(matrix, dice)
    for number in range(count):
        draw = dice.random()
        if number < len(matrix) or draw < ROW_SHARE:
            yield next(rows)
        elif draw < ROW_SHARE + SCHEMA_SHARE:
            yield next(generated, None) or next(broken)
        else:
            yield next(broken)


def _repeated(matrix: list[Shot], dice: random.Random) -> Iterator[Shot]:
    """All rows, again and again; large ones once, since they cost as much as a thousand others."""
    yield from matrix
    small = [shot for shot in matrix if len(shot.body) < 100_000]
    while True:
        yield from dice.sample(small, len(small))


def _generated(document: dict[str, Any], seed: int, count: int) -> Iterator[Shot]:
    batch = max(20, count // REPLACED)
    for start in range(0, count, batch):
        yield from shots.schema_shots(document, seed + start, batch)


async def fire(client: httpx.AsyncClient, planned: Iterable[Shot], judge: Judge, tally: Tally) -> None:
    """Send everything, a few at a time, and judge what comes back."""
    source = iter(planned)

    async def one_after_another() -> None:
        for shot in source:
            status, text = await _answer(client, shot)
            tally.add(shot, status, text, list(judge.problems(shot, status, text)))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_another())


async def _answer(client: httpx.AsyncClient, shot: Shot) -> tuple[int, str]:
    try:
        answer = await client.request(shot.method, shot.path, content=shot.body, headers=shot.headers)
    except httpx.TransportError as error:
        return 0, f"no answer: {type(error).__name__}"
    return answer.status_code, answer.text


class Server:
    """The target in a process of its own: stub replicas, or the embedded model on vLLM."""

    def __init__(self, *, real: bool = False) -> None:
        self.port = free_port()
        serve = ["pipelines.cli", "serve", str(BASE_MODEL), "--name", shots.MODEL]
        module = serve if real else ["benchmarks.serving.target"]
        self.real = real
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module, "--port", str(self.port)], stdout=subprocess.DEVNULL
        )
        self._gateway = psutil.Process(self.process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def document(self) -> dict[str, Any]:
        """The API's description, once a replica is ready."""
        deadline = time.monotonic() + START_S
        with httpx.Client(base_url=self.url, verify=False) as client:  # reading certificates takes its time
            while time.monotonic() < deadline and self.process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/ready").is_success:
                        return client.get("/openapi.json").json()
                time.sleep(0.2)
        raise SystemExit("the server did not start")

    def replicas(self) -> list[str]:
        """Their names: one that died and was replaced has another."""
        answer = httpx.get(f"{self.url}/v1/versions", timeout=30, verify=False)
        return sorted(one["replica"] for one in answer.json()["replicas"])

    def memory(self) -> int:
        """Bytes of the gateway, and what its decoders have beside it: they share its libraries' pages."""
        total = self._gateway.memory_info().rss
        for decoder in self._gateway.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that broke is being replaced
                total += decoder.memory_full_info().uss
        return total

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)


async def play(server: Server, count: int, seed: int) -> tuple[Tally, list[int]]:
    """The tally, and the memory after every hundredth of the requests."""
    document = server.document()
    tally, judge, memory = Tally(), Judge(document), []
    media = shots.media_rows()
    if server.real:  # the model may take less than the gateway does
        media = [replace(shot, expected=(*shot.expected, 400)) for shot in media]
    planned = plan(document, [*shots.rows(), *media], count, seed)
    limits = httpx.Limits(max_connections=AT_ONCE)
    patience = 300 if server.real else 60
    async with httpx.AsyncClient(base_url=server.url, timeout=patience, limits=limits) as client:
        for part in range(100):
            await fire(client, islice(planned, count * (part + 1) // 100 - count * part // 100), judge, tally)
            memory.append(server.memory())
    return tally, memory


def growth(memory: list[int]) -> float:
    """Of resident memory, from after warming up to the end; medians, since allocators come and go."""
    first = int(len(memory) * WARM)
    before = statistics.median(memory[first : first + 10])
    return statistics.median(memory[-10:]) / before - 1


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Malformed requests against a gateway")
    parser.add_argument("--requests", type=int, help=f"{REQUESTS}; {REAL_REQUESTS} with --real")
    parser.add_argument("--real", action="store_true", help="vLLM behind the gateway, not stub replicas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    server = Server(real=given.real)
    began = time.monotonic()
    count = given.requests or (REAL_REQUESTS if given.real else REQUESTS)
    try:
        server.document()
        before = server.replicas()
        tally, memory = asyncio.run(play(server, count, given.seed))
        alive = server.process.poll() is None and server.replicas() == before
    finally:
        server.stop()
    grown = 0.0 if given.real else growth(memory)  # Ray's own processes come and go
    result = {
        "backend": "vLLM, the embedded model" if given.real else "stub replicas: no model is involved",
        "requests": sum(tally.statuses.values()),
        "seconds": round(time.monotonic() - began, 1),
        "statuses": {str(status): n for status, n in sorted(tally.statuses.items())},
        "kinds": dict(tally.labels.most_common(12)),
        "violations": dict(tally.violations),
        "replicas_alive": alive,
        "memory_mib": [round(memory[int(len(memory) * WARM)] / 2**20), round(memory[-1] / 2**20)],
        "memory_growth": None if given.real else round(grown, 4),
    }
    print(json.dumps(result, indent=1))
    for example in tally.examples:
        print(example, file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if tally.violations or not alive or grown > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
