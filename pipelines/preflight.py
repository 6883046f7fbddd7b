"""All that can be known to fail before anything starts: what `plumbline validate` checks and prints."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from pipelines import checkpoint, identity, recipes
from pipelines.data import DataError, Row, admit, open_source
from pipelines.editors import load_editor
from pipelines.programs.served import with_served
from pipelines.requirements import backend_of, other_models, problems, recorded_pairs, sees
from pipelines.rewards import load_reward
from pipelines.rewards.probe import MIN_PAIRS, text_probe_auc
from pipelines.settings import Settings, SettingsError, demands, model_path

PROBED: Final = 2000  # recorded pairs that are looked at


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found. `text` is the error when the check failed."""

    check: str
    ok: bool
    text: str


def check(settings: Settings) -> list[Finding]:
    """Every check, whether or not an earlier one failed. Starts nothing and writes nothing."""
    checks: dict[str, Callable[[Settings], str]] = {
        "packages": _packages,
        "recipe": recipe,
        "model": _model,
        "reward": _reward,
        "data": _data,
        "pairs": _pairs,
        "media": _media,
        "resources": _resources,
        "output": _output,
    }
    return [_finding(name, look, settings) for name, look in checks.items()]


def require(settings: Settings) -> None:
    """Raise the first problem, as SettingsError, DataError, NotACheckpoint or Shadowed, in a second.

    All checks of `check`, but of the rows only up to the first usable one: a run goes through them itself.
    That one must be looked at before Ray is imported: its Arrow types would be deserialised from then on.
    """
    gates = (_pairs,) if settings.data.max_probe_auc < 1 else ()
    for look in (_packages, recipe, _model, _reward, _first_row, *gates, _media, _resources, _output):
        look(settings)


def _first_row(settings: Settings) -> None:
    next(open_source(settings).rows(), None)


def _finding(name: str, look: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(check=name, ok=True, text=look(settings))
    except (SettingsError, DataError, checkpoint.NotACheckpoint, identity.Shadowed) as error:
        return Finding(check=name, ok=False, text=str(error))


def _packages(settings: Settings) -> str:
    identity.check()
    return f"pipelines, actors and serving are those in {identity.ROOT}"


def recipe(settings: Settings) -> str:
    """Build the recipe with its parameters, and see that this run can follow it. Raises SettingsError."""
    try:
        built = with_served(recipes.load(settings.recipe, settings.method), settings)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    if found := list(problems(settings, built)):
        raise SettingsError("\n".join(found))
    for path in sorted(other_models(built)):
        try:
            checkpoint.inspect(Path(path))
        except checkpoint.NotACheckpoint as error:
            raise SettingsError(f"method: {built.name} samples from another {error}") from error
    load_editor(settings)
    decoded = backend_of(settings, built)
    stages = f"{len(built.stages)} stages, " if len(built.stages) > 1 else ""
    return f"{built.name} ({built.paper}), {stages}decoded by {decoded}"


def _model(settings: Settings) -> str:
    found = checkpoint.inspect(model_path(settings))
    longest, wanted = found.max_length, settings.rollout.engine.max_model_len
    if longest is not None and wanted > longest:
        raise SettingsError(
            f"rollout.engine.max_model_len: {wanted} exceeds the {longest} tokens of {found.path}"
        )
    modules = {name.removesuffix(".weight").rpartition(".")[2] for name in found.tensors}
    for target in settings.learner.lora.targets if settings.learner.lora is not None else ():
        if target in checkpoint.OUTSIDE_BLOCKS:
            raise SettingsError(
                f"learner.lora.targets: {target!r} cannot have an adapter, since it breaks the "
                "log-probabilities behind it; name linear layers of the blocks, such as 'q_proj'"
            )
        if target not in modules:
            raise SettingsError(f"learner.lora.targets: {found.path} has no module {target!r}")
    eyes = "images and text" if found.sees else "text only"
    return f"{found.architecture}, {found.parameters:,} parameters, {eyes}, in {found.path}"


def _reward(settings: Settings) -> str:
    load_reward(settings)
    return settings.reward


def _data(settings: Settings) -> str:
    source = open_source(settings)
    inventory = source.inventory()
    admit(inventory, settings.data.max_bad_rows)
    skipped = f", {len(inventory.bad)} bad ones will be skipped" if inventory.bad else ""
    return f"{settings.data.source}: {len(inventory.usable):,} usable rows{skipped}"


def _media(settings: Settings) -> str:
    """A recipe that damages media learns nothing from rows without any."""
    try:
        built = with_served(recipes.load(settings.recipe, settings.method), settings)
    except ValueError:  # is found where the recipe is checked
        return "unknown recipe"
    step = sees(built)
    if step is None or settings.data.source == "glyphs":
        return "no row has to show media" if step is None else "every row shows a picture"
    if not any(row["images"] for _, row in open_source(settings).rows()):
        raise SettingsError(
            f"data.source: no row of {settings.data.source} shows a picture that the model can see, but "
            f"{built.name} damages what a prompt shows ({step!r}); give rows with images and a model with "
            "vision, or another recipe"
        )
    return "rows show pictures"


def _pairs(settings: Settings) -> str:
    """Pairs whose sides a linear probe tells apart teach the difference of their sources (More is Less)."""
    try:
        built = with_served(recipes.load(settings.recipe, settings.method), settings)
    except ValueError:  # is found where the recipe is checked
        return "unknown recipe"
    if not recorded_pairs(built):
        return "none are recorded"
    columns = ([row.get("gold", {}).get(side) for side in ("chosen", "rejected")] for row in _rows(settings))
    texts = [pair for pair in columns if all(isinstance(side, str) for side in pair)]
    if len(texts) < MIN_PAIRS:
        return f"{len(texts)} recorded ones, too few for a probe"
    area = text_probe_auc(*zip(*texts, strict=True))
    found = f"a linear probe tells chosen from rejected with an AUC of {area:.2f}"
    if area > settings.data.max_probe_auc:
        raise SettingsError(
            f"data.max_probe_auc: {found} in {len(texts):,} rows of {settings.data.source}, allowed are "
            f"{settings.data.max_probe_auc:g}; the model would learn what gives the sides away, not what "
            "is preferred: take both sides from one source, remove what marks one of them, or raise the limit"
        )
    return f"{found} (0.5: it cannot; {len(texts):,} rows)"


def _rows(settings: Settings) -> Iterator[Row]:
    return (row for _, row in islice(open_source(settings).rows(), PROBED))


def _resources(settings: Settings) -> str:
    wanted = demands(settings)
    text = f"{wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs"
    if settings.ray_address or os.environ.get("RAY_ADDRESS"):
        return f"{text}; the cluster is asked when the run starts"
    cores, gpus = len(os.sched_getaffinity(0)), count_gpus()
    if wanted["GPU"] > gpus:
        raise SettingsError(
            f"resources: the run needs {wanted['GPU']:g} GPUs, this machine has {gpus}; lower "
            "rollout.engine.gpus or learner.gpus, or give ray_address"
        )
    shared = ", so processes will share cores" if wanted["CPU"] > cores else ""
    return f"{text}; this machine has {cores} cores{shared} and {gpus} GPUs"


def count_gpus() -> int:
    """NVIDIA GPUs that the driver lists, 0 without a driver."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _output(settings: Settings) -> str:
    folder = Path(settings.output).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise SettingsError(f"output: cannot write into {existing}; give another folder")
    return f"{folder / settings.name}"
