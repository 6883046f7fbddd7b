"""What is fuzzed: the gateway as it is served, on stub replicas."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from fastapi import FastAPI

from serving.gateway.gateway import build
from serving.gateway.stub import StubBackend, StubReplica
from serving.media import MediaPool, clean
from serving.settings import Settings
from serving.wire import Refusal, Version

VERSIONS = (
    Version(id="v-aaaaaaaaaaaa", path="/models/old", digest="a" * 64),
    Version(id="v-bbbbbbbbbbbb", path="/models/new", digest="b" * 64),
)


class Forgetful:
    """Takes all feedback and keeps none."""

    async def remember(self, **kept: Any) -> None: ...

    async def rate(self, *, client: str, feedback: dict[str, Any]) -> Refusal | None:
        return None


def application(pool: MediaPool | None = None) -> FastAPI:
    """Two stable replicas and a canary; media are taken where there are processes to decode them."""
    old, new = VERSIONS
    replicas = [
        StubReplica("stable", "a", old),
        StubReplica("stable", "b", old),
        StubReplica("canary", "c", new),
    ]
    cleaner = None if pool is None else partial(clean, limits=Settings().limits, pool=pool)
    return build(Settings(), StubBackend(*replicas, canary=0.3), feedback=Forgetful(), clean=cleaner)


def main() -> None:
    """Serve it on loopback until the process is ended."""
    import uvicorn

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    options = {"log_level": "critical", "access_log": False}
    # The fuzzer pauses to make requests; a connection that is closed meanwhile would look like a lost answer.
    settings = Settings()
    pool = MediaPool(settings.media, settings.limits)
    try:
        uvicorn.run(application(pool), port=parser.parse_args().port, timeout_keep_alive=120, **options)
    finally:
        pool.close()


if __name__ == "__main__":
    main()
