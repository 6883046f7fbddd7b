"""What is checked and decided before Ray starts."""

from __future__ import annotations

import sys
from pathlib import Path

from actors.canaries import make_canaries
from actors.checkpoints import BadCheckpoint
from actors.mirror import Mirror
from actors.plan import Plan
from actors.processing import Processing
from pipelines import recipes
from pipelines.data import DataError, Source, admit, open_source
from pipelines.programs.served import with_served
from pipelines.settings import Settings, SettingsError, model_path, to_yaml
from pipelines.types import Canary


def prepare(settings: Settings, run_dir: Path, *, resume: bool) -> Plan:
    """Go through the rows, which `pipelines.preflight.require` leaves out, and write the resolved settings.

    Raises SettingsError, NotACheckpoint or DataError with one clear message.
    """
    run_dir = run_dir.absolute()  # workers have working directories of their own
    recipe = with_served(recipes.load(settings.recipe, settings.method), settings)
    base = model_path(settings)
    source = open_source(settings)
    if settings.checkpoint.mirror is not None:
        Mirror(settings.checkpoint.mirror, run_dir.name)  # refuses a URL of no known kind
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
    """The plan of a run's next attempt, from the newest checkpoint that verifies; of a run that ended before
    its first one, from the start."""
    try:
        renewed = plan.renewed()
    except BadCheckpoint as error:
        raise SettingsError(f"--resume: {error}") from error
    if renewed.resumed is None:
        print(f"plumbline: {plan.run_dir} holds no checkpoint yet; the run begins anew", file=sys.stderr)
    for rejected in renewed.rejected:
        print(f"plumbline: a newer checkpoint is left aside: {rejected}", file=sys.stderr)
    return renewed
