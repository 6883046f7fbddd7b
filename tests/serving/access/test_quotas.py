from __future__ import annotations

from typing import Any

from serving.access.keys import Client
from serving.access.quotas import Quotas
from serving.settings import QuotaSettings

ANN, BOB = Client("ann"), Client("bob")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(**quota: Any) -> tuple[Quotas, Clock]:
    clock = Clock()
    return Quotas(QuotaSettings(**quota), clock), clock


def test_requests_per_minute_come_back_evenly() -> None:
    """Two per minute: both at once, the third 30 s later."""
    quotas, clock = made(requests_per_minute=2)
    assert quotas.take(ANN, 0) is None and quotas.take(ANN, 0) is None
    refusal = quotas.take(ANN, 0)
    assert refusal is not None and (refusal.status, refusal.retry_after_s) == (429, 30)
    assert quotas.take(BOB, 0) is None
    clock.now = 30
    assert quotas.take(ANN, 0) is None
    assert quotas.take(ANN, 0) is not None


def test_unused_tokens_come_back_and_overdrawn_ones_are_paid() -> None:
    quotas, clock = made(tokens_per_minute=60)
    assert quotas.take(ANN, 60) is None
    quotas.give(ANN, 60, 20)
    assert quotas.take(ANN, 40) is None
    quotas.give(ANN, 40, 100)  # overdrawn by 60: a minute to be at nothing, 10 s more for 10 tokens
    refusal = quotas.take(ANN, 10)
    assert refusal is not None and refusal.retry_after_s == 70
    clock.now = 70
    assert quotas.take(ANN, 10) is None


def test_a_request_that_never_fits_says_what_to_lower() -> None:
    quotas, _ = made(tokens_per_minute=60)
    refusal = quotas.take(ANN, 61)
    assert refusal is not None and "lower max_tokens" in refusal.message


def test_requests_at_once_and_a_refusal_costs_nothing() -> None:
    quotas, _ = made(concurrent=1, requests_per_minute=2)
    assert quotas.take(ANN, 0) is None
    assert all(quotas.take(ANN, 0) is not None for _ in range(5))
    quotas.give(ANN, 0, 0)
    assert quotas.take(ANN, 0) is None


def test_a_clients_own_quota_goes_first() -> None:
    quotas, _ = made(concurrent=1)
    vip = Client("vip", QuotaSettings(concurrent=2))
    assert [quotas.take(vip, 0) is None for _ in range(3)] == [True, True, False]


def test_no_quota_bounds_nothing() -> None:
    quotas, _ = made()
    assert all(quotas.take(ANN, 10**9) is None for _ in range(100))
