"""Put a checkpoint behind Ray Serve: our gateway in front, vLLM underneath, an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve

from actors.placement import start_on_loopback
from serving import front, sample
from serving.access import keys
from serving.checkpoint import NotServable
from serving.feedback import forgetting
from serving.registry import commands
from serving.registry.registry import RegistryError
from serving.replicas.conductor import NAME, NAMESPACE, Conductor
from serving.replicas.engine_settings import environment
from serving.served import Served, find
from serving.settings import Settings, load

#: What the command line reaches; it imports nothing else of serving.
__all__ = [
    "NotServable",
    "RegistryError",
    "ServeError",
    "Server",
    "Target",
    "application",
    "commands",
    "forgetting",
    "keys",
    "load",
    "serve",
]

APPLICATION = "plumbline"
START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 5.0  # for processes to end by themselves once Ray has ended


class ServeError(Exception):
    """The endpoint could not be started; the message says why and what to change."""


class _Stopped(BaseException):
    """A signal asked for the end. Not an Exception, so that no library on the way swallows it."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running endpoint."""

    models: Sequence[Served]
    settings: Settings

    @property
    def origin(self) -> str:
        """Where people reach it; a wildcard host is reachable on loopback as well."""
        settings = self.settings
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        scheme = "https" if settings.tls is not None else "http"
        return f"{scheme}://[{host}]:{settings.port}" if ":" in host else f"{scheme}://{host}:{settings.port}"

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients."""
        return f"{self.origin}/v1"


def serve(
    target: Path | None,
    settings: Settings,
    *,
    ray_address: str | None = None,
    name: str | None = None,
    bound: Callable[[Sequence[Served], Settings], Any] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM and return the exit status: 128 + the signal's number.

    `target` is a run or a checkpoint. With `settings.registry` what is promoted there is served, and
    followed; a target is then its first version. `settings.models` has several instead. Without
    `ray_address` (or RAY_ADDRESS) a local Ray is started, and ended again. `bound`: as for `running`. Raises
    NotServable and ServeError before the endpoint is up; a second signal ends the process at once.
    """
    models = find(target, settings, name)
    address = ray_address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        _check_port(settings.host, settings.port)
    try:
        with running(models, settings, address, bound=bound) as server:
            _announce(server)
            while True:
                signal.pause()
    except _Stopped as stopped:
        print("stopped", flush=True)
        return 128 + stopped.number


@contextmanager
def running(
    models: Sequence[Served],
    settings: Settings,
    address: str | None = None,
    *,
    bound: Callable[[Sequence[Served], Settings], Any] | None = None,
) -> Iterator[Server]:
    """An endpoint that answers inside the block and is gone after it, with every process it started.

    `bound`: makes the Serve application; None: the gateway before vLLM.
    """
    for model in models:
        print(f"starting {model.servable.name} from {model.servable.path}", flush=True)
    with _connected(address, models), _signals_stop():
        try:
            conductor = _conductor(models)
            with _quiet():
                ray_serve.start(
                    proxy_location="HeadOnly",
                    http_options=_http_options(settings),
                    logging_config={"log_level": "WARNING"},
                )
                application = ray_serve.RunTarget(
                    target=(bound or _built)(models, settings),
                    name=APPLICATION,
                    route_prefix="/",
                    logging_config={"log_level": "WARNING"},
                )
                ray_serve.run_many([application], wait_for_applications_running=False)
            _wait_until_running()
            yield Server(models=models, settings=settings)
            del conductor  # until here its handle keeps it alive
        finally:
            ray_serve.shutdown()


def _conductor(models: Sequence[Served], **options: Any) -> Any:
    """It is restarted where it dies, and finds its way from the registries and from replicas that ask."""
    sources = {model.servable.name: model.source for model in models}
    adapters = {one.name: (model.servable.name, one.id) for model in models for one in model.adapters}
    known = {"name": NAME, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(Conductor).options(**known, max_concurrency=1000, **options).remote(sources, adapters)


def _http_options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"host": settings.host, "port": settings.port}
    if settings.tls is not None:
        options |= {"ssl_certfile": settings.tls.certificate, "ssl_keyfile": settings.tls.key}
    return options


