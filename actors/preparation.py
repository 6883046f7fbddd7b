"""What is checked and decided before Ray starts."""

from __future__ import annotations

from pathlib import Path

from actors.canaries import make_canaries
from actors.checkpoints import newest_verified
from actors.crew import Plan
from actors.processing import Processing
from pipelines import identity, recipes
from pipelines.data import open_source
from pipelines.data.base import admit
from pipelines.rewards import load_reward
from pipelines.settings import Settings, SettingsError, model_path, to_yaml


def prepare(settings: Settings, run_dir: Path, *, resume: bool) -> Plan:
    """Check everything that can be checked without a cluster, and write the resolved settings.

    Raises SettingsError or DataError with one clear message.
    """
    identity.check()
    recipe = recipes.load(settings.recipe, settings.method)
    load_reward(settings)  # only to fail here rather than in a worker
    base = model_path(settings)
    processing = Processing(base, settings.rollout.engine.max_model_len)
    source = open_source(settings, processing.special)
    run_dir.mkdir(parents=True, exist_ok=True)
    inventory = source.inventory()
    admit(inventory, settings.data.max_bad_rows, run_dir / "bad_rows.jsonl")
    canaries = make_canaries(source, processing)
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


def resumed(plan: Plan) -> Plan:
    """The plan of the next attempt, from the newest checkpoint that verifies."""
    from dataclasses import replace

    found = newest_verified(plan.run_dir)
    if found is None:
        raise SettingsError(
            f"--resume: {plan.run_dir} holds no checkpoint that verifies; start the run without --resume"
        )
    return replace(
        plan,
        resumed=found.path,
        attempt=found.manifest["attempt"] + 1,
        step=found.manifest["step"],
        ledger=found.manifest["ledger"],
    )
