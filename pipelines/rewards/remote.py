"""A reward behind HTTP: one JSON request per group, deadlines, retries, and a circuit breaker.

Request: {"items": [{"id", "messages", "response", "finished", "row", "images": [base64 PNG, ...]}, ...]}.
Answer: {"scores": [number | {"value": number, "parts"?: {...}, "confidence"?: number} | {"missing": reason},
...]}, one per item in order.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message as Headers
from typing import Any, cast

from pipelines.rewards.base import missing
from pipelines.rewards.threads import in_thread
from pipelines.rewards.user import as_score, messages_of
from pipelines.types import MediaTable, Rollout, Score, canonical_digest

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
LARGEST_ANSWER = 16 * 2**20  # bytes; a reward that sends more is broken


class RemoteFailed(Exception):
    """No usable answer. `again`: another try may help, but not before `after` seconds."""

    def __init__(self, reason: str, again: bool, after: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.after = again, after


class Breaker:
    """Stops asking a server that keeps failing.

    Closed until `failures` requests in a row have failed; then open, and everything is refused, for `rest_s`;
    then half-open: one request is let through, and its outcome closes or opens the breaker again.
    """

    def __init__(self, failures: int, rest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures, self._rest_s, self._clock = failures, rest_s, clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._opened: float | None = None
        self._trying = False

    def admit(self) -> bool:
        """Whether a request may be sent now; one that may must be followed by `report`."""
        with self._lock:
            if self._opened is None:
                return True
            if self._trying or self._clock() - self._opened < self._rest_s:
                return False
            self._trying = True
            return True

    def report(self, ok: bool) -> None:
        with self._lock:
            self._trying = False
            self._in_a_row = 0 if ok else self._in_a_row + 1
            if ok:
                self._opened = None
            elif self._in_a_row >= self._failures:
                self._opened = self._clock()


@dataclass(frozen=True)
class Remote:
    """Scores of a server at `url`; whatever fails is a missing score with a countable reason.

    Connection errors, timeouts and the statuses 408, 425, 429 and 5xx are tried again, with a wait of
    backoff_s 2^k, jittered from a seed and at least what Retry-After asks for; other statuses and answers
    that do not fit the protocol are not. `token_env` names an environment variable whose value is sent as a
    bearer token. After `failures` failed requests in a row the circuit opens for `rest_s` seconds.

    Raises ValueError for a URL that is not http or https.
    """

    url: str
    timeout_s: float = 30.0  # of one try
    tries: int = 3
    backoff_s: float = 0.5
    failures: int = 5
    rest_s: float = 30.0
    images: bool = True  # send the pictures that the prompt shows
    token_env: str | None = None
    seed: int = 0
    breaker: Breaker = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or self.tries < 1:
            raise ValueError(
                f"Remote: expected an http(s) URL and tries >= 1, got {self.url!r}, {self.tries}"
            )
        object.__setattr__(self, "breaker", Breaker(self.failures, self.rest_s))

    async def group(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        return await in_thread(lambda: self._group(rollouts, media))

    def _group(self, rollouts: Sequence[Rollout], media: MediaTable) -> Sequence[Score]:
        body = json.dumps({"items": [self._item(rollout, media) for rollout in rollouts]}).encode()
        try:
            return self._asked(body, len(rollouts))
        except RemoteFailed as error:
            return [missing(str(error)[:300])] * len(rollouts)

    def _asked(self, body: bytes, count: int) -> list[Score]:
        jitter = random.Random(canonical_digest([self.seed, body.decode()]))
        for attempt in range(self.tries):
            if not self.breaker.admit():
                raise RemoteFailed(f"reward_circuit_open: {self.url} keeps failing", again=False)
            try:
                scores = read_scores(self._post(body), count)
            except RemoteFailed as error:
                self.breaker.report(ok=False)
                if not error.again or attempt == self.tries - 1:
                    raise
                wait = self.backoff_s * 2**attempt * jitter.uniform(0.5, 1.5)
                time.sleep(min(max(wait, error.after), self.timeout_s))
            except BaseException:
                self.breaker.report(ok=False)
                raise
            else:
                self.breaker.report(ok=True)
                return scores
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.token_env is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.token_env, '')}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                answer: bytes = response.read(LARGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            reason = f"reward_http_{error.code}: {self.url}"
            raise RemoteFailed(reason, error.code in AGAIN, _retry_after(error.headers)) from error
        except TimeoutError as error:
            raise RemoteFailed(f"reward_timed_out: {self.url} after {self.timeout_s:g} s", True) from error
        except (OSError, EOFError, ValueError) as error:  # URLError is an OSError; refused, reset, truncated
            kind = "timed_out" if isinstance(getattr(error, "reason", None), TimeoutError) else "unreachable"
            raise RemoteFailed(f"reward_{kind}: {self.url}: {error}", True) from error
        except Exception as error:  # http.client's own exceptions for what is no HTTP
            raise RemoteFailed(f"reward_unreachable: {self.url}: {error!r}", True) from error
        if len(answer) > LARGEST_ANSWER:
            raise RemoteFailed(f"reward_bad_answer: more than {LARGEST_ANSWER} bytes", again=False)
        return answer

    def _item(self, rollout: Rollout, media: MediaTable) -> dict[str, Any]:
        prompt, response = rollout.prompt, rollout.response
        return {
            "id": prompt.id,
            "messages": messages_of(prompt),
            "response": response.text,
            "finished": response.finished,
            "row": dict(prompt.gold),
            "images": [_png(media, digest) for digest in prompt.media] if self.images else [],
        }


def read_scores(answer: bytes, count: int) -> list[Score]:
    """The scores of an answer; an item that is no score is missing by itself. Raises `RemoteFailed`."""
    try:
        given: Any = json.loads(answer)
    except ValueError as error:
        raise RemoteFailed(f"reward_bad_answer: not JSON: {answer[:60]!r}", again=False) from error
    scores: Any = cast("Mapping[str, Any]", given).get("scores") if isinstance(given, dict) else None
    if not isinstance(scores, list) or len(items := cast("list[Any]", scores)) != count:
        raise RemoteFailed(
            f"reward_bad_answer: expected {{'scores': [{count} items]}}, got {answer[:60]!r}", again=False
        )
    return [_score(item) for item in items]


def _score(item: Any) -> Score:
    if not isinstance(item, dict):
        return as_score(item)
    fields = cast("dict[str, Any]", item)
    if fields.get("missing"):
        return missing(f"reward_said: {fields['missing']}"[:300])
    try:
        parts = {str(name): float(value) for name, value in fields.get("parts", {}).items()}
        return Score(value=float(fields["value"]), parts=parts, confidence=float(fields.get("confidence", 1)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return missing(f"reward_bad_answer: {error!r} in {fields!r}"[:300])


def _png(media: MediaTable, digest: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(media[digest].payload).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _retry_after(headers: Headers | None) -> float:
    try:
        return max(0.0, float(headers["Retry-After"])) if headers is not None else 0.0
    except (TypeError, ValueError):  # absent, or a date
        return 0.0
