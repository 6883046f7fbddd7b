"""The Serve application: the gateway as its ingress, and one deployment of replicas per model and slot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve as ray_serve

from serving.access.keys import Keys
from serving.access.quotas import Quotas
from serving.checkpoint import Servable
from serving.feedback import FeedbackStore
from serving.gateway import logs
from serving.gateway.gateway import build
from serving.media import MediaPool, clean
from serving.page import mount
from serving.replicas.backend import ServeBackend
from serving.replicas.conductor import NAME, NAMESPACE
from serving.replicas.replica import deployment
from serving.selection.judging import Judges, load_rewards
from serving.selection.selectors import Inference
from serving.settings import Settings

IN_FLIGHT = 10_000  # Serve's own bound; the gateway has bounds of its own, which answer with Retry-After


@ray_serve.deployment(
    name="gateway", num_replicas=1, max_ongoing_requests=IN_FLIGHT, ray_actor_options={"num_cpus": 0}
)
@ray_serve.ingress()
class Gateway:
    """What the HTTP proxy hands requests to.

    Args:
        settings: of the server.
        handles: a model's public name -> slot -> the replicas' handle.
    """

    def __init__(self, settings: Settings, handles: Mapping[str, Mapping[str, Any]]) -> None:
        self._settings, self._handles = settings, handles

    def __serve_build_asgi_app__(self) -> FastAPI:
        logs.to_stderr()
        settings = self._settings
        conductor = ray.get_actor(NAME, namespace=NAMESPACE)
        pool = MediaPool(settings.media, settings.limits)
        rewards = settings.selectors
        return build(
            settings,
            ServeBackend(self._handles, conductor),
            keys=None if settings.keys is None else Keys.load(Path(settings.keys)),
            quotas=Quotas(settings.quotas),
            page=mount,
            clean=partial(clean, limits=settings.limits, pool=pool),
            feedback=FeedbackStore.of(settings.feedback),
            selectors=Inference(Judges(load_rewards(rewards.rewards), rewards.timeout_s), settings.limits),
        )


def replicas(servable: Servable, settings: Settings, slot: str) -> Any:
    """The bound deployment of one slot's replicas."""
    options = {"max_ongoing_requests": IN_FLIGHT, **_scale(settings, slot)}
    engine = {
        "max_logprobs": settings.limits.logprobs,
        **({"limit_mm_per_prompt": {"image": settings.limits.media, "video": 0}} if servable.sees else {}),
    }
    return deployment(servable, slot=slot, gpus=settings.replicas.gpus, options=options, engine=engine)


def _scale(settings: Settings, slot: str) -> dict[str, Any]:
    wanted = settings.replicas
    if slot == "canary":
        return {"num_replicas": wanted.canary}
    if wanted.most is None or wanted.most == wanted.fewest:
        return {"num_replicas": wanted.fewest}
    bounds = {"min_replicas": wanted.fewest, "max_replicas": wanted.most}
    return {"autoscaling_config": bounds | {"target_ongoing_requests": wanted.target_requests}}
