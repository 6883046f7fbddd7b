"""The comparison of servers: its arithmetic, and a load on a server of its own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from benchmarks.serving.overhead import load, report, servers
from benchmarks.serving.overhead.load import Block, Cell
from benchmarks.serving.overhead.report import Arm
from benchmarks.serving.overhead.servers import BARE, OURS, SERVE

ALONE = Cell(content="text", stream=False, at_once=1)


def arm(*blocks: list[float], seconds: float = 1.0, **fields: Any) -> Arm:
    made = [Block(seconds=seconds, latencies=one, firsts=one) for one in blocks]
    return Arm(blocks=made, **fields)


def test_equal_servers_have_the_ratio_one_and_add_nothing() -> None:
    one = arm([0.1, 0.2], [0.3])
    assert report.throughput_ratio(one, one) == report.Compared(value=1.0, interval=(1.0, 1.0))
    assert report.added(one, one, 0.99).value == 0.0


def test_ratio_and_added_time_of_hand_made_blocks() -> None:
    """2 answers a second beside 1. Medians are 2 and 5 over all blocks. A resample is the first block twice
    (1, 4), the second twice (3, 6) or both: 3 between them each time. Beside 1 and 1 it is 3 to 5.
    """
    bare, ours = arm([1.0, 1.0], [3.0, 3.0]), arm([4.0], [6.0])
    ratio = report.throughput_ratio(bare, ours)
    assert ratio.value == 0.5 and ratio.interval == (0.5, 0.5)
    assert report.added(bare, ours, 0.5) == report.Compared(value=3.0, interval=(3.0, 3.0))
    assert report.added(arm([1.0], [1.0]), ours, 0.5).interval == (3.0, 5.0)


def test_one_block_has_no_interval() -> None:
    assert report.shown(report.throughput_ratio(arm([1.0]), arm([1.0]))) == "1.00"


def test_the_time_spent_is_per_answer_over_all_loads_of_a_kind() -> None:
    several = Cell(content="text", stream=False, at_once=4)
    other = Cell(content="picture", stream=False, at_once=1)
    bare, ours = arm([0.010, 0.030], cpu=Counter(engine=6000)), arm([0.040, 0.040], inside=0.050)
    more = arm([0.050], cpu=Counter(engine=3000))
    measured = {
        ALONE: {BARE: bare, SERVE: bare, OURS: ours},
        several: {BARE: more, SERVE: more, OURS: more},
        other: {BARE: ours, SERVE: ours, OURS: ours},
    }
    found = report.spent(measured)
    assert found["text, whole, vLLM"] == found["text, whole, Ray Serve LLM"] == {"engine": 3.0, "clock": 20.0}
    clock = {"clock": 40.0, "... inside the gateway": 25.0, "... before and after it": 15.0}
    assert found["text, whole, plumbline"] == pytest.approx({"engine": 1.0, **clock})
    lines = report.spent_table(found).splitlines()
    assert lines[2] == "| engine | 3.00 | 3.00 | 1.00 |  |  |  |"


def test_the_table_has_a_row_per_load_and_server() -> None:
    open_loop = Cell(content="picture", stream=True, at_once=None)
    arms = {BARE: arm([0.010, 0.010]), SERVE: arm([0.012, 0.012]), OURS: arm([0.015])}
    lines = report.table(report.rows({ALONE: arms, open_loop: arms})).splitlines()
    assert lines[2:] == [
        "| 1 at once | text, whole | vLLM | 2.0 |  |  |  |  |  | 2 |",
        "| 1 at once | text, whole | Ray Serve LLM | 2.0 | 1.00 |  | 2.0 | 2.0 |  | 2 |",
        "| 1 at once | text, whole | plumbline | 1.0 | 0.50 | 0.50 | 5.0 | 5.0 |  | 1 |",
        "| open loop | picture, streamed | vLLM | 2.0 |  |  |  |  |  | 2 |",
        "| open loop | picture, streamed | Ray Serve LLM | 2.0 |  |  | 2.0 | 2.0 | 2.0 | 2 |",
        "| open loop | picture, streamed | plumbline | 1.0 |  |  | 5.0 | 5.0 | 5.0 | 1 |",
    ]


def test_options_of_the_engine_become_flags() -> None:
    options = {
        "enforce_eager": True,
        "log": False,
        "domains": ["a", "b"],
        "limit": {"image": 1},
        "length": -1,
    }
    assert servers._flags(options) == [
        "--enforce-eager",
        "--no-log",
        "--domains",
        "a",
        "b",
        '--limit={"image": 1}',
        "--length=-1",
    ]


@pytest.mark.parametrize("at_once", [2, None])
def test_a_load_counts_whole_answers_and_stops_at_a_failure(at_once: int | None) -> None:
    """On a server that answers `{}`; in the second round its third answer is an error."""

    async def story(failing: bool) -> Block:
        served = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            while head := await reader.readline():
                while not head.endswith(b"\r\n\r\n"):
                    head += await reader.readline()
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                assert json.loads(await reader.readexactly(length)) == {"stream": False}
                served += 1
                status = b"503 Busy" if failing and served == 3 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\n{}")
                await writer.drain()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            cell = Cell(content="text", stream=False, at_once=at_once)
            asked = [json.dumps({"stream": False}).encode()]
            return await load.drive(f"http://127.0.0.1:{port}", asked, cell, 0.2, rate=100.0)

    block = asyncio.run(story(failing=False))
    assert len(block.latencies) == len(block.firsts) > 3
    assert all(0 < first <= last for first, last in zip(block.firsts, block.latencies, strict=True))
    with pytest.raises(SystemExit, match=r"not whole \(status 503\)"):
        asyncio.run(story(failing=True))
