"""`plumbline promote`, `rollback` and `history`, with answers that are given; and once on real engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.settings import Settings, SettingsError
from pipelines.worlds.glyphs import BASE_MODEL
from serving.registry.canary import CanaryRules
from serving.registry.commands import describe, history, promote, render_history, rollback
from serving.registry.followed import Followed
from serving.registry.registry import Registry, RegistryError

Commit = Callable[..., Path]


def given(worth: Mapping[str, float], items: int = 250) -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """Answers of the value that each model's weight stands for."""

    def answers(settings: Settings, models: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [
                {"id": str(i), "kind": "caption", "text": "a", "value": worth[name], "right": 1, "wrong": 0}
                for i in range(items)
            ]
            + [{"id": str(i), "kind": "text", "nats": 3.0} for i in range(items)]
            for name in models
        }

    return answers


@pytest.fixture
def runs(tmp_path: Path, commit_checkpoint: Commit) -> list[str]:
    return [str(commit_checkpoint(tmp_path / f"run-{n}", n, weight=n)) for n in (1, 2)]


def test_every_decision_is_recorded_with_its_evidence(tmp_path: Path, runs: list[str]) -> None:
    registry = tmp_path / "registry"
    better, worse = ({"candidate": v, "current": 1.0} for v in (2.0, 0.5))

    first = promote(runs[0], registry=registry, answers=given(better))
    refused = promote(runs[1], registry=registry, answers=given(worse))
    passed = promote(refused["version"], registry=registry, answers=given(better), reason="measured again")

    assert [one["promoted"] for one in (first, refused, passed)] == [True, False, True]
    assert first["decision"]["kind"] == "first" and first["why"] == "the first version"
    assert refused["why"].startswith("win rate: 0 [0, ")
    assert passed["why"] == "measured again: every condition of the gate holds"
    acts = [act for act in history(registry=registry) if act["act"] != "registered"]
    assert [(act["act"], act["version"], act["previous"]) for act in acts] == [
        ("promoted", first["version"], None),
        ("refused", refused["version"], first["version"]),
        ("promoted", refused["version"], first["version"]),
    ]
    for act in acts:
        kept = Registry(registry).evidence(act["evidence"])
        assert kept["decision"] == act["decision"]
        assert len(kept["records"]["candidate"]) == 500
        assert kept["settings"]["evaluation"]["scenes"] == 1000
    assert rollback(registry=registry, reason="users complain").id == first["version"]


def test_a_gate_file_sets_the_conditions(tmp_path: Path, runs: list[str]) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("alone: {items: 300}\n")

    told = promote(runs[0], registry=tmp_path / "registry", gate=gate, answers=given({"candidate": 1.0}))

    assert not told["promoted"] and told["why"].startswith("items: 250 [250, 250], asked >= 300")


def test_force_needs_a_reason_and_asks_no_model(tmp_path: Path, runs: list[str]) -> None:
    registry = tmp_path / "registry"

    def refuse(*_: Any) -> Any:
        raise AssertionError("no model is asked")

    for reason in (None, " "):
        with pytest.raises(RegistryError, match="say why with --reason"):
            promote(runs[0], registry=registry, force=True, reason=reason)
    told = promote(runs[0], registry=registry, force=True, reason="the old one leaks", answers=refuse)

    assert told["promoted"] and told["decision"] is None
    assert history(registry=registry)[-1]["why"] == "forced: the old one leaks"


def test_errors_say_what_to_do(tmp_path: Path, runs: list[str]) -> None:
    registry = tmp_path / "registry"
    with pytest.raises(RegistryError, match=r"there is no registry; `plumbline promote RUN --registry"):
        history(registry=registry)
    with pytest.raises(RegistryError, match="no such folder"):
        promote(str(tmp_path / "nowhere"), registry=registry)
    with pytest.raises(SettingsError, match=r"evaluation\.scene"):
        promote(runs[0], registry=registry, overrides=["evaluation.scene=3"])
    promote(runs[0], registry=registry, answers=given({"candidate": 1.0}))
    with pytest.raises(RegistryError, match="is promoted already; there is nothing to compare"):
        promote(runs[0], registry=registry, answers=given({"candidate": 1.0}))
    with pytest.raises(RegistryError, match="say why; the history keeps it"):
        rollback(registry=registry, reason="")
    with pytest.raises(RegistryError, match="v-0123456789ab is not registered"):
        rollback(registry=registry, reason="bad", to="v-0123456789ab")


