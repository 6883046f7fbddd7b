"""What the gateway costs: the same chats to our server, to vLLM's own and to Ray Serve LLM's, side by side.

    python -m benchmarks.serving.overhead                           # about 35 minutes
    python -m benchmarks.serving.overhead --seconds 1 --blocks 2    # to see that it runs

The servers run the same checkpoint with the same options of the engine. All are up all the time, but only one
is under load. With two cores or more, every process of the loaded server is on one core; the idle ones and
the load generator are on another, so that Ray's idle processes cost vLLM's server nothing. The servers take
turns within every block, in the next block in the opposite order, so that drift of the machine cancels.
Answers are compared before anything is timed: greedy texts must be equal.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from cpuinfo import get_cpu_info

from benchmarks.serving.overhead import load, report
from benchmarks.serving.overhead.load import CONTENTS, Block, Cell
from benchmarks.serving.overhead.report import Arm, per_second
from benchmarks.serving.overhead.servers import Server, running
from pipelines.worlds.glyphs import BASE_MODEL

AT_ONCE = (1, 4, 16, None)
COMPARED = 24
CELLS = [
    Cell(content=content, stream=stream, at_once=at_once)
    for content, stream, at_once in product(CONTENTS, (False, True), AT_ONCE)
]
OPEN_SHARE = 0.5  # rate of the open loop, of what the slowest server does with 4 requests at once


def compare(servers: Sequence[Server]) -> None:
    """Raises SystemExit where they answer differently."""
    for content in CONTENTS:
        asked = load.bodies(content, stream=False)[:COMPARED]
        answers = [asyncio.run(load.texts(server.url, asked)) for server in servers]
        other = [texts for texts in zip(*answers, strict=True) if len(set(texts)) > 1]
        if other:
            raise SystemExit(f"{content}: {len(other)} of {COMPARED} greedy answers differ, first {other[0]}")


class Turns:
    """Gives the servers their turns, each on the cores of the one under load."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        cores = sorted(os.sched_getaffinity(0))
        self.loaded, self.aside = ({cores[0]}, {cores[1]}) if len(cores) > 1 else ({cores[0]}, {cores[0]})
        os.sched_setaffinity(0, self.aside)
        self._asked = {
            (content, stream): load.bodies(content, stream)
            for content, stream in product(CONTENTS, (False, True))
        }

    def take(
        self, server: Server, cell: Cell, seconds: float, rate: float
    ) -> tuple[Block, Counter[str], float]:
        """One block, the microseconds of CPU by role, and the seconds inside our gateway."""
        for one in self._servers:
            one.pin(self.loaded if one is server else self.aside)
        cpu, inside = server.used(), server.inside()
        asked = self._asked[cell.content, cell.stream]
        block = asyncio.run(load.drive(server.url, asked, cell, seconds, rate))
        return block, server.used() - cpu, server.inside() - inside

    def rates(self, seconds: float) -> dict[Cell, float]:
        """Warm the servers up under every load; what the open loops are to send per second."""
        slowest: dict[Cell, float] = {}
        for cell, server in product(CELLS, self._servers):
            if cell.at_once is None:
                continue
            block, _, _ = self.take(server, cell, seconds, 0.0)
            if cell.at_once == 4:
                open_loop = replace(cell, at_once=None)
                slowest[open_loop] = min(slowest.get(open_loop, math.inf), per_second([block]))
        return {cell: OPEN_SHARE * fastest for cell, fastest in slowest.items()}


def measure(
    turns: Turns, servers: Sequence[Server], blocks: int, seconds: float
) -> dict[Cell, dict[str, Arm]]:
    """All blocks of all loads."""
    rates = turns.rates(min(seconds, 3.0))
    measured = {cell: {server.name: Arm() for server in servers} for cell in CELLS}
    for number, cell in product(range(blocks), CELLS):
        for server in servers if number % 2 == 0 else servers[::-1]:
            block, cpu, inside = turns.take(server, cell, seconds, rates.get(cell, 0.0))
            arm = measured[cell][server.name]
            arm.blocks.append(block)
            arm.cpu += cpu
            arm.inside += inside
        print(f"block {number + 1} of {blocks}: {cell.asked}, {cell.load}", file=sys.stderr, flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description="What the gateway costs beside vLLM's and Ray Serve's servers"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="of load per server, block and kind")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    with running(BASE_MODEL) as servers:
        compare(servers)
        turns = Turns(servers)
        measured = measure(turns, servers, given.blocks, given.seconds)
    found, spent = report.rows(measured), report.spent(measured)
    where = (
        f"servers in turns on core {min(turns.loaded)}; the idle ones and the load generator on core "
        f"{min(turns.aside)}; {given.blocks} blocks of {given.seconds:g} s per server and kind"
    )
    machine = f"{get_cpu_info().get('brand_raw', platform.machine())}, {os.cpu_count()} cores"
    print(f"{machine}\n{where}\n\n{report.table(found)}\n\n{report.spent_table(spent)}")
    if given.json is not None:
        result: dict[str, Any] = {"machine": machine, "where": where, "loads": found, "spent_ms": spent}
        given.json.write_text(json.dumps(result, indent=1, default=dataclasses.asdict) + "\n")


if __name__ == "__main__":
    main()
