"""What `plumbline status` shows of a run: plain lines and tables from its `status.json`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines import control
from pipelines.monitors import Alarm

COUNTS = ("issued", "leased", "buffered", "sealed", "trained", "dropped", "retried")


def describe(status: Mapping[str, Any], now: float | None = None) -> Iterator[str | Table]:
    """Lines (rich markup) and tables, most important first."""
    past = control.silence(status, now)
    age = max(0.0, (time.time() if now is None else now) - float(status["at"]))
    step, steps, attempt = (status.get(key, "?") for key in ("step", "steps", "attempt"))
    about = (
        f"{status.get('name', 'run')}: {status.get('phase', '?')}, step {step} of {steps}, attempt {attempt}"
    )
    yield escape(f"{about}; written {age:.0f} s ago by process {status['pid']} on {status['host']}")
    if past is not None:
        yield f"[yellow]{escape(past)}: what follows is how it was then[/]"
    newest = _newest(status)
    yield _pools(status["fleet"]["pools"], status["fleet"]["members"], newest)
    if status["fleet"]["members"]:
        yield _members(status["fleet"]["members"], newest)
    for node, share in status["fleet"].get("pressure", {}).items():
        yield f"[yellow]object store of node {escape(str(node)[:8])}: {share:.0%} full, leasing waits[/]"
    yield from _leases(status.get("leases") or {})
    for alarm in status.get("alarms") or ():
        yield f"[red]alarm: {escape(Alarm(**alarm).text)}[/]"
    request = status.get("request")
    if request:
        yield f"last request: {escape(str(request['said']))}"


def _newest(status: Mapping[str, Any]) -> int:
    """The newest version that was published, or at least proved."""
    proved = [member["version"] for member in status["fleet"]["members"]]
    return max([int(status.get("newest", -1)), *proved], default=-1)


def _pools(pools: Mapping[str, Any], members: list[Any], newest: int) -> Table:
    table = Table("role", "serving", "wanted", "bounds", "versions", "lag", box=box.SIMPLE_HEAD)
    for role, pool in pools.items():
        versions = [m["version"] for m in members if m["role"] == role and m["state"] == "serving"]
        held = role == "generator" and versions
        most = "any number" if pool["high"] is None else pool["high"]
        table.add_row(
            role,
            str(pool["serving"]),
            f"{pool['wanted']}" + (" (as asked for)" if pool["pinned"] else ""),
            f"{pool['low']} to {most}" + (f", {pool['standbys']} spare" if pool["standbys"] else ""),
            f"{min(versions)} to {max(versions)}, newest {newest}" if held else "",
            str(newest - min(versions)) if held else "",
        )
    return table


def _members(members: list[Any], newest: int) -> Table:
    columns = ("member", "state", "version", "behind", "in flight", "pid", "node", "age")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for member in members:
        version = member["version"]
        table.add_row(
            f"{member['role']}-{member['index']}",
            member["state"],
            str(version) if version >= 0 else "",
            str(newest - version) if version >= 0 else "",
            str(member["in_flight"]),
            str(member["pid"] or ""),
            escape(str(member["node"])[:12]) if member["node"] else "waits for room",
            f"{member['age_s']:.0f} s",
        )
    return table


def _leases(ledger: Mapping[str, Any]) -> Iterator[str]:
    counts: Mapping[str, Any] = ledger.get("counts") or {}
    shown = [f"{name} {_total(counts[name])}" for name in COUNTS if name in counts]
    if shown:
        held = f"; {ledger['held_bytes'] / 2**20:.1f} MiB held" if "held_bytes" in ledger else ""
        yield f"groups: {', '.join(shown)}{held}"
    for lease in list(ledger.get("leases") or ())[:5]:
        yield (
            f"  under way: {escape(str(lease['group']))} on generator-{lease['generator']} for "
            f"{lease['age_s']:.0f} s, try {int(lease['tries']) + 1}"
        )


def _total(count: Any) -> int:
    """Dropped groups are counted by reason."""
    return sum(count.values()) if isinstance(count, Mapping) else int(count)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
