"""What a plan is asked for: rates and sizes from a run's folder, a file and single values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.planning.advice import Advice, Bounds, advise
from pipelines.planning.rates import Measured, Rates, amended, from_file, measured
from pipelines.planning.simulation import Setup
from pipelines.settings import Settings, load
from pipelines.settings_errors import SettingsError


@dataclass(frozen=True)
class Request:
    rates: Rates
    wanted: Setup  # its number of generators and scorers is what is sought
    notes: tuple[str, ...]

    def advise(
        self, *, generators: int, scorers: int, devices: int | None, waits: float, seed: int
    ) -> Advice:
        lag = self.wanted.max_lag
        bounds = Bounds(generators=generators, scorers=scorers, max_lag=lag, waits=waits, devices=devices)
        return advise(self.rates, self.wanted, bounds, seed=seed)


def read(
    run_dir: Path | None,
    file: Path | None,
    single: Sequence[str],
    *,
    ranks: int | None = None,
    groups: int | None = None,
    every: int | None = None,
    lag: int | None = None,
) -> Request:
    """A file's rates go before a run's, single ones before both. Sizes that are not given are the run's, or
    the defaults of the settings. Raises SettingsError naming what is wrong or missing."""
    if run_dir is not None and not run_dir.is_dir():
        raise SettingsError(f"{run_dir}: no such folder; give the folder of a run")
    found = Measured(rates=from_file(file)) if file else measured(run_dir) if run_dir else None
    entries = dict(_entry(text) for text in single)
    rates = amended(found.rates if found else None, entries, "rates given by hand")
    config = run_dir / "config.yaml" if run_dir else None
    settings = load(config) if config and config.exists() else Settings()
    wanted = Setup(
        generators=1,
        ranks=ranks or settings.learner.workers,
        groups_per_step=groups or settings.learner.groups_per_step,
        sync_every=every or settings.sync.every,
        max_lag=settings.sync.max_lag if lag is None else lag,
    )
    if wanted.ranks > wanted.groups_per_step:
        raise SettingsError(
            f"plan: {wanted.ranks} ranks share {wanted.groups_per_step} groups of a step; raise --groups"
        )
    return Request(rates, wanted, found.notes if found else ())


def _entry(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        got = repr(text) if separator else f"{text!r} without a value"
        raise SettingsError(f"--rate: expected NAME=SECONDS such as sample_s=0.2, got {got}") from None