class Target(BaseModel):
    """What a Serve configuration file gives under `args`."""

    model_config = ConfigDict(extra="forbid")

    target: Path | None = None  # as for `plumbline serve`
    name: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])


def application(args: dict[str, Any]) -> Any:
    """For Serve's configuration files: `import_path: serving.app:application`. Raises NotServable."""
    wanted = Target.model_validate(args)
    settings = Settings.model_validate(wanted.settings)
    models = find(wanted.target, settings, wanted.name)
    _conductor(models, lifetime="detached", get_if_exists=True)
    return _built(models, settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Notes on imports and on Serve's own start, and dumps of configurations, would bury the address."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _built(models: Sequence[Served], settings: Settings) -> Any:
    from serving import deployments  # loads vLLM

    return deployments.application(models, settings)


@contextmanager
def _connected(address: str | None, models: Sequence[Served]) -> Iterator[None]:
    """A driver's connection to the given cluster, or a local Ray that ends with the block."""
    before = _descendants()
    os.environ.update(environment() | front.environment())
    if address is None:
        # Logical CPUs only say how many actors fit; all of them share the real ones.
        engines = sum(model.settings.replicas.cpus for model in models)
        start_on_loopback(num_cpus=2 + engines, log_to_driver=False)
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        if address is not None:
            _check_serve_is_free(address)
        yield
    finally:
        mine = _descendants() - before
        ray.shutdown()
        _end(mine)


def _check_serve_is_free(address: str) -> None:
    status = ray_serve.status()
    if status.applications or status.proxies:
        what = ", ".join(status.applications) or "no application yet"
        raise ServeError(
            f"Ray cluster {address}: Ray Serve runs there already ({what}), and it has one HTTP "
            "address. End it (`serve shutdown`) or use another cluster"
        )


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without this a port in TIME_WAIT, free for Serve, would be refused here.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ServeError(
                f"cannot listen on {host}:{port}: {error}. Choose another with --port"
            ) from error


def _wait_until_running() -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        status = ray_serve.status().applications[APPLICATION]
        if status.status == "RUNNING":
            return
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            causes = [part.message for part in status.deployments.values() if part.message]
            raise ServeError("the engine did not start: " + "\n".join([status.message, *causes]))
        time.sleep(0.5)
    raise ServeError(
        f"the endpoint was not up within {START_TIMEOUT_S:.0f} s; are there the CPUs and GPUs it asks for?"
    )


@contextmanager
def _signals_stop() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into an orderly end; from then on the default action applies.

    To be entered after `ray.init`, which puts a handler of its own in place of any earlier one.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(number)

    previous = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end(processes: set[psutil.Process]) -> None:
    """Wait until these are gone; what Ray left behind (a worker's own helper processes) is ended."""
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)


def _announce(server: Server) -> None:
    names, settings = ", ".join(name for model in server.models for name in model.names), server.settings
    print(f"\nserving {names} at {server.url} (OpenAI-compatible; Ctrl-C ends it)", flush=True)
    print(f"page: {server.origin}/" + ("" if settings.keys is None else " (it asks for a key)"), flush=True)
    print(f"try:\n\n{example_request(server)}\n", flush=True)


def example_request(server: Server) -> str:
    """A curl command to paste; with a small picture inside where the model takes pictures."""
    model = next((m for m in server.models if m.settings.engine.task == "generate"), server.models[0])
    route, asked = "chat/completions", f'"messages": [{{"role": "user", "content": [{_content(model)}]}}]'
    if model.settings.engine.task == "embed":
        route, asked = "embeddings", '"input": "hello"'
    body = f'{{"model": "{model.servable.name}", {asked}}}'
    return f"curl {server.url}/{route} -H 'Content-Type: application/json' -d '{body}'"


def _content(model: Served) -> str:
    if not model.servable.sees:
        return '{"type": "text", "text": "hello"}'
    picture = f'{{"type": "image_url", "image_url": {{"url": "{sample.picture()}"}}}}'
    return picture + ', {"type": "text", "text": "describe the image ."}'
