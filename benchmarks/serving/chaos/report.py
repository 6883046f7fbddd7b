"""The count: rates, what failed and why, what took how long, and which targets were missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.chaos.checks import Spell, Tenures, Window, cause, clean_swaps, wrong
from benchmarks.serving.chaos.load import Request

FIRST_TRY = 0.995
LATE_S = 1.0  # behind its time: the client did not keep up
EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Count:
    """What became of the requests."""

    requests: int
    streams: int
    late: int
    first_tries: int  # that were good
    answered: int  # good at last
    failures: Mapping[str, int]  # first tries, by cause
    codes: Mapping[str, int]  # of the same, by cause, status and code
    wrong: Mapping[str, int]  # answers, by kind
    examples: Sequence[str]
    clean_swaps: int  # windows
    in_clean_swaps: int  # requests that were under way in one of them


def count(requests: Sequence[Request], windows: Sequence[Window], spell: Spell, tenures: Tenures) -> Count:
    """Judge every try of every request."""
    failures: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    problems = [
        problem
        for request in requests
        for one in request.tries
        for problem in wrong(request, one, spell, tenures)
    ]
    for request in requests:
        first = request.tries[0]
        if not first.good:
            why = cause(first, windows)
            failures[why] += 1
            codes[f"{why}: {first.status} {first.code or 'cut off'}"] += 1
    clean = clean_swaps(windows)
    spans = [(request.tries[0].began, request.tries[-1].ended) for request in requests]
    return Count(
        requests=len(requests),
        streams=sum(request.stream for request in requests),
        late=sum(request.tries[0].began - request.due > LATE_S for request in requests),
        first_tries=sum(request.tries[0].good for request in requests),
        answered=sum(request.tries[-1].good for request in requests),
        failures=failures,
        codes=codes,
        wrong=Counter(problem.partition(":")[0] for problem in problems),
        examples=problems[:EXAMPLES],
        clean_swaps=len(clean),
        in_clean_swaps=sum(any(one.meets(*span) for one in clean) for span in spans),
    )


def missed(found: Count, problems: Sequence[str]) -> list[str]:
    """The targets that were not reached, in words; what went wrong with the experiment itself too."""
    checks = {
        f"first tries: {found.first_tries} of {found.requests} succeeded, expected {FIRST_TRY:.1%}": (
            found.requests > 0 and found.first_tries >= FIRST_TRY * found.requests
        ),
        f"with two retries {found.answered} of {found.requests} were answered": (
            found.answered == found.requests
        ),
        f"answers of mixed or wrong weights, or cut short: {dict(found.wrong)}": not found.wrong,
        f"failures caused by swaps: {found.failures.get('swap', 0)}": not found.failures.get("swap"),
        "no swap had the replicas to itself, so nothing is known of swaps alone": found.in_clean_swaps > 0,
    }
    return [*(text for text, holds in checks.items() if not holds), *problems]


def quantiles(values: Sequence[float | None]) -> dict[str, Any]:
    """Count, median, 95th percentile and maximum, in seconds; what never ended is counted apart."""
    ended = sorted(value for value in values if value is not None)
    if not ended:
        return {"n": len(values), "never": len(values)}
    return {
        "n": len(values),
        "never": len(values) - len(ended),
        "p50": round(_at(ended, 0.50), 2),
        "p95": round(_at(ended, 0.95), 2),
        "max": round(ended[-1], 2),
    }


def latency(requests: Sequence[Request]) -> dict[str, Any]:
    """Of first tries that were good."""
    return quantiles([one.tries[0].ended - one.tries[0].began for one in requests if one.tries[0].good])


def _at(values: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return values[min(len(values) - 1, int(share * len(values)))]


def table(result: Mapping[str, Any]) -> str:
    """The result for people: the same numbers in the same order as in the JSON."""
    lines = [f"serve-chaos, {result['lane']} lane: {result['engine']}", ""]
    for name, value in result["numbers"].items():
        lines.append(f"{name:<44} {_shown(value)}")
    lines += [f"{'failed first tries, ' + name:<44} {n}" for name, n in result["codes"].items()]
    lines += ["", *(f"MISSED {text}" for text in result["missed"])]
    lines += [] if result["missed"] else ["every target was reached"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {number}" for name, number in value.items())
