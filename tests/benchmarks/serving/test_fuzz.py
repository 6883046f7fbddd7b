"""The fuzzer: that it notices what it looks for, and 2,000 of its requests."""

from __future__ import annotations

import asyncio
import json
from itertools import islice

import httpx
import pytest

from benchmarks.serving import shots
from benchmarks.serving.fuzz import fire, growth, plan
from benchmarks.serving.judge import Judge, Tally
from benchmarks.serving.shots import Shot
from benchmarks.serving.target import application
from serving.gateway.openapi import describe
from serving.settings import Settings

DOCUMENT = describe(Settings(), keyed=False)
REQUESTS = 2000


def error(message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": "c"}})


@pytest.mark.parametrize(
    ("status", "text", "says"),
    [
        (400, error("n: at most 8"), None),
        (418, error("n: at most 8"), "undocumented status"),
        (500, error("internal error"), "server error"),
        (400, '{"detail": "x"}', "no error body"),
        (400, "Internal Server Error", "no error body"),
        (400, error("cannot read /home/me/model"), "leak of a path"),
        (400, error("in serving/gateway/gateway.py"), "leak of a path"),
        (400, error("Traceback (most recent call last)"), "leak of a traceback"),
        (400, error("ValueError: x"), "leak of a class"),
        (400, error("<pipelines.types.Prompt object>"), "leak of a class"),
        (400, error("replica at 10.0.0.7"), "leak of a address"),
        (400, error("at 0x7f0011223344"), "leak of a address"),
        (400, error("pydantic says no"), "leak of a library"),
        (503, error("later").replace('"c"', '"engine_failed"'), "engine failure"),
    ],
)
def test_the_judge_notices(status: int, text: str, says: str | None) -> None:
    problems = list(Judge(DOCUMENT).problems(Shot(label="x", path=shots.CHAT), status, text))
    assert problems == [] if says is None else any(says in problem for problem in problems)


def test_what_a_client_sent_is_no_leak() -> None:
    shot = Shot(label="x", path=shots.CHAT, body=b'{"model": "/etc/passwd"}')
    assert not list(Judge(DOCUMENT).problems(shot, 404, error("there is no model /etc/passwd")))


def test_a_row_with_another_status_than_its_own_is_noticed() -> None:
    shot = Shot(label="x", path=shots.CHAT, expected=(400,))
    assert any("wrong status" in one for one in Judge(DOCUMENT).problems(shot, 200, "{}"))


def test_growth_is_from_after_warming_up() -> None:
    assert growth([1] * 20 + [100] * 70 + [110] * 10) == pytest.approx(0.1)


def test_requests_are_the_same_for_a_seed() -> None:
    first, again = (list(islice(plan(DOCUMENT, shots.rows(), 100, seed), 100)) for seed in (3, 3))
    assert [shot.body for shot in first] == [shot.body for shot in again]


def test_no_request_gets_an_undocumented_answer() -> None:
    app = application()
    tally = Tally()

    async def all_of_them() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await fire(client, plan(DOCUMENT, shots.rows(), REQUESTS, seed=1), Judge(DOCUMENT), tally)

    asyncio.run(all_of_them())
    assert not tally.violations, "\n".join(tally.examples)
    assert sum(tally.statuses.values()) == REQUESTS
    assert tally.statuses[200] > 100 and tally.statuses[400] > 1000  # both sides of the schema are met
    assert tally.labels["schema"] > 100
