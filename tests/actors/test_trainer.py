"""Which rank's failure tells most, and whether another attempt may go better."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from actors.learner import NotFinite
from actors.trainer import failed_rank
from pipelines.loop import RunFailed

BROKEN = RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("failures", "rank", "reason", "retry"),
    [
        ({0: BROKEN}, 0, "runtime_error", True),
        ({0: BROKEN, 1: RayActorError()}, 1, "learner_died", True),
        ({0: BROKEN, 1: NotFinite("step 3: loss is nan")}, 1, "not_finite", False),
        ({0: BROKEN, 1: UserExceptionWithTraceback(RunFailed("ties"), "trace")}, 1, "run_failed", False),
        ({0: RayActorError(), 1: ValueError("checkpoint x")}, 0, "learner_died", True),
        ({0: BROKEN, 1: ValueError("checkpoint x")}, 1, "value_error", False),
        ({0: BROKEN, 1: WorkerHealthCheckFailedError("died", RayActorError())}, 1, "learner_died", True),
        ({0: TimeoutError("the ledger did not answer")}, 0, "timeout", True),
    ],
)
def test_the_rank_that_tells_most(
    failures: dict[int, Exception], rank: int, reason: str, retry: bool
) -> None:
    found = failed_rank(failures)
    assert (found.role, found.reason, found.retry) == ("learner", reason, retry)
    assert found.detail.startswith(f"rank {rank}: ")


def test_a_failure_without_a_rank_is_named_and_travels() -> None:
    found = pickle.loads(pickle.dumps(failed_rank({})))
    assert found.retry and "names no rank" in str(found)
