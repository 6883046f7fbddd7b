"""I1 conservation and I2 once: every group has one end, and every ticket is trained once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.audit.evidence import Evidence, Outcome, some


def counts(evidence: Evidence) -> dict[str, Any]:
    """Groups and comparisons of the final lineage, from the log alone."""
    books, rows = evidence.books, evidence.rows
    ended = evidence.trained.keys() | {group for group, _ in books.drops}
    return {
        "issued": len((books.issued.keys() | books.excused if books.logged else ended) - books.released),
        "trained": len(evidence.trained),
        "dropped": dict(sorted(Counter(why for _, why in books.drops).items())),
        "released": len(books.released),
        "comparisons": len(rows),
        "later_uses": sum(row["use"] > 1 for row in rows),
        "steps": len({row["step"] for row in rows}),
    }


def conservation(evidence: Evidence) -> Outcome:
    """I1. issued = trained + dropped(reason) + released, with nothing leased or buffered at the end; the
    summary's counters and the steps' metrics agree."""
    books, found = evidence.books, counts(evidence)
    outcome = Outcome(
        f"{found['issued']} groups issued = {found['trained']} trained + "
        f"{sum(found['dropped'].values())} dropped, and {found['released']} released"
    )
    outcome.problems += evidence.unreadable
    trained, dropped = evidence.trained.keys(), {group for group, _ in books.drops}
    ended = trained | dropped | books.released
    if both := trained & dropped:
        outcome.problems.append(f"{len(both)} groups were trained and dropped: {some(both)}")
    twice = [group for group, n in Counter(group for group, _ in books.drops).items() if n > 1]
    outcome.problems += [f"group {group} was dropped more than once" for group in twice]
    if books.logged:
        if never := ended - books.issued.keys() - books.excused:
            outcome.problems.append(f"{len(never)} groups ended but were never issued: {some(never)}")
        if lost := books.issued.keys() - ended:
            text = f"{len(lost)} issued groups have no end: {some(lost)}"
            if evidence.status.startswith(("finished", "interrupted")):
                outcome.problems.append(text)
            else:
                outcome.unknown = f"{text}; the run is {evidence.status}"
    else:
        outcome.unknown = "the log holds no `issue` events, so what was lost on the way cannot be seen"
    outcome.problems += [*_untrained(evidence), *_against_metrics(evidence)]
    outcome.problems += _against_summary(evidence, found)
    if "issued" not in evidence.said and not outcome.unknown:
        outcome.unknown = f"summary.json has no counts of the ledger: {evidence.said or evidence.status}"
    return outcome


def once(evidence: Evidence) -> Outcome:
    """I2. Every ticket (group, comparison, use) is trained once in the final lineage, in the step that it was
    sealed for; the newest manifest names the same groups."""
    rows = evidence.rows
    outcome = Outcome(f"{len(rows)} trained comparisons of {len(evidence.trained)} groups")
    outcome.problems += _twice(rows)
    steps = {int(row["step"]) for row in rows}
    if missing := set(range(1, max(steps, default=0) + 1)) - steps:
        outcome.problems.append(f"{len(missing)} steps have no trained comparison: {some(missing)}")
    books = evidence.books
    for step, trained in sorted(_by_step(evidence).items()):
        strangers = {group for group, _ in trained - books.sealed.get(step, set())}
        torn = step not in books.sealed and strangers <= books.excused
        if strangers and not torn:
            outcome.problems.append(
                f"step {step}: {len(strangers)} trained groups were not sealed for it: {some(strangers)}"
            )
    outcome.problems += _against_manifest(evidence)
    return outcome


def _by_step(evidence: Evidence) -> Mapping[int, set[tuple[str, int]]]:
    trained: defaultdict[int, set[tuple[str, int]]] = defaultdict(set)
    for row in evidence.rows:
        trained[int(row["step"])].add((str(row["group"]), int(row["use"])))
    return trained


def _untrained(evidence: Evidence) -> Iterator[str]:
    """Groups that a trained step was sealed with and that no rank trained."""
    for step, groups in sorted(_by_step(evidence).items()):
        if lost := evidence.books.sealed.get(step, set()) - groups:
            names = some({group for group, _ in lost})
            yield f"step {step}: {len(lost)} sealed groups were not trained: {names}"


def _twice(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A ticket trained twice, a comparison twice in one step, a group first trained in several places."""
    tickets: Counter[tuple[str, str, int]] = Counter()
    within: Counter[tuple[str, str, int]] = Counter()
    places: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
    for row in rows:
        ticket = (str(row["group"]), str(row["comparison"]))
        tickets[*ticket, int(row["use"])] += 1
        within[*ticket, int(row["step"])] += 1
        if row["use"] == 1:
            places[ticket[0]].add((int(row["step"]), int(row["rank"])))
    for (group, comparison, use), n in tickets.items():
        if n > 1:
            yield f"comparison {comparison} of group {group} was trained {n} times for its use {use}"
    for (group, comparison, step), n in within.items():
        if n > 1:
            yield f"comparison {comparison} of group {group} is {n} times in step {step}"
    for group, where in places.items():
        if len(where) > 1:
            yield f"group {group} was trained in several places (step, rank): {sorted(where)}"


