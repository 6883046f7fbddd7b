"""Throws malformed requests at a gateway on stub replicas and judges every answer.

    python -m benchmarks.serving.fuzz --requests 50000
    python -m benchmarks.serving.fuzz --requests 2000 --json FILE

A real HTTP server on loopback in a process of its own, with decoder processes for the corpus of bad media.
A tenth of the requests is made by schemathesis from the API's own description, a fifth are rows of the
bad-input matrix with their one right status, and the rest are valid requests with up to three things broken
in them. Exit status 1 on an undocumented status, any 500, a leak of paths, class names or addresses, a dead
server, or memory that grows by more than a tenth after warming up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.serving import shots
from benchmarks.serving.judge import Judge, Tally
from benchmarks.serving.shots import Shot

AT_ONCE = 8
SCHEMA_SHARE, ROW_SHARE = 0.1, 0.2
START_S = 180.0
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
    """The target in a process of its own."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.serving.target", "--port", str(self.port)]
        self.process = subprocess.Popen(command)
        self._processes = psutil.Process(self.process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def document(self) -> dict[str, Any]:
        """The API's description, once the server answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                return httpx.get(f"{self.url}/openapi.json").json()
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit("the server did not start")

    def memory(self) -> int:
        """Resident bytes of the server and its children."""
        return sum(
            one.memory_info().rss for one in [self._processes, *self._processes.children(recursive=True)]
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


async def play(server: Server, count: int, seed: int) -> tuple[Tally, list[int]]:
    """The tally, and the memory after every hundredth of the requests."""
    document = server.document()
    tally, judge, memory = Tally(), Judge(document), []
    planned = plan(document, [*shots.rows(), *shots.media_rows()], count, seed)
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
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
    parser = argparse.ArgumentParser(description="Malformed requests against a gateway on stub replicas")
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    server = Server()
    began = time.monotonic()
    try:
        tally, memory = asyncio.run(play(server, given.requests, given.seed))
        alive = server.process.poll() is None
    finally:
        server.stop()
    result = {
        "backend": "stub replicas: no model is involved",
        "requests": sum(tally.statuses.values()),
        "seconds": round(time.monotonic() - began, 1),
        "statuses": {str(status): n for status, n in sorted(tally.statuses.items())},
        "kinds": dict(tally.labels.most_common(12)),
        "violations": dict(tally.violations),
        "server_alive": alive,
        "memory_mib": [round(memory[int(len(memory) * WARM)] / 2**20), round(memory[-1] / 2**20)],
        "memory_growth": round(growth(memory), 4),
    }
    print(json.dumps(result, indent=1))
    for example in tally.examples:
        print(example, file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if tally.violations or not alive or growth(memory) > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
