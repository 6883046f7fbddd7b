"""What `plumbline promote`, `rollback`, `canary` and `history` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipelines.settings import Settings, load
from serving.registry.promotion import Decision, compare, load_gate
from serving.registry.registry import ID, Entry, Registry, RegistryError

Answers = Callable[[Settings, Mapping[str, Path]], dict[str, list[dict[str, Any]]]]


def promote(
    target: str,
    *,
    registry: Path,
    gate: Path | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    reason: str | None = None,
    answers: Answers | None = None,
) -> dict[str, Any]:
    """Register a run's newest checkpoint, a checkpoint or a model, and promote it if the gate lets it pass.

    `target`: a folder, or the id of a registered version; `gate`: a YAML file; `overrides`: settings of the
    evaluation, such as "evaluation.scenes=200" or "data=heldout.jsonl"; `force`: without the gate, with a
    reason; `answers`: how models are asked (default: `serving.registry.heldout.answers`, on real engines).

    Returns {"promoted": bool, "version", "previous", "why", "decision", "evidence"}; a refusal is recorded
    too. Raises RegistryError, SettingsError, DataError, NotACheckpoint, and RoleFailed for an engine's death.
    """
    if force and not (reason or "").strip():
        raise RegistryError("--force: it promotes without any evidence; say why with --reason TEXT")
    conditions, settings = load_gate(gate), load(None, overrides)
    known = Registry(registry)
    candidate = _registered(known, target)
    current = known.promoted()
    against = current.id if current else None
    if against == candidate.id:
        raise RegistryError(f"{candidate.id} is promoted already; there is nothing to compare it with")
    if force:
        why = f"forced: {reason}"
        known.promote(candidate.id, why=why, against=against)
        return _told(True, candidate.id, against, why, None, None)
    models = {name: one.path for name, one in (("candidate", candidate), ("current", current)) if one}
    if answers is None:
        from serving.registry.heldout import answers as asked  # Ray and the engines behind it
    else:
        asked = answers
    records = asked(settings, models)
    decision = compare(records["candidate"], records.get("current"), conditions)
    evidence = known.keep_evidence(
        {
            "versions": {"candidate": candidate.id, "current": against},
            "settings": settings.model_dump(mode="json"),
            "decision": decision.to_json(),
            "records": records,
        }
    )
    return _decide(known, candidate, against, decision, evidence, reason)


def rollback(*, registry: Path, reason: str, to: str | None = None) -> Entry:
    """Promote the version before the current one again, or a named earlier one. Raises RegistryError."""
    if not reason.strip():
        raise RegistryError("--reason: say why; the history keeps it")
    return _existing(registry).rollback(reason, to)


def start_canary(target: str, *, registry: Path, weight: float, why: str) -> Entry:
    """Register a checkpoint (or look up a version) and let it answer a share of the clients, above 0 to 1.

    It takes the place of a canary that runs. Raises RegistryError.
    """
    if weight == 0:
        raise RegistryError("--weight: at 0 nobody is sent to the canary; `plumbline canary end` ends one")
    known = _existing(registry)
    entry = _registered(known, target)
    known.set_canary(entry.id, weight, why)
    return entry


def end_canary(*, registry: Path, why: str) -> Entry:
    """All clients get the promoted version again; the canary that was. Raises RegistryError."""
    known = _existing(registry)
    running = known.canary()
    if running is None:
        raise RegistryError(f"{registry}: no canary runs, so there is none to end")
    known.set_canary(None, 0.0, why, only=running[0].id)
    return running[0]


def history(*, registry: Path) -> list[dict[str, Any]]:
    """Every act, oldest first. Raises RegistryError."""
    return _existing(registry).history()


def describe(decision: Decision | Mapping[str, Any]) -> Table:
    """The checks of a decision as a table."""
    value = decision.to_json() if isinstance(decision, Decision) else decision
    table = Table("check", "value", "95% interval", "asked", "items", "holds", box=box.SIMPLE_HEAD)
    for check in value["checks"]:
        bounds = "" if check["low"] is None else f"{_number(check['low'])} to {_number(check['high'])}"
        sides = (("at least", check["at_least"]), ("at most", check["at_most"]))
        asked = ", ".join(f"{word} {_number(limit)}" for word, limit in sides if limit is not None)
        holds = "yes" if check["holds"] else "no"
        value_text = "not measured" if check["value"] is None else _number(check["value"])
        table.add_row(check["name"], value_text, bounds, asked, str(check["items"]), holds)
    return table


def render_history(acts: Sequence[Mapping[str, Any]]) -> Table:
    """The history as a table, oldest first."""
    table = Table("#", "when (UTC)", "who", "what", "version", "instead of", "why", box=box.SIMPLE_HEAD)
    for act in acts:
        what = act["act"].replace("_", " ")
        if act["act"] == "canary":
            what = f"canary, {act['weight']:.0%}"
        why = str(act.get("why") or _origin(act))
        cells = (str(act["seq"]), act["at"][:19].replace("T", " "), act["by"], what, act["version"])
        table.add_row(*(Text(cell) for cell in (*cells, act.get("previous") or "", why)))
    return table


def _registered(known: Registry, target: str) -> Entry:
    if ID.fullmatch(target) and not Path(target).exists():
        return known.entry(target)
    return known.register(Path(target))


def _existing(registry: Path) -> Registry:
    if not (registry / "history.jsonl").is_file():
        raise RegistryError(
            f"{registry}: there is no registry; `plumbline promote RUN --registry {registry}` begins one"
        )
    return Registry(registry)


def _decide(
    known: Registry,
    candidate: Entry,
    against: str | None,
    decision: Decision,
    evidence: str,
    reason: str | None,
) -> dict[str, Any]:
    facts = decision.to_json()
    why = f"{reason}: {decision.why}" if reason else decision.why
    act = known.promote if decision.holds else known.refuse
    act(candidate.id, why=why, against=against, decision=facts, evidence=evidence)
    return _told(decision.holds, candidate.id, against, why, facts, evidence)


def _told(
    promoted: bool,
    version: str,
    previous: str | None,
    why: str,
    decision: Mapping[str, Any] | None,
    evidence: str | None,
) -> dict[str, Any]:
    return {
        "promoted": promoted,
        "version": version,
        "previous": previous,
        "why": why,
        "decision": decision,
        "evidence": evidence,
    }


def _origin(act: Mapping[str, Any]) -> str:
    entry = act.get("entry") or {}
    words = {"run": "run", "recipe": "recipe", "weight_version": "weights"}
    return ", ".join(f"{word} {entry[key]}" for key, word in words.items() if entry.get(key) is not None)


def _number(value: float) -> str:
    return f"{value:.4g}"
