"""What must be equal for two runs to be the same run, as SHA-256 digests.

    weights      parameters of the policy, of the reference that follows it, and heads
    optimizer    moments, step counts, learning rates and the weights in its own precision
    statistics   stage, step counters and the running statistics that terms read
    rng          generators of torch, numpy and Python
    ledger       group -> step and position in it, or the reason of its drop; later uses likewise

Attempts, times and fencing numbers are no part of it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actors.checkpoints import newest_verified

if TYPE_CHECKING:
    from actors.learner import Learner

KEY = "fingerprint"  # in a manifest
Logical = dict[str, Any]


def fingerprint(learner: Learner, snapshot: Mapping[str, Any]) -> dict[str, str]:
    """Of a learner of one rank, and of the ledger's snapshot of the same step."""
    twin = learner.references.twin
    optimizer = learner.policy.engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)  # ZeRO wraps the optimizer
    progress = (learner.stage, learner.applied_steps, learner.skipped_steps, learner.warm_steps)
    parts: dict[str, Any] = {
        "weights": {
            "policy": dict(learner.policy.model.named_parameters()),
            "reference": dict(twin.model.named_parameters()) if twin is not None else {},
            "heads": learner.heads.state(),
        },
        "optimizer": [inner.state_dict(), [group["params"] for group in inner.param_groups]],
        "statistics": [progress, learner.carry],
        "rng": [torch.get_rng_state(), np.random.get_state(), random.getstate()],
        "ledger": logical(snapshot),
    }
    return {name: digest(part) for name, part in parts.items()}


def of_run(run_dir: Path) -> dict[str, str]:
    """The fingerprint in the newest checkpoint. Raises ValueError where there is none."""
    found = newest_verified(run_dir)
    if found is None or KEY not in found.manifest:
        raise ValueError(f"{run_dir}: no checkpoint has a fingerprint; only deterministic runs have one")
    return dict(found.manifest[KEY])


def logical(snapshot: Mapping[str, Any]) -> Logical:
    """Group id -> [step, position in the step] or [drop reason]; "group/comparison/use" -> [step] of later
    uses. From a ledger's snapshot, which lists the groups of a step in their sealed order."""
    taken: Counter[int] = Counter()
    found: Logical = {}
    for name, step, _ in snapshot["trained"]:
        found[name] = [step, taken[step]]
        taken[step] += 1
    found |= {name: [reason] for name, reason, _ in snapshot["dropped"]}
    later = snapshot["later"]["trained"]
    return found | {f"{name}/{index}/{use}": [step] for name, index, use, step in later}


def digest(value: Any) -> str:
    """SHA-256 of nested mappings (in any order), sequences, tensors, arrays and plain values."""
    found = hashlib.sha256()
    for piece in _pieces(value):
        found.update(piece)
    return found.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        yield tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield f"{{{len(value)}".encode()
        for key in sorted(value, key=str):
            yield f"{key}:".encode()
            yield from _pieces(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield f"[{len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    else:
        yield f"{value!r};".encode()
