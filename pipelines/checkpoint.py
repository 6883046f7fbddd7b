"""What is in a model folder, read from its headers alone: no weights, no framework, no network."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, get_args

from pipelines.types import MediaKind

VISION_ARCHITECTURES: Final = ("Qwen2_5_VLForConditionalGeneration",)
#: Fields of a configuration that say that a model takes a medium.
_SIGNS: Final[Mapping[MediaKind, tuple[str, ...]]] = {
    "image": ("vision_config", "image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_config", "audio_token_id", "audio_token_index"),
}
OUTSIDE_BLOCKS: Final = ("embed_tokens", "lm_head")  # layers that take no LoRA adapter
_MAX_HEADER: Final = 100 * 2**20  # bytes; a larger one is no header


class NotACheckpoint(ValueError):
    """A folder that holds no model that can be used; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    path: Path
    architecture: str
    media: frozenset[MediaKind]  # what its prompts may hold beside text
    special: frozenset[str]  # strings of its special tokens
    tensors: Mapping[str, int]  # name of every stored tensor -> elements
    max_length: int | None  # tokens that positions exist for, where the configuration says so
    dtype: str | None  # of its weights, where the configuration says so

    @property
    def sees(self) -> bool:
        """Whether it takes images."""
        return "image" in self.media

    @property
    def parameters(self) -> int:
        return sum(self.tensors.values())


def inspect(path: Path) -> Checkpoint:
    """What a run needs to know of its model before it starts.

    Accepts Qwen2.5-VL and text-only causal language models in Hugging Face layout with safetensors weights.
    Raises NotACheckpoint.
    """
    found = read(path)
    _require_alignable(found)
    return found


def read(path: Path) -> Checkpoint:
    """What a folder says of any model. Raises NotACheckpoint for what nobody could load."""
    if not path.is_dir():
        raise NotACheckpoint(
            f"model: {path}: no such folder; give a checkpoint in Hugging Face layout on this machine's disk"
        )
    config = _json(path / "config.json", "config.json")
    architecture = _architecture(config, path)
    if "auto_map" in config:
        raise NotACheckpoint(
            f"model: {path}: config.json asks to run code of its own (auto_map), which is never done; use a "
            "checkpoint of an architecture that transformers ships"
        )
    media = _media(config)
    _check_template(path)
    if media and not any(
        (path / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    ):
        raise NotACheckpoint(
            f"model: {path}: no preprocessor_config.json or processor_config.json; it prepares images and "
            "other media"
        )
    text = cast("dict[str, Any]", config.get("text_config") or config)
    return Checkpoint(
        path=path,
        architecture=architecture,
        media=media,
        special=special_tokens(path),
        tensors=_tensors(path),
        max_length=text.get("max_position_embeddings"),
        dtype=_dtype(config) or _dtype(text),
    )


def _dtype(config: Mapping[str, Any]) -> str | None:
    return config.get("dtype") or config.get("torch_dtype")  # its name before transformers 4.56


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    listed: Any = config.get("architectures")
    first: Any = cast("list[Any]", listed)[0] if isinstance(listed, list) and listed else None
    if not isinstance(first, str):
        raise NotACheckpoint(
            f"model: {path}: config.json: expected the name of an architecture, got {first!r}"
        )
    return first


def _media(config: Mapping[str, Any]) -> frozenset[MediaKind]:
    """What has a placeholder token or an encoder in the configuration, or in one part of it."""
    parts = [config, *(cast("dict[str, Any]", part) for part in config.values() if isinstance(part, dict))]
    fields = {name for part in parts for name, value in part.items() if value is not None}
    return frozenset(kind for kind in get_args(MediaKind) if not fields.isdisjoint(_SIGNS[kind]))


def _require_alignable(found: Checkpoint) -> None:
    name, path = found.architecture, found.path
    if name in VISION_ARCHITECTURES:
        return
    if not name.endswith("ForCausalLM"):
        expected = f"{VISION_ARCHITECTURES[0]} or a text-only ...ForCausalLM"
        raise NotACheckpoint(f"model: {path}: expected the architecture {expected}, got {name!r}")
    if found.sees:
        raise NotACheckpoint(
            f"model: {path}: {name} with a vision tower; of those only Qwen2.5-VL is supported"
        )


def special_tokens(path: Path) -> frozenset[str]:
    """Strings that the tokenizer of a checkpoint turns into special tokens."""
    tokenizer = _json(path / "tokenizer.json", "tokenizer.json")
    added = cast("list[dict[str, Any]]", tokenizer.get("added_tokens") or [])
    return frozenset(str(token["content"]) for token in added if token.get("special"))


def _check_template(path: Path) -> None:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return
    if (path / "tokenizer_config.json").is_file() and _json(path / "tokenizer_config.json", "").get(
        "chat_template"
    ):
        return
    raise NotACheckpoint(
        f"model: {path}: no chat template (chat_template.jinja); a base model without one cannot be prompted"
    )


def _tensors(path: Path) -> dict[str, int]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        why = (
            "its weights are pickled, which can run code when loaded; convert them"
            if pickled
            else "no weights"
        )
        raise NotACheckpoint(f"model: {path}: no *.safetensors: {why}")
    names = {file.name for file in files}
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = set(cast("dict[str, str]", _json(index, index.name).get("weight_map", {})).values())
        if shards - names:
            raise NotACheckpoint(f"model: {path}: the index names {min(shards - names)!r}, which is missing")
    return {name: elements for file in files for name, elements in _header(file).items()}


def _header(file: Path) -> dict[str, int]:
    """Tensors of a safetensors file and their elements; the file must be as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > min(size, _MAX_HEADER):
            raise NotACheckpoint(f"model: {file}: not a safetensors file, or cut off (a Git LFS pointer?)")
        try:
            header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        except ValueError:
            raise NotACheckpoint(f"model: {file}: its header is not JSON; the file is damaged") from None
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if end != size:
        raise NotACheckpoint(f"model: {file}: expected {end} bytes, got {size}; the file is incomplete")
    return {name: math.prod(entry["shape"]) for name, entry in tensors.items()}


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotACheckpoint(f"model: {file.parent}: not a checkpoint: no {what}") from None
    except (OSError, ValueError) as error:
        raise NotACheckpoint(f"model: {file}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise NotACheckpoint(f"model: {file}: expected a JSON object")
    return cast("dict[str, Any]", value)
