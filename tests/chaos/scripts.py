"""What the lane plays."""

from __future__ import annotations

# Faults that are struck one after the other, each after the run has recovered from the one before.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "fleet": (
        "generator-mid-rollout",
        "generator-mid-adopt",
        "generator-gate-shut",
        "generator-at-birth",
        "generator-frozen",
        "generator-wedged",
        "weights-corrupt",
        "scorer-judging",
        "scorer-delivering",
        "scorer-frozen",
        "perturber-busy",
    ),
    "learner": (
        "rank-backward",
        "rank-allreduce",
        "rank-saving",
        "rank-committing",
        "rank-publishing",
        "publisher-mid-publish",
        "checkpoint-flipped",
        "nan",
        "ledger-dead",
        "ledger-restoring",
        "rank-joining",
        "rank-loading",
        "disk-full",
    ),
    "driver": (
        "driver-killed",
        "driver-sigterm",
        "driver-sigterm-twice",
        "node-removed",
        "scorer-slow",
        "head-lost",
    ),
}
POISON, CRASH, GARBAGE = frozenset({5}), frozenset({11}), frozenset({17, 23})
RESPONSES_LOST = (
    '{"CoreWorkerService.grpc_client.PushTask":'
    ' {"num_failures": 2, "req_failure_prob": 0, "resp_failure_prob": 1}}'
)
