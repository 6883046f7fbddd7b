"""The learner's host: runs Ray Train's `fit` in an actor of its own, and names what ended it.

Killing the host ends the controller and all ranks with it, also ranks that hang in a collective.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from actors.checkpoints import DiskFull, StaleAttempt
from actors.learner import NotFinite
from actors.learner_loop import train_loop
from actors.remote import cause_of_death, named
from actors.rendezvous import AtOneAddress
from actors.sight import BlindLearner, SightMismatch
from pipelines.loop import RoleFailed, RunFailed
from pipelines.settings import Settings

# What a restart from the last checkpoint would only meet again: the run's own findings, and mistakes.
FINAL = (RunFailed, NotFinite, BlindLearner, SightMismatch, DiskFull, StaleAttempt)
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, PermissionError)

DEATHS = (RayError, WorkerHealthCheckFailedError)


class TrainerHost:
    """One per attempt. `config`: what `train_loop` takes."""

    def fit(self, config: Mapping[str, Any], workers: int) -> None:
        """Train to the end with `workers` ranks.

        Raises RoleFailed with the rank and the cause; `retry` says whether another attempt may go better.
        """
        try:
            trainer(config, workers).fit()
        except WorkerGroupError as error:
            raise failed_rank(error.worker_failures) from None
        except Exception as error:
            raise RoleFailed("learner_failed", "learner", f"{type(error).__name__}: {error}") from None


def trainer(config: Mapping[str, Any], workers: int) -> TorchTrainer:
    """The learner under Ray Train, which tries once: ledger and publisher have to begin anew with it."""
    settings: Settings = config["settings"]
    learner = settings.learner
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(learner.start_timeout_s)
    return TorchTrainer(
        train_loop,
        train_loop_config=dict(config),
        torch_config=AtOneAddress(
            backend="nccl" if learner.gpus else "gloo", timeout_s=learner.collective_timeout_s
        ),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(learner.gpus),
            resources_per_worker={"CPU": learner.cpus, "GPU": learner.gpus},
            label_selector=dict(learner.labels) or None,
        ),
        run_config=RunConfig(
            name=f"attempt-{config['attempt']}",
            storage_path=str(Path(config["run_dir"]) / ".ray_train"),
            # By default it would try again for ever after a preemption, inside the same attempt.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def failed_rank(failures: Mapping[int, Exception]) -> RoleFailed:
    """The rank whose failure tells most: a final cause, then an exception, then a death.

    When one rank fails, the others follow with broken connections.
    """
    named_ones = {rank: _cause(error) for rank, error in failures.items()}
    order = sorted(named_ones, key=lambda rank: (_weight(named_ones[rank]), rank))
    if not order:
        return RoleFailed("learner_failed", "learner", "Ray Train names no rank")
    rank, cause = order[0], named_ones[order[0]]
    reason = "learner_died" if isinstance(cause, DEATHS) else named(cause, "learner").reason
    said = cause_of_death(cause) if isinstance(cause, DEATHS) else f"{type(cause).__name__}: {cause}"
    again = not isinstance(cause, FINAL + MISTAKES)
    return RoleFailed(reason, "learner", f"rank {rank}: {said}", retry=again)


def _cause(error: BaseException) -> BaseException:
    """Of what Ray Train wraps around a rank's exception."""
    inner = error.cause if isinstance(error, RayTaskError) else getattr(error, "_base_exc", None)
    return _cause(inner) if isinstance(inner, BaseException) and inner is not error else error


def _weight(cause: BaseException) -> int:
    if isinstance(cause, FINAL):
        return 0
    if isinstance(cause, DEATHS):
        return 1  # a death explains the broken connections of the others
    return 2 if isinstance(cause, MISTAKES) else 3
