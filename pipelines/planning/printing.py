"""A plan for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from pipelines import marked_yaml
from pipelines.planning.advice import Advice, Candidate

SIZES = ("ranks", "max_lag", "generators", "scorers")
SHOWN = ("steps/h", "groups/s", "waits", "busy", "lag", "stale", "buffered")


def describe(advice: Advice) -> Iterator[Any]:
    """Parts for a console: the rates, all candidates, and the settings of the best."""
    yield "rates: " + ", ".join(f"{name} {value:.3g}" for name, value in advice.rates.to_json().items())
    yield _table(advice)
    best = advice.best
    out = best.outcome
    verdict = f"The learner waits {out.learner_waits:.0%} of its time"
    if not best.reached:
        verdict += f", more than {advice.bounds.waits:.0%}: this fleet is limited by its {best.bottleneck}"
    yield (
        f"{verdict}. Queue: {out.leased_mean:.0f} groups under way (most {out.leased_max}), "
        f"{out.buffered_mean:.0f} buffered (most {out.buffered_max})"
        + (f", {out.buffer_mib:.0f} MiB at most." if out.buffer_mib is not None else ".")
    )
    yield "Into the run's YAML:\n\n" + marked_yaml.dump(best.settings())


def _table(advice: Advice) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in (*SIZES, *SHOWN):
        table.add_column(head, justify="right")
    table.add_column("limited by")
    for one in advice.candidates:
        table.add_row(*_cells(one), style="bold" if one is advice.best else None)
    return table


def _cells(one: Candidate) -> Iterator[str]:
    setup, out = one.setup, one.outcome
    yield from map(str, (setup.ranks, setup.max_lag, setup.generators, setup.scorers))
    yield from (f"{out.steps_per_hour:.0f}", f"{out.groups_per_s:.3g}")
    yield from (f"{out.learner_waits:.0%}", f"{out.generators_busy:.0%}")
    yield from (f"{out.lag_mean:.1f}", f"{out.stale_share:.0%}", str(out.buffered_max), one.bottleneck)
