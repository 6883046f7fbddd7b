"""Where a run lives on disk: a fresh folder per start, the same folder when it is resumed."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.settings_errors import SettingsError


def fresh_run_dir(output: Path, name: str) -> Path:
    """`output/name`, or `output/name-2`, -3 ... when earlier runs have taken it. Not created."""
    taken = _numbers(output, name)
    if not taken:
        return output / name
    return output / f"{name}-{max(taken) + 1}"


def resumable_run_dir(output: Path, name: str) -> Path:
    """The newest run of this name that holds a checkpoint. Raises SettingsError when there is none."""
    for number in sorted(_numbers(output, name), reverse=True):
        run_dir = output / (name if number == 1 else f"{name}-{number}")
        if any((run_dir / "checkpoints").glob("step-*")):
            return run_dir
    raise SettingsError(
        f"--resume: no run named {name!r} in {output} has a checkpoint; start it without --resume"
    )


def _numbers(output: Path, name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"(?:-([2-9]|[1-9][0-9]+))?")
    folders = output.iterdir() if output.is_dir() else ()
    found = (pattern.fullmatch(folder.name) for folder in folders if folder.is_dir())
    return [int(match.group(1) or 1) for match in found if match is not None]
