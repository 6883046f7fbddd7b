"""Prometheus metrics of one gateway. Labels never come from clients: routes, registered names, versions."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Has a registry of its own, so that several gateways in one process do not meet."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("plumbline_requests", "Answered requests", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "plumbline_request_seconds", "Until the last byte", ["route"], buckets=LATENCY, registry=own
        )
        self.first = Histogram(
            "plumbline_first_token_seconds", "Until a stream's first chunk", buckets=LATENCY, registry=own
        )
        self.tokens = Counter("plumbline_tokens", "Tokens", ["model", "direction"], registry=own)
        self.answers = Counter(
            "plumbline_answers", "Whole answers", ["model", "slot", "version"], registry=own
        )
        self.in_flight = Gauge("plumbline_in_flight", "Requests at the replicas", registry=own)
        self.queued = Gauge("plumbline_queued", "Requests that wait for their turn", registry=own)
        self.refused = Counter("plumbline_refused", "Errors by code", ["code"], registry=own)
        self.retries = Counter("plumbline_retries", "Tries on another replica", registry=own)
        self.mixed = Counter("plumbline_mixed_versions", "Requests answered by two versions", registry=own)
        self.lost = Counter("plumbline_lost_notes", "Measurements and answers not kept", registry=own)

    def text(self) -> bytes:
        return generate_latest(self.registry)