def test_a_promotion_that_another_overtook_is_not_made(tmp_path: Path, runs: list[str]) -> None:
    registry = tmp_path / "registry"

    def slow(settings: Settings, models: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
        promote(runs[1], registry=registry, force=True, reason="meanwhile")
        return given({"candidate": 1.0})(settings, models)

    with pytest.raises(RegistryError, match="was compared with nothing, but meanwhile"):
        promote(runs[0], registry=registry, answers=slow)
    assert [act["act"] for act in history(registry=registry)] == ["registered", "registered", "promoted"]


def shown(table: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_history_and_a_decision_are_tables(tmp_path: Path, runs: list[str]) -> None:
    registry = tmp_path / "registry"
    told = promote(runs[0], registry=registry, answers=given({"candidate": 1.0}))
    promote(runs[1], registry=registry, force=True, reason="[bold]no markup")
    Registry(registry).set_canary(told["version"], 0.25, "try")

    lines = shown(render_history(history(registry=registry))).splitlines()
    checks = shown(describe(told["decision"]))

    assert any("promoted" in line and "the first version" in line for line in lines)
    assert any("canary, 25%" in line and told["version"] in line for line in lines)
    assert any("forced: [bold]no markup" in line for line in lines)
    assert any("registered" in line and "weights 2" in line for line in lines)
    assert "at least 200" in checks and "250 to 250" in checks


# -- what the conductor follows ---------------------------------------------------------------------------


def test_the_conductor_follows_promotions_and_a_bad_canary_ends(tmp_path: Path, runs: list[str]) -> None:
    registry = Registry(tmp_path / "registry")
    source = Followed(registry, CanaryRules())
    with pytest.raises(RegistryError, match="nothing is promoted"):
        source.plan()
    a = promote(runs[0], registry=registry.folder, force=True, reason="first")["version"]
    assert (source.plan().stable.id, source.plan().canary) == (a, None)
    b = registry.register(Path(runs[1])).id
    registry.set_canary(b, 0.25, "try")
    plan = source.plan()
    assert plan.canary is not None and (plan.canary.id, plan.weight) == (b, 0.25)

    for _ in range(20):
        source.observe("canary", [{"version": a, "status": 500}])  # of a version that left the slot
        source.observe("stable", [{"version": a, "status": 200, "tokens": 3, "finish": ["stop"]}])
    assert source.plan().canary is not None
    for _ in range(20):
        source.observe("canary", [{"version": b, "status": 500}])

    assert source.plan().canary is None and source.plan().stable.id == a
    assert source.plan().previous is None
    last = source.history()[-1]
    assert last["act"] == "canary_ended" and last["why"].startswith(
        "rollback: errors: 20 of 20, beside 0 of 20"
    )
    assert str(tmp_path) not in json.dumps(source.history()) and "by" not in last


def test_the_conductor_knows_what_was_promoted_before(tmp_path: Path, runs: list[str]) -> None:
    registry = Registry(tmp_path / "registry")
    source = Followed(registry, CanaryRules())
    ids = [
        promote(run, registry=registry.folder, force=True, reason="in turn")["version"] for run in runs[:2]
    ]
    plan = source.plan()
    assert plan.previous is not None and [plan.previous.id, plan.stable.id] == ids
    registry.rollback("back")
    assert (source.plan().stable.id, source.plan().previous) == (ids[0], None)


def test_a_second_canary_is_judged_by_its_own_answers(tmp_path: Path, runs: list[str]) -> None:
    registry = Registry(tmp_path / "registry")
    source = Followed(registry, CanaryRules())
    promote(runs[0], registry=registry.folder, force=True, reason="first")
    b = registry.register(Path(runs[1])).id
    registry.set_canary(b, 0.25, "try")
    for _ in range(19):
        source.observe("canary", [{"status": 500}])
        source.observe("stable", [{"status": 200}])
    registry.set_canary(None, 0, "enough")
    a = registry.promoted()
    assert a is not None
    registry.promote(b, why="next", against=a.id)
    registry.set_canary(a.id, 0.25, "the other way round")
    for _ in range(10):
        source.observe("canary", [{"status": 500}])
        source.observe("stable", [{"status": 200}])

    assert registry.canary() is not None  # 10 samples of this pair are no evidence yet


# -- for real ---------------------------------------------------------------------------------------------


def test_an_aligned_checkpoint_is_promoted_over_its_base_by_real_engines(
    tmp_path: Path, served_checkpoint: Path
) -> None:
    """Ten steps of training are few: the gate asks that nothing got worse, within wide margins."""
    gate = tmp_path / "gate.yaml"
    gate.write_text(
        "alone: {items: 64}\nagainst: {win_rate: 0.3, hallucination: 0.2, refusals: 0.1, text: 1.5}\n"
    )
    registry = tmp_path / "registry"
    small = ["evaluation.scenes=40", "evaluation.questions=8", "rollout.max_tokens=32"]

    first = promote(str(BASE_MODEL), registry=registry, gate=gate, overrides=small)
    second = promote(str(served_checkpoint), registry=registry, gate=gate, overrides=small)

    assert first["promoted"] and first["decision"]["kind"] == "first"
    assert second["promoted"], second["why"]
    assert second["previous"] == first["version"]
    checks = {check["name"]: check for check in second["decision"]["checks"]}
    assert checks["text loss ratio"]["items"] == 40 and checks["text loss ratio"]["value"] != 1.0
    assert second["decision"]["items"] == 64
    entry = Registry(registry).entry(second["version"])
    assert entry.run == "shared" and entry.recipe == "own_recipe:recipe" and entry.weight_version
    assert entry.metrics["step"]["step"] == entry.lineage["step"]
    records = Registry(registry).evidence(second["evidence"])["records"]
    texts = [{record["text"] for record in records[side] if "text" in record} for side in records]
    assert texts[0] != texts[1]  # two models answered
