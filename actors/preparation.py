"""What is checked and decided before Ray starts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from actors.canaries import make_canaries
from actors.checkpoints import BadCheckpoint, newest_verified
from actors.crew import Plan
from actors.exporting import syncs_adapter
from actors.processing import Processing
from actors.tickets import BODIES
from pipelines import recipes
from pipelines.data import DataError, Source, admit, open_source
from pipelines.journal import read_lines
from pipelines.settings import Settings, SettingsError, model_path, to_yaml
from pipelines.types import Canary


def prepare(settings: Settings, run_dir: Path, *, resume: bool) -> Plan:
    """Go through the rows, which `pipelines.preflight.require` leaves out, and write the resolved settings.

    Raises SettingsError, NotACheckpoint or DataError with one clear message.
    """
    run_dir = run_dir.absolute()  # workers have working directories of their own
    recipe = recipes.load(settings.recipe, settings.method)
    base = model_path(settings)
    source = open_source(settings)
    run_dir.mkdir(parents=True, exist_ok=True)
    inventory = source.inventory()
    listing = None if resume else run_dir / "bad_rows.jsonl"  # a resumed run has listed them already
    admit(inventory, settings.data.max_bad_rows, listing)
    canaries = _canaries(settings, source, Processing(base, settings.rollout.engine.max_model_len))
    (run_dir / "config.yaml").write_text(to_yaml(settings))
    plan = Plan(
        settings=settings,
        run_dir=run_dir,
        recipe=recipe,
        source=source,
        inventory=inventory,
        model=base,
        start=base,
        canaries=canaries,
    )
    return resumed(plan) if resume else plan


def _canaries(settings: Settings, source: Source, processing: Processing) -> tuple[Canary, ...]:
    """Canaries that fit. Rows too long further on are dropped and counted; these start every generator."""
    canaries = make_canaries(source, processing)
    for canary in canaries:
        where = f"data.source: prompt {canary.prompt.id!r}"
        try:
            length = len(processing.encode(canary.prompt, canary.media).input_ids)
            processing.require_fit(length, max(settings.rollout.max_tokens, len(canary.tokens)), where)
        except ValueError as error:
            raise DataError(str(error)) from error
    return canaries


def resumed(plan: Plan) -> Plan:
    """The plan of the next attempt, from the newest checkpoint that verifies."""
    try:
        found = newest_verified(plan.run_dir)
    except BadCheckpoint as error:
        raise SettingsError(f"--resume: {error}") from error
    if found is None:
        raise SettingsError(f"--resume: {plan.run_dir} holds no checkpoint; start the run without --resume")
    for rejected in found.rejected:
        print(f"plumbline: a newer checkpoint is left aside: {rejected}", file=sys.stderr)
    # An attempt that died before its first commit has used a number as well.
    events = read_lines(plan.run_dir / "events.jsonl")
    earlier = [event["attempt"] for event in events if event["event"] == "resumed"]
    # A full checkpoint is what the generators start from; an adapter is published onto the unchanged base.
    start = plan.model if syncs_adapter(plan.settings.learner, plan.recipe) else found.path
    bodies = found.path / BODIES
    ledger = dict(found.manifest["ledger"]) | ({BODIES: bodies.read_bytes()} if bodies.exists() else {})
    return replace(
        plan,
        start=start,
        resumed=found.path,
        attempt=1 + max([found.manifest["attempt"], *earlier]),
        step=found.step,
        ledger=ledger,
    )
