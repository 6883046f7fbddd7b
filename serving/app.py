"""Put a checkpoint behind Ray Serve: our gateway in front, vLLM underneath, an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from ray import serve as ray_serve

from actors.placement import start_on_loopback
from serving.access import keys
from serving.checkpoint import NotServable, Servable, find_servable
from serving.front import VARIABLE
from serving.registry import commands
from serving.registry.followed import Followed
from serving.registry.registry import Entry, Registry, RegistryError
from serving.replicas.conductor import NAME, NAMESPACE, Conductor, Fixed, Source
from serving.replicas.engine_settings import environment
from serving.replicas.integrity import version_of
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

    servable: Servable
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
    target: Path | None, settings: Settings, *, ray_address: str | None = None, name: str | None = None
) -> int:
    """Serve until SIGINT or SIGTERM and return the exit status: 128 + the signal's number.

    `target` is a run or a checkpoint. With `settings.registry` what is promoted there is served, and
    followed; a target is then its first version. Without `ray_address` (or RAY_ADDRESS) a local Ray is
    started, and ended again. Raises NotServable and ServeError before the endpoint is up; a second signal
    ends the process at once.
    """
    servable, source = _source(target, settings, name)
    address = ray_address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        _check_port(settings.host, settings.port)
    try:
        with running(servable, source, settings, address) as server:
            _announce(server)
            while True:
                signal.pause()
    except _Stopped as stopped:
        print("stopped", flush=True)
        return 128 + stopped.number


@contextmanager
def running(
    servable: Servable, source: Source, settings: Settings, address: str | None = None
) -> Iterator[Server]:
    """An endpoint that answers inside the block and is gone after it, with every process it started."""
    print(f"starting {servable.name} from {servable.path}", flush=True)
    with _connected(address, settings), _signals_stop():
        try:
            conductor = _conductor({servable.name: source})
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options=_http_options(settings),
                logging_config={"log_level": "WARNING"},
            )
            application = ray_serve.RunTarget(
                target=_application(servable, settings),
                name=APPLICATION,
                route_prefix="/",
                logging_config={"log_level": "WARNING"},
            )
            ray_serve.run_many([application], wait_for_applications_running=False)
            _wait_until_running()
            yield Server(servable=servable, settings=settings)
            del conductor  # until here its handle keeps it alive
        finally:
            ray_serve.shutdown()


def _source(target: Path | None, settings: Settings, name: str | None) -> tuple[Servable, Source]:
    """What is served, and what says so from now on."""
    if settings.registry is None:
        if target is None:
            raise NotServable("give the run or the checkpoint to serve, or registry=FOLDER")
        servable = find_servable(target, name)
        return servable, Fixed(version=version_of(servable.path))
    registry = Registry(Path(settings.registry))
    try:
        promoted, name = _promoted(registry, target, name)
    except RegistryError as error:
        raise ServeError(str(error)) from error
    servable = find_servable(Path(promoted.path), name or promoted.run)
    return servable, Followed(registry, settings.canary.rules)


def _promoted(registry: Registry, target: Path | None, name: str | None) -> tuple[Entry, str | None]:
    """The version that a registry says, and the model's name; in an empty one the target is the first."""
    promoted = registry.promoted()
    if promoted is None:
        if target is None:
            raise NotServable(
                f"{registry.folder}: nothing is promoted there yet; name a run or a checkpoint to begin "
                "with, or promote one (plumbline promote)"
            )
        found = find_servable(target, name)
        entry = registry.register(found.path)
        return registry.promote(entry.id, why="the first version served", against=None), found.name
    if target is not None:
        raise NotServable(
            f"{registry.folder}: {promoted.id} is promoted there. Serve it without naming a target, or "
            f"bring {target} in with plumbline promote"
        )
    return promoted, name


def _conductor(sources: dict[str, Source], **options: Any) -> Any:
    """It is restarted where it dies, and finds its way from the registry and from replicas that ask."""
    known = {"name": NAME, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(Conductor).options(**known, max_concurrency=1000, **options).remote(sources)


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
    servable, source = _source(wanted.target, settings, wanted.name)
    _conductor({servable.name: source}, lifetime="detached", get_if_exists=True)
    return _built(servable, settings)


def _application(servable: Servable, settings: Settings) -> Any:
    logging.disable(logging.WARNING)  # notes on import and configuration dumps would bury the address
    try:
        return _built(servable, settings)
    finally:
        logging.disable(logging.NOTSET)


def _built(servable: Servable, settings: Settings) -> Any:
    from serving.deployments import Gateway, replicas  # loads vLLM

    slots = {"stable": replicas(servable, settings, "stable")}
    if settings.replicas.canary:
        slots["canary"] = replicas(servable, settings, "canary")
    return Gateway.bind(settings, {servable.name: slots})


@contextmanager
def _connected(address: str | None, settings: Settings) -> Iterator[None]:
    """A driver's connection to the given cluster, or a local Ray that ends with the block."""
    before = _descendants()
    os.environ.update(environment() | VARIABLE)
    if address is None:
        # Logical CPUs only say how many actors fit; all of them share the real ones.
        engines = (settings.replicas.most or settings.replicas.fewest) + settings.replicas.canary
        start_on_loopback(num_cpus=2 + 2 * engines * max(1, settings.replicas.gpus), log_to_driver=False)
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
    name, settings = server.servable.name, server.settings
    print(f"\nserving {name} at {server.url} (OpenAI-compatible; Ctrl-C ends it)", flush=True)
    print(f"page: {server.origin}/" + ("" if settings.keys is None else " (it asks for a key)"), flush=True)
    print(f"try:\n\n{example_request(server)}\n", flush=True)


def example_request(server: Server) -> str:
    """A curl command to paste; with a small picture inside where the model takes pictures."""
    text = "describe the image ." if server.servable.sees else "hello"
    content = f'{{"type": "text", "text": "{text}"}}'
    if server.servable.sees:
        content = f'{{"type": "image_url", "image_url": {{"url": "{_sample_picture()}"}}}}, ' + content
    body = f'{{"model": "{server.servable.name}", "messages": [{{"role": "user", "content": [{content}]}}]}}'
    return f"curl {server.url}/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def _sample_picture() -> str:
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste((255, 0, 0), (8, 8, 24, 24))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
