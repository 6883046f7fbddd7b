"""Where a run lives on disk: a fresh folder per start, the same folder when it is resumed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from pipelines.settings_errors import SettingsError

CONFIG = "config.yaml"  # what a run writes first


def fresh_run_dir(output: Path, name: str, mirror: str | None = None) -> Path:
    """`output/name`, or `output/name-2`, -3 ... when earlier runs have taken it, here or in the mirror.

    Not created.
    """
    taken = [*_numbers(_folders(output), name), *_numbers(_mirrored(mirror), name)]
    return _numbered(output, name, max(taken, default=0) + 1)


def resumable_run_dir(output: Path, name: str, mirror: str | None = None) -> Path:
    """The newest run of this name that holds a checkpoint, here or in the mirror (`checkpoint.mirror`); else
    the newest one, which ended before its first checkpoint.

    Raises SettingsError when there is none.
    """
    known = _numbers(_folders(output), name)
    begun = [n for n in known if (_numbered(output, name, n) / CONFIG).exists()]
    saved = [n for n in known if any((_numbered(output, name, n) / "checkpoints").glob("*step-*"))]
    found = [*saved, *_numbers(_mirrored(mirror), name)] or begun
    if not found:
        raise SettingsError(
            f"--resume: there is no run named {name!r} in {output}; start it without --resume"
        )
    return _numbered(output, name, max(found))


def _numbered(output: Path, name: str, number: int) -> Path:
    return output / (name if number == 1 else f"{name}-{number}")


def _numbers(folders: Iterable[str], name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"(?:-([2-9]|[1-9][0-9]+))?")
    return [int(match[1] or 1) for folder in folders if (match := pattern.fullmatch(folder)) is not None]


def _folders(output: Path) -> list[str]:
    return [folder.name for folder in output.iterdir() if folder.is_dir()] if output.is_dir() else []


def _mirrored(mirror: str | None) -> list[str]:
    """Runs that have a folder there. Raises SettingsError for a mirror that cannot be read."""
    if mirror is None:
        return []
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    try:
        files, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(mirror))  # pyright: ignore[reportUnknownMemberType]
        names: list[str] = files.ls(path, detail=False)
    except FileNotFoundError:
        return []
    except Exception as error:  # whatever a file system of somebody else raises
        raise SettingsError(f"checkpoint.mirror: {mirror!r} cannot be read: {error}") from None
    return [name.rstrip("/").rpartition("/")[2] for name in names]
