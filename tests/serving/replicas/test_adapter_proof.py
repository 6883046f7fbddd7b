"""An adapter that was loaded and does nothing, or moves its base, is not served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.replicas import adapter_proof
from serving.replicas.adapter_proof import judge
from serving.replicas.adapters import Adapter
from serving.replicas.probes import Unproved

FLOOR = 1e-4
BASE = (-20.0, -55.0)


def made(effective: bool = True) -> Adapter:
    return Adapter(
        name="short",
        source="s3://bucket/short",
        digest="a" * 64,
        rank=4,
        scaling=2.0,
        targets=("q_proj",),
        effective=effective,
    )


def test_what_was_measured_is_told() -> None:
    values = (-20.0, -57.5)
    facts = judge(made(), BASE, values, BASE, FLOOR)
    assert facts == {"values": list(values), "moved": 2.5, "noise": 0.0}


@pytest.mark.parametrize(
    ("effective", "values", "again", "expected"),
    [
        (True, BASE, BASE, "is what the base gives, so it is not in effect"),
        (
            True,
            (-20.0, -55.0005),
            (-20.0, -55.0005),
            "not in effect",
        ),  # no further than the base itself moves
        (True, (-20.0, float("nan")), BASE, "it gives"),
        (True, (-21.0, -55.0), (-20.0, -56.0), "the base gives .* since it was loaded"),
        (True, (-21.0, -55.0), (-20.0, float("nan")), "the base gives .* since it was loaded"),
        (False, (-21.0, -55.0), BASE, "although its B A is zero"),
    ],
)
def test_a_silent_failure_is_refused(
    effective: bool, values: tuple[float, ...], again: tuple[float, ...], expected: str
) -> None:
    with pytest.raises(Unproved, match=f"adapter short: canary: .*{expected}"):
        judge(made(effective), BASE, values, again, FLOOR)


@given(st.floats(-1000, 0), st.floats(1e-3, 100))
def test_any_effect_above_the_noise_counts(value: float, effect: float) -> None:
    assert judge(made(), (value,), (value - effect,), (value,), FLOOR)["moved"] > 0
    assert judge(made(False), (value,), (value,), (value,), FLOOR)["moved"] == 0


class Engine:
    """What `ray.llm` gives, with a worker that reports what it is told to."""

    def __init__(self, report: dict[str, Any]) -> None:
        self._oai_models = SimpleNamespace(lora_requests={})
        self._engine_client = SimpleNamespace(collective_rpc=self._call)
        self._report, self.called = report, list[Any]()

    async def resolve_lora(self, named: Any) -> None:
        self._oai_models.lora_requests[named.model_id] = SimpleNamespace(lora_int_id=7)
        self.called.append(named.local_path)

    async def _call(self, method: str, *, timeout: float, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        self.called.append((method, *args))
        return [self._report]


@pytest.mark.parametrize(
    ("report", "refused"),
    [
        ({"elements": 10, "written": 10}, False),
        ({"elements": 10, "written": 6, "missing": {"model.layers.0.q_proj.lora_B": 4}}, True),
        ({"elements": 10, "written": 6, "stale": ["model.layers.0.q_proj.lora_B"]}, True),
        ({"elements": 0, "written": 0}, True),
    ],
)
def test_every_element_must_be_where_the_kernels_read(
    report: dict[str, Any], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"tiny": (-20.0,), "short": (-21.0,)}

    def probe(engine: Any, model: str) -> Any:
        async def canaries() -> tuple[float, ...]:
            return said[model]

        return SimpleNamespace(canaries=canaries)

    monkeypatch.setattr(adapter_proof, "probe", probe)
    engine = Engine(report)
    adding = adapter_proof.add(engine, made(), Path("/cache/a"), "tiny", FLOOR)
    if refused:
        with pytest.raises(Unproved, match="adapter short: elements"):
            asyncio.run(adding)
    else:
        proof = asyncio.run(adding)
        assert (proof["elements"]["written"], proof["canary"]["moved"]) == (10, 1.0)
    call = ("plumbline_read_adapter_file", 7, "/cache/a/adapter_model.safetensors", 2.0)
    assert engine.called == ["/cache/a", call]