def _against_manifest(evidence: Evidence) -> Iterator[str]:
    """The trained groups that the newest checkpoint was committed with, and their steps."""
    ledger: Any = evidence.manifest.get("ledger")
    if not isinstance(ledger, dict) or "trained" not in ledger:
        return
    named = {str(group): int(step) for group, step, *_ in ledger["trained"]}  # pyright: ignore
    upto = int(evidence.manifest.get("step", 0))
    logged = {group: step for group, step in evidence.trained.items() if step <= upto}
    odd = {group for group in named.keys() | logged.keys() if named.get(group) != logged.get(group)}
    if odd:
        yield (
            f"checkpoint of step {upto}: {len(odd)} trained groups differ between its manifest and the log: "
            f"{some(odd)}"
        )


def _against_metrics(evidence: Evidence) -> Iterator[str]:
    """Comparisons per step as the learner reported them."""
    logged = Counter(int(row["step"]) for row in evidence.rows)
    reported = {
        int(line["step"]): int(line["comparisons"])
        for line in evidence.steps
        if line.get("comparisons") is not None
    }
    if logged and not evidence.steps:
        yield "metrics.jsonl reports no steps"
    if not reported:
        return
    for step in sorted(set(logged) | set(reported)):
        if reported.get(step, 0) != logged[step]:
            said = f"metrics.jsonl has {reported.get(step, 0)} comparisons"
            yield f"step {step}: {said}, the log holds {logged[step]}"


def _against_summary(evidence: Evidence, found: Mapping[str, Any]) -> Iterator[str]:
    """The ledger's counters, which ended up in summary.json."""
    counted = evidence.said
    if "issued" not in counted:
        return
    released = int(counted.get("released") or 0)
    again: Mapping[str, Any] = counted.get("later_uses") or {}
    settled = {"issued": counted["issued"] - released, "trained": counted.get("trained")}
    settled["later_uses"] = again.get("trained", 0)
    settled |= {"released": released} if evidence.books.logged else {}
    for name, number in settled.items():
        if number != found[name]:
            yield f"{name}: summary.json says {number}, the log holds {found[name]}"
    drops: Mapping[str, Any] = counted.get("dropped") or {}
    dropped = {reason: int(n) for reason, n in drops.items() if n}
    if dropped != found["dropped"]:
        yield f"dropped: summary.json says {dropped}, the log holds {found['dropped']}"
    waiting = {name: int(counted.get(name) or 0) for name in ("leased", "buffered", "sealed")}
    for name, number in waiting.items():
        if number:
            yield f"{number} groups were left {name}"
    total = counted.get("trained", 0) + sum(dropped.values()) + released + sum(waiting.values())
    if counted["issued"] != total:
        yield f"summary.json: issued {counted['issued']} is not the sum of its parts, {total}"
