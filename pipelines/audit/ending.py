"""I4 bounded: every loss ends, by recovery or with the run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pipelines.audit.evidence import Evidence, Outcome, some

_DEADLINE_S: Final = 900.0  # of `recovery.deadline_s`, where the settings do not say it
_LEAVING: Final = ("draining", "gone")  # states after which the end of a member is no loss
_OVER: Final = "the run ends"  # why members are gone at the end


def bounded(evidence: Evidence) -> Outcome:
    """I4. The run ended, or failed with a cause; every failed lease was issued again or ended; every loss was
    followed within `recovery.deadline_s` by a trained step, a replacement or the end of the run."""
    losses = _losses(evidence)
    faults = evidence.of("fault")
    outcome = Outcome(f"{evidence.status}, {len(faults)} failed leases, {len(losses)} losses")
    outcome.problems += _nameless([*faults, *losses])
    outcome.problems += _unanswered(evidence)
    outcome.problems += _slow(evidence, losses)
    status = evidence.status
    if status == "unfinished":
        outcome.unknown = "there is no summary.json: the run is going on or was killed"
    elif not re.fullmatch(r"finished|interrupted: SIG\w+|failed: \w+: .*\S.*", status, re.DOTALL):
        outcome.problems.append(f"the run ended without a cause: {status!r}")
    if any("at" not in event for event in losses):
        outcome.unknown = outcome.unknown or "losses without a time"
    return outcome


def _losses(evidence: Evidence) -> list[Mapping[str, Any]]:
    """Attempts that failed, and members that went without having been asked to."""
    found: list[Mapping[str, Any]] = []
    states: dict[tuple[str, Any], str] = {}
    for event in evidence.events:
        if event.get("event") == "attempt_failed":
            found.append(event)
        elif event.get("event") == "member":
            who = (str(event.get("role")), event.get("index"))
            before, states[who] = states.get(who, ""), str(event.get("state"))
            if states[who] == "gone" and before not in _LEAVING and event.get("why") != _OVER:
                found.append(event)
    return found


def _nameless(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for event in events:
        cause = event.get("reason") or event.get("cause") or event.get("why")
        if not event.get("role") or not cause:
            where = event.get("group") or event.get("attempt") or event.get("index")
            yield f"a {event['event']} event of {where} names no {'cause' if event.get('role') else 'role'}"


def _unanswered(evidence: Evidence) -> list[str]:
    """Groups whose last lease failed, with nothing after it."""
    open_faults: dict[str, str] = {}
    for event in evidence.events:
        kind, group = event.get("event"), str(event.get("group"))
        if kind == "fault":
            open_faults[group] = f"{event.get('role')}: {event.get('reason')}"
        elif kind in ("issue", "drop"):
            open_faults.pop(group, None)
        elif kind in ("release", "resumed"):  # given back, or rolled back
            for name in event.get("groups", list(open_faults)):
                open_faults.pop(str(name), None)
    left = set(open_faults) - evidence.trained.keys()
    if not left or evidence.status.startswith(("failed", "unfinished")):
        return []
    return [f"{len(left)} groups failed and were neither issued again nor dropped: {some(left)}"]


def _slow(evidence: Evidence, losses: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    deadline = float(evidence.setting("recovery.deadline_s", _DEADLINE_S))
    timed = [event for event in evidence.events if "at" in event]
    for loss in losses:
        if "at" not in loss:
            continue
        began, role = float(loss["at"]), loss.get("role")
        after = [event for event in timed if float(event["at"]) > began]
        recovered = (float(e["at"]) for e in after if _recovers(e, role))
        ended = float(after[-1]["at"]) if after else began
        took = next(recovered, ended) - began
        if took > deadline:
            yield (
                f"{role} {loss.get('index', loss.get('attempt'))} was lost and nothing recovered for "
                f"{took:.0f} s, deadline {deadline:.0f} s"
            )


def _recovers(event: Mapping[str, Any], role: Any) -> bool:
    """A trained step, or a member that serves in the place of the lost one."""
    trained = event["event"] == "stage_seconds" and "step" in event
    return trained or (
        event["event"] == "member" and event.get("role") == role and event.get("state") == "serving"
    )
