"""I3 weights truth: what a row was sampled with is what was published and proved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pipelines.audit.evidence import Evidence, Outcome

_PARTS: Final = ("bytes_received", "elements_loaded", "canary_change", "caches_fresh")
Version = tuple[int, int]  # attempt, number


def weights_truth(evidence: Evidence) -> Outcome:
    """I3. The digest on each trained row is the one published for its version; its generator had proved the
    version before the row's step was sealed; no answer mixes versions unless `sync.in_flight` is keep."""
    rows = [row for row in evidence.rows if row.get("version_newest") is not None]
    published = {
        (int(e["attempt"]), int(e["version"])): str(e["digest"])
        for e in evidence.of("published")
        if e["digest"]
    }
    used = {(int(row["attempt"]), int(row["version_newest"])) for row in rows}
    outcome = Outcome(f"{len(rows)} sampled rows of {len(used)} weight versions")
    outcome.problems += _count(_mixed(evidence, rows))
    outcome.problems += _count(_unproved(evidence, rows))
    if "version_digest" in evidence.columns and published:
        outcome.problems += _count(_wrong(rows, published, evidence.books.excused))
    elif rows:
        outcome.unknown = "the log holds no digests of published versions"
    return outcome


def _wrong(rows: list[dict[str, Any]], published: Mapping[Version, str], excused: set[str]) -> Iterator[str]:
    for row in rows:
        versions = _versions(row)
        expected, got = {published[v] for v in versions if v in published}, row.get("version_digest")
        attempt, number = versions[0]
        if not expected and row["group"] in excused:
            continue  # what a lost ledger published last is not in the log
        if not expected:
            yield f"version {number} of attempt {attempt} was used and never published"
        elif got not in expected:
            said = f"{got[:12]}..." if got else "no digest"
            yield (
                f"version {number} of attempt {attempt} was published as {min(expected)[:12]}..., but "
                f"comparison {row['comparison']} of step {row['step']} was sampled with {said}"
            )


def _versions(row: Mapping[str, Any]) -> list[Version]:
    """What the row may have been sampled with, newest attempt first: a comparison that comes up again may be
    older than its attempt."""
    attempt, number = int(row["attempt"]), int(row["version_newest"])
    return [(a, number) for a in range(attempt, attempt - 1 if row["use"] == 1 else 0, -1)]


def _mixed(evidence: Evidence, rows: list[dict[str, Any]]) -> Iterator[str]:
    if evidence.setting("sync.in_flight", "wait") == "keep":
        return
    for row in rows:
        if row.get("version_spans"):
            yield (
                f"an answer of comparison {row['comparison']} of step {row['step']} mixes versions "
                f"([version, tokens] of each answer: {row['version_spans']})"
            )


def _unproved(evidence: Evidence, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Versions that were trained on without an earlier proof, by the generator where leases name it."""
    attempt, proofs, seals = 1, dict[tuple[str, Version], int](), dict[Version, int]()
    for place, event in enumerate(evidence.events):
        kind = event.get("event")
        if kind == "resumed":
            attempt = int(event["attempt"])
        elif kind == "seal":
            seals[attempt, int(event["step"])] = place
        elif kind == "proof" and all(event.get(part) != "failed" for part in _PARTS):
            version = (int(event.get("attempt", attempt)), int(event["version"]))
            for who in (str(event["generator"]), ""):
                proofs.setdefault((who, version), place)
    books = evidence.books
    for row in rows:
        group = str(row["group"])
        who = books.issued.get(group, "") if row["use"] == 1 and group not in books.excused else ""
        found = [proofs[who, version] for version in _versions(row) if (who, version) in proofs]
        before = seals.get((int(row["attempt"]), int(row["step"])), len(evidence.events))
        if not found or min(found) > before:
            attempt, number = _versions(row)[0]
            who = who or "a generator"
            yield f"version {number} of attempt {attempt} was used before {who} had proved it"


def _count(problems: Iterator[str]) -> list[str]:
    """Equal problems once."""
    return list(dict.fromkeys(problems))
