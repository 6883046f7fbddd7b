"""What `plumbline serve` is pointed at: a run, or one checkpoint, checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from actors.checkpoints import MANIFEST, BadCheckpoint, newest_verified, verify
from pipelines.checkpoint import NotACheckpoint, read
from pipelines.types import MediaKind

ANSWERS = ("ForCausalLM", "ForConditionalGeneration")  # how names of architectures end that write text


class NotServable(Exception):
    """The target cannot be served; the message says what is wrong with it and what would be accepted."""


@dataclass(frozen=True, kw_only=True)
class Servable:
    """A directory in Hugging Face layout that an engine can load."""

    path: Path
    name: str  # what clients put into "model"
    media: frozenset[MediaKind] = frozenset()  # what prompts may hold beside text, by its configuration
    dtype: str | None = None  # of the weights, by its configuration

    @property
    def sees(self) -> bool:
        """Whether it takes images."""
        return "image" in self.media


def find_servable(target: Path, name: str | None = None) -> Servable:
    """The checkpoint that `target` stands for.

    `target` is a run directory (its newest checkpoint whose manifest verifies is taken) or a checkpoint in
    Hugging Face layout. A checkpoint of a run must verify; a model of somebody's own has no manifest and is
    taken as it is. Raises NotServable.
    """
    target = target.expanduser().resolve()
    if not target.is_dir():
        raise NotServable(f"{target}: no such folder; give that of a run or of a checkpoint")
    try:
        path, default = _committed(target)
    except BadCheckpoint as error:
        raise NotServable(f"{error}. Serve another checkpoint of the run, or resume the run") from None
    try:
        found = read(path)
    except NotACheckpoint as error:
        hint = "Serve takes the directory of a run (with checkpoints/) or of a model in Hugging Face layout"
        raise NotServable(f"{str(error).removeprefix('model: ')}. {hint}") from None
    if not found.architecture.endswith(ANSWERS):
        expected = " or ".join(f"...{end}" for end in ANSWERS)
        raise NotServable(
            f"{path}: expected an architecture that writes text ({expected}), got {found.architecture!r}; "
            "serve another model"
        )
    return Servable(path=path, name=name or _as_name(default), media=found.media, dtype=found.dtype)


def _committed(target: Path) -> tuple[Path, str]:
    """The checkpoint's folder, verified where it belongs to a run, and the name of the run or the folder."""
    if (target / "checkpoints").is_dir():
        newest = newest_verified(target)
        if newest is None:
            raise BadCheckpoint(f"{target}: the run ended before its first checkpoint")
        return newest.path, target.name
    of_a_run = target.parent.name == "checkpoints"
    if of_a_run or (target / MANIFEST).exists():
        verify(target)
    return target, target.parent.parent.name if of_a_run else target.name


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "policy"
