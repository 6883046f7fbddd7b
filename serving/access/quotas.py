"""What a client may use: requests and tokens per minute, and requests at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.gateway.protocols import Client
from serving.settings import QuotaSettings
from serving.wire import Refusal

CODE = "rate_limit_exceeded"


@dataclass
class Bucket:
    """A token bucket: full after a minute. What is overdrawn is paid back first."""

    per_minute: int
    at: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.per_minute

    def refill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Until the bucket holds the amount, which must not be more than it ever holds."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


@dataclass
class _Account:
    requests: Bucket | None
    tokens: Bucket | None
    quota: QuotaSettings
    in_flight: int = 0


class Quotas:
    """Belongs to one gateway process. A client's own quota goes before the default.

    Args:
        default: of clients that have none of their own.
        clock: monotonic, seconds.
    """

    def __init__(self, default: QuotaSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._default, self._clock = default, clock
        self._accounts: dict[str, _Account] = {}

    def take(self, client: Client, tokens: int) -> Refusal | None:
        """Admit one request that may cost up to `tokens`, or say when to come back; refusals are free."""
        account, now = self._account(client), self._clock()
        for bucket in (account.requests, account.tokens):
            if bucket is not None:
                bucket.refill(now)
        refusal = _refusal(account, tokens)
        if refusal is None:
            account.in_flight += 1
            if account.requests is not None:
                account.requests.level -= 1
            if account.tokens is not None:
                account.tokens.level -= tokens
        return refusal

    def give(self, client: Client, reserved: int, used: int) -> None:
        """An admitted request ended: `used` of the `reserved` tokens were spent."""
        account = self._account(client)
        account.in_flight = max(0, account.in_flight - 1)
        if account.tokens is not None:
            account.tokens.refill(self._clock())
            account.tokens.level = min(account.tokens.per_minute, account.tokens.level + reserved - used)

    def _account(self, client: Client) -> _Account:
        quota = getattr(client, "quota", None) or self._default
        account = self._accounts.get(client.id)
        if account is None or account.quota != quota:
            now, in_flight = self._clock(), account.in_flight if account is not None else 0
            requests, tokens = quota.requests_per_minute, quota.tokens_per_minute
            account = _Account(
                requests=None if requests is None else Bucket(requests, now),
                tokens=None if tokens is None else Bucket(tokens, now),
                quota=quota,
                in_flight=in_flight,
            )
            self._accounts[client.id] = account
        return account


def _refusal(account: _Account, tokens: int) -> Refusal | None:
    quota = account.quota
    if quota.concurrent is not None and account.in_flight >= quota.concurrent:
        return _too_much(f"at most {quota.concurrent} requests at once; wait for one to end", 1.0)
    if account.requests is not None and (wait := account.requests.wait_s(1)):
        return _too_much(f"at most {quota.requests_per_minute} requests per minute; try again later", wait)
    if account.tokens is None:
        return None
    if tokens > account.tokens.per_minute:
        return _too_much(
            f"the request may cost {tokens} tokens, the quota is {quota.tokens_per_minute} per minute; "
            "lower max_tokens or n",
            60.0,
        )
    if wait := account.tokens.wait_s(tokens):
        return _too_much(f"at most {quota.tokens_per_minute} tokens per minute; try again later", wait)
    return None


def _too_much(message: str, wait_s: float) -> Refusal:
    return Refusal(status=429, code=CODE, message=f"quota: {message}", retry_after_s=math.ceil(wait_s))
