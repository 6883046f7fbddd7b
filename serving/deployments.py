"""The Serve application: the gateway as its ingress, and one deployment of replicas per model and slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve as ray_serve

from serving.access.keys import Keys
from serving.access.quotas import Quotas
from serving.feedback import FeedbackStore
from serving.gateway import logs
from serving.gateway.gateway import build
from serving.media import Fetcher, MediaPool, clean, damage
from serving.models import ReplicaSettings
from serving.page import mount
from serving.replicas.backend import ServeBackend
from serving.replicas.conductor import NAME, NAMESPACE
from serving.replicas.engine_settings import chosen
from serving.selection.judging import Judges, load_rewards
from serving.selection.selectors import Inference
from serving.served import Served
from serving.settings import LoadSettings, Settings
from serving.wire import Capabilities

IN_FLIGHT = 10_000  # Serve's own bound; the gateway has bounds of its own, which answer with Retry-After
WINDOW_S, MEASURED = 30.0, 3  # of autoscaling: at most so long, with so many measurements


@ray_serve.deployment(
    name="gateway", num_replicas=1, max_ongoing_requests=IN_FLIGHT, ray_actor_options={"num_cpus": 0}
)
@ray_serve.ingress()
class Gateway:
    """What the HTTP proxy hands requests to.

    Args:
        settings: of the server.
        handles: a model's public name -> slot -> the replicas' handle.
        capabilities: a model's public name -> what it can do.
    """

    def __init__(
        self,
        settings: Settings,
        handles: Mapping[str, Mapping[str, Any]],
        capabilities: Mapping[str, Capabilities],
    ) -> None:
        self._settings, self._handles, self._capabilities = settings, handles, capabilities

    def __serve_build_asgi_app__(self) -> FastAPI:
        logs.to_stderr()
        settings = self._settings
        conductor = ray.get_actor(NAME, namespace=NAMESPACE)
        pool = MediaPool(settings.media, settings.limits)
        fetcher = None if settings.media.remote is None else Fetcher(settings.media.remote)
        rewards = settings.selectors
        judges = Judges(load_rewards(rewards.rewards), rewards.timeout_s)
        damages = partial(damage, limits=settings.limits, pool=pool)
        return build(
            settings,
            ServeBackend(self._handles, conductor),
            keys=None if settings.keys is None else Keys.load(Path(settings.keys)),
            quotas=Quotas(settings.quotas),
            capabilities=self._capabilities,
            page=mount,
            clean=partial(clean, limits=settings.limits, pool=pool, fetcher=fetcher),
            close=pool.close,
            feedback=FeedbackStore.of(settings.feedback),
            selectors=Inference(judges, settings.limits, damages),
        )


def application(models: Sequence[Served], settings: Settings) -> Any:
    """The bound application: the gateway before the replicas of every model. Raises NotServable."""
    slots = [(model, _slots(model, settings)) for model in models]
    handles = {name: bound for model, bound in slots for name in model.names}
    capabilities = {name: model.capabilities for model in models for name in model.names}
    return Gateway.bind(settings, handles, capabilities)


def _slots(model: Served, settings: Settings) -> dict[str, Any]:
    """Slot -> the bound deployment of its replicas."""
    from serving.replicas.replica import deployment  # loads vLLM, which a gateway's process does without

    wanted = model.settings.replicas
    engine = chosen(model.servable, model.settings.engine, settings.limits)
    return {
        slot: deployment(
            model.servable,
            slot=slot,
            gpus=wanted.gpus,
            options=options,
            engine=engine,
            adapters=model.adapters,
        )
        for slot, options in scales(wanted, settings.load).items()
    }


def scales(wanted: ReplicaSettings, load: LoadSettings) -> dict[str, dict[str, Any]]:
    """Slot -> Serve's options for how many replicas it has. Without canaries there is no such slot.

    A replica that is not needed any more ends what it has begun, for as long as a request may take.
    """
    stable: dict[str, Any] = {"num_replicas": wanted.fewest}
    if wanted.most is not None and wanted.most != wanted.fewest:
        stable = {"autoscaling_config": _autoscaling(wanted)}
    slots = {"stable": stable} | ({"canary": {"num_replicas": wanted.canary}} if wanted.canary else {})
    common = {"max_ongoing_requests": IN_FLIGHT, "graceful_shutdown_timeout_s": load.request_timeout_s}
    return {slot: {**common, **scale} for slot, scale in slots.items()}


def _autoscaling(wanted: ReplicaSettings) -> dict[str, Any]:
    """Serve compares the mean of a window, which is no longer than what is to be waited for."""
    window = min(wanted.more_after_s, WINDOW_S)
    return {
        "min_replicas": wanted.fewest,
        "max_replicas": wanted.most,
        "target_ongoing_requests": wanted.target_requests,
        "upscale_delay_s": wanted.more_after_s,
        "downscale_delay_s": wanted.fewer_after_s,
        "look_back_period_s": window,
        "metrics_interval_s": window / MEASURED,
    }
