"""Put a checkpoint behind Ray Serve's LLM application: an OpenAI-compatible endpoint with vLLM underneath."""

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

from actors.placement import PROCESS_ENVIRONMENT, start_on_loopback
from serving.checkpoint import NotServable, Servable, find_servable

__all__ = ["NotServable", "ServeError", "Server", "Target", "application", "find_servable", "serve"]

APPLICATION = "plumbline"
IMAGES_PER_PROMPT = 4
START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 5.0  # for processes to end by themselves once Ray has ended

#: What the user's environment sets is kept. `nobind`: vLLM's own core binding kills a worker on shared cores.
ENGINE_ENVIRONMENT = {
    **PROCESS_ENVIRONMENT,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

#: No such host exists: images come inside the request as data URLs; the server fetches nothing for a client.
NO_REMOTE_MEDIA = ["data-urls-only.invalid"]


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
    host: str
    port: int

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients; a wildcard host is reachable on loopback as well."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}/v1" if ":" in host else f"http://{host}:{self.port}/v1"


def serve(
    target: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    gpus: int = 0,
    ray_address: str | None = None,
    name: str | None = None,
) -> int:
    """Serve `target` until SIGINT or SIGTERM and return the exit status: 128 + the signal's number.

    `gpus` is the number of GPUs the engine is split over (tensor parallel); 0 serves on CPU. Without
    `ray_address` (or RAY_ADDRESS) a local Ray is started, and ended again. Raises NotServable and ServeError
    before the endpoint is up; a second signal ends the process at once.
    """
    servable = find_servable(target, name)
    address = ray_address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        _check_port(host, port)
    try:
        with running(servable, host=host, port=port, gpus=gpus, address=address) as server:
            _announce(server)
            while True:
                signal.pause()
    except _Stopped as stopped:
        print("stopped", flush=True)
        return 128 + stopped.number


@contextmanager
def running(
    servable: Servable, *, host: str, port: int, gpus: int = 0, address: str | None = None
) -> Iterator[Server]:
    """An endpoint that answers inside the block and is gone after it, with every process it started."""
    print(f"starting {servable.name} from {servable.path}", flush=True)
    with _connected(address, gpus), _signals_stop():
        try:
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING"},
            )
            application = ray_serve.RunTarget(
                target=_application(servable, gpus),
                name=APPLICATION,
                route_prefix="/",
                logging_config={"log_level": "WARNING"},
            )
            ray_serve.run_many([application], wait_for_applications_running=False)
            _wait_until_running()
            yield Server(servable=servable, host=host, port=port)
        finally:
            ray_serve.shutdown()


def engine_config(servable: Servable, gpus: int) -> dict[str, Any]:
    """The fields of `ray.serve.llm.LLMConfig` for this checkpoint; without `gpus` no GPU is asked for."""
    # -1: the longest context that fits into the memory for the KV cache, at most the model's own.
    kwargs: dict[str, Any] = {"allowed_media_domains": NO_REMOTE_MEDIA, "max_model_len": -1}
    if servable.sees:
        kwargs["limit_mm_per_prompt"] = {"image": IMAGES_PER_PROMPT, "video": 0}
    if gpus:
        kwargs["tensor_parallel_size"] = gpus
    else:
        kwargs |= {"enforce_eager": True, "skip_mm_profiling": True}
    bundle = {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
    return {
        "model_loading_config": {"model_id": servable.name, "model_source": str(servable.path)},
        "engine_kwargs": kwargs,
        "accelerator_config": {"kind": "gpu" if gpus else "cpu"},
        "placement_group_config": {"bundles": [bundle] * max(gpus, 1)},
        "deployment_config": {"num_replicas": 1},
        "runtime_env": {"env_vars": _environment()},
    }


class Target(BaseModel):
    """What a Serve configuration file gives under `args`."""

    model_config = ConfigDict(extra="forbid")

    target: Path  # as for `plumbline serve`
    gpus: int = Field(default=0, ge=0)
    name: str | None = None


def application(args: dict[str, Any]) -> Any:
    """For Serve's configuration files: `import_path: serving.app:application`. Raises NotServable."""
    wanted = Target.model_validate(args)
    return _built(find_servable(wanted.target, wanted.name), wanted.gpus)


def _environment() -> dict[str, str]:
    return {key: os.environ.get(key, value) for key, value in ENGINE_ENVIRONMENT.items()}


def _application(servable: Servable, gpus: int) -> Any:
    logging.disable(logging.WARNING)  # notes on import and configuration dumps would bury the address
    try:
        return _built(servable, gpus)
    finally:
        logging.disable(logging.NOTSET)


def _built(servable: Servable, gpus: int) -> Any:
    from ray.serve.llm import LLMConfig, build_openai_app  # loads vLLM

    # One ingress replica without a CPU of its own: it only passes requests on, and two are the default.
    ingress = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}
    return build_openai_app(
        {"llm_configs": [LLMConfig(**engine_config(servable, gpus))], "ingress_deployment_config": ingress}
    )


@contextmanager
def _connected(address: str | None, gpus: int) -> Iterator[None]:
    """A driver's connection to the given cluster, or a local Ray that ends with the block."""
    before = _descendants()
    os.environ.update(_environment())
    if address is None:
        # Logical CPUs only say how many actors fit; all of them share the real ones.
        start_on_loopback(num_cpus=max(4, gpus + 2), log_to_driver=False)
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
    print(f"\nserving {server.servable.name} at {server.url} (OpenAI-compatible; Ctrl-C ends it)", flush=True)
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
