"""What `plumbline serve` is pointed at: a run, or one checkpoint, checked before anything starts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.checkpoints import newest_verified, verify

MANIFEST = "manifest.json"


class NotServable(Exception):
    """The target cannot be served; the message says what is wrong with it and what would be accepted."""


@dataclass(frozen=True, kw_only=True)
class Servable:
    """A directory in Hugging Face layout that an engine can load."""

    path: Path
    name: str  # what clients put into "model"
    sees: bool  # the configuration has a vision tower, so prompts may hold images


def find_servable(target: Path, name: str | None = None) -> Servable:
    """The checkpoint that `target` stands for.

    `target` is a run directory (its newest checkpoint whose manifest verifies is taken) or a checkpoint in
    Hugging Face layout. A checkpoint with a manifest must verify; one without is somebody's own and is taken
    as it is. Raises NotServable.
    """
    target = target.expanduser().resolve()
    if not target.is_dir():
        raise NotServable(f"{target}: expected the directory of a run or of a checkpoint, got nothing of that name")
    if (target / "checkpoints").is_dir():
        path = newest_verified(target)
        if path is None:
            raise NotServable(
                f"{target}: none of its checkpoints verifies against its {MANIFEST}; the run ended before its "
                "first commit or files were changed. Resume the run, or name a checkpoint directory"
            )
        default = target.name
    else:
        path = target
        default = target.name if target.parent.name != "checkpoints" else target.parent.parent.name
        _check_manifest(path)
    config = _read_config(path)
    _check_files(path)
    return Servable(path=path, name=name or _as_name(default), sees="vision_config" in config)


def _check_manifest(path: Path) -> None:
    if not (path / MANIFEST).exists():
        return
    problems = verify(path)
    if problems:
        raise NotServable(
            f"{path}: does not verify against its {MANIFEST}: {'; '.join(problems[:3])}. "
            "Serve another checkpoint of the run, or the run itself (its newest sound one is taken)"
        )


def _read_config(path: Path) -> dict[str, Any]:
    where = path / "config.json"
    try:
        config = json.loads(where.read_text())
    except FileNotFoundError:
        raise NotServable(
            f"{path}: not a checkpoint: it has no config.json. Expected a run directory (with checkpoints/) or a "
            "model in Hugging Face layout (config.json, *.safetensors, tokenizer, chat template)"
        ) from None
    except (OSError, ValueError) as error:
        raise NotServable(f"{where}: expected JSON, got {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise NotServable(f"{where}: expected a model configuration with a model_type; this is some other file")
    return config


def _check_files(path: Path) -> None:
    wanted = {
        "weights (*.safetensors)": "*.safetensors",
        "a tokenizer (tokenizer.json or tokenizer_config.json)": "tokenizer*.json",
    }
    missing = [words for words, pattern in wanted.items() if not any(path.glob(pattern))]
    if missing:
        raise NotServable(f"{path}: not a complete checkpoint: it has no {' and no '.join(missing)}")


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "policy"
