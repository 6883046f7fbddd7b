"""An adapter enters a started engine, and is proved: in the kernels' memory, and in what the engine says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig

from actors.proof import LoadReport, judge_elements, largest_gap
from serving.replicas.adapter_files import WEIGHTS
from serving.replicas.adapters import Adapter
from serving.replicas.probes import Unproved, probe

STEP_S = 300.0  # for a call of the worker
Values = tuple[float, ...]  # of canaries


async def add(engine: Any, adapter: Adapter, folder: Path, model: str, floor: float) -> dict[str, Any]:
    """Load an adapter from its folder beside the base `model`; the proof's facts. Raises `Unproved`.

    `engine`: of `ray.llm`, which serves the adapter under its name from then on; `floor`: see `judge`.
    """
    base = await probe(engine, model).canaries()
    await engine.resolve_lora(
        DiskMultiplexConfig(
            model_id=adapter.name, max_total_tokens=None, local_path=str(folder), lora_assigned_int_id=0
        )
    )
    number = engine._oai_models.lora_requests[adapter.name].lora_int_id
    (report,) = await engine._engine_client.collective_rpc(
        "plumbline_read_adapter_file", timeout=STEP_S, args=(number, str(folder / WEIGHTS), adapter.scaling)
    )
    elements = judge_elements(LoadReport(**report))
    if elements.result == "failed":
        raise Unproved(f"adapter {adapter.name}: elements: {dict(elements.detail)}")
    values = await probe(engine, adapter.name).canaries()
    again = await probe(engine, model).canaries()
    return {"elements": dict(elements.detail), "canary": judge(adapter, base, values, again, floor)}


def judge(adapter: Adapter, base: Values, values: Values, again: Values, floor: float) -> dict[str, Any]:
    """Canaries with the adapter against those of its base before (`base`) and after (`again`) it was loaded.

    `floor`: nats below which two readings of the same weights may differ. Raises `Unproved` for a base that
    is no longer what it was, for an adapter that moves nothing although its B A is not zero (so looks one
    that was loaded and is not used), and for one that moves something although it is.
    """
    name = f"adapter {adapter.name}: canary:"
    if not all(map(math.isfinite, values)):
        raise Unproved(f"{name} it gives {values}")
    tolerance = floor * max(1.0, *map(abs, base))
    noise, moved = largest_gap(base, again), largest_gap(base, values)
    if not noise <= tolerance:
        raise Unproved(f"{name} the base gives {again} since it was loaded, {base} before")
    if adapter.effective and not moved > noise:
        raise Unproved(f"{name} {values} is what the base gives, so it is not in effect, or too weak to tell")
    if not adapter.effective and not moved <= tolerance:
        raise Unproved(f"{name} {values}, but {base} without it, although its B A is zero")
    return {"values": list(values), "moved": moved, "noise": noise}
