"""Where processes run: a local Ray on loopback, or the cluster that an address names."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

from pipelines.settings import Settings, SettingsError, demands

# The engine and the tokenizers read these at import, so every process of the run gets them from the start.
PROCESS_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # A prompt stream that was killed keeps its share of the CPUs for so long (180 s by default).
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "25",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
OBJECT_STORE_BYTES = 512 * 1024**2  # of a local Ray; comparisons of a laptop run need a few megabytes
PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@contextmanager
def ray_session(settings: Settings, needed: dict[str, float] | None = None) -> Iterator[None]:
    """A Ray session for one run; what it started, it stops.

    With an address (settings or RAY_ADDRESS) it connects and starts nothing. Without one it starts a local
    Ray whose *logical* CPUs cover the run's demands: processes of a laptop share its cores. Variables that
    the caller, or a submitted job, has set are kept.

    Raises:
        SettingsError: there is no such cluster, it wants a token, or it cannot hold the run.
    """
    needed = needed or demands(settings)
    address = settings.ray_address or os.environ.get("RAY_ADDRESS")
    environment = {key: os.environ.get(key, value) for key, value in PROCESS_ENVIRONMENT.items()}
    if address:
        join(address, environment)
    else:
        os.environ.update(environment, PYTHONPATH=search_path())
        start_on_loopback(
            num_cpus=math.ceil(needed["CPU"]),
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
        )
    try:
        refuse_what_cannot_fit(needed)
        yield
    finally:
        ray.shutdown()


def join(address: str, environment: dict[str, str]) -> None:
    """`ray.init` as a driver of the cluster at `address`; its workers get `environment`."""
    # Ray refuses a variable that the submitted job's own environment names too, even of the same value.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    try:
        ray.init(address=address, runtime_env={"env_vars": environment}, log_to_driver=False)
    except ConnectionError as error:
        raise SettingsError(
            f"cannot join the Ray cluster at {address}: {error.__cause__ or error}. Is it running, and can "
            "it be reached from here? If it asks for a token, put its token into ~/.ray/auth_token and set "
            "RAY_AUTH_MODE=token"
        ) from error


def start_on_loopback(**options: Any) -> None:
    """`ray.init` of a local Ray that listens on 127.0.0.1 alone and asks for a token.

    Ray replaces a loopback address by the machine's own unless clusters are switched off, so they are: in
    this process, and through the environment in every process of that Ray.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    ask_for_a_token()
    ray.init(
        address="local",  # whatever else runs on this machine
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _system_config={"worker_maximum_startup_concurrency": 8},  # fewer than our processes: it would warn
        logging_level=logging.ERROR,
        **options,
    )


def ask_for_a_token() -> None:
    """Let the Ray that this process starts ask for a token of its own, known through the environment alone.

    Left to itself Ray writes one into the home directory, which may be read-only or shared, where every user
    of the machine can read it. A mode or a token that the caller has set is kept.
    """
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    Config.initialize("")  # this process read both at import
    AuthenticationTokenLoader.instance().reset_cache()


def search_path() -> str:
    """PYTHONPATH of workers: this project first, then the user's folder (rewards, recipes)."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(path for path in (PROJECT_ROOT, os.getcwd(), *known) if path))


def refuse_what_cannot_fit(needed: dict[str, float]) -> None:
    """Raise before an actor waits for ever on a resource that the cluster does not have."""
    available = ray.cluster_resources()
    for name, amount in needed.items():
        if amount > available.get(name, 0.0):
            raise SettingsError(
                f"this run needs {amount:g} {name} but the Ray cluster has {available.get(name, 0.0):g}; "
                "lower rollout.generators, rollout.scorers or learner.workers, or add nodes"
            )
