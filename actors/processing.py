"""From a prompt to what a model is shown: the one code path of generator and learner.

Chat template, token ids, placeholders, pixel values and decoding live here and nowhere else, so that both
sides see the same input. Nothing is ever truncated: what does not fit is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pipelines.checkpoint import NotACheckpoint
from pipelines.types import Media, MediaTable, Message, Prompt, array_digest


class TooLong(ValueError):
    """A prompt and its answer exceed what the model can attend to; cutting would go through an image."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What enters the model for one prompt."""

    input_ids: list[int]  # [length], placeholders expanded to one per image feature
    pixel_values: Tensor | None  # [patches of all images, patch size], float32
    image_grid_thw: Tensor | None  # [images, 3] int64: patches along time, height and width
    digest: str  # `Prompt.digest`, recomputed from the arrays that entered the image processor


class Processing:
    """Template, tokens, pictures and decoding of one checkpoint.

    `model_path`: a folder in Hugging Face layout; a vision-language model of the Qwen2-VL family (its image
    processor returns `image_grid_thw`) or a text-only causal model. `max_length`: most tokens of prompt and
    answer together (default: `max_position_embeddings` of the configuration).
    Raises `NotACheckpoint` when the folder lacks a configuration, a tokenizer or a chat template.
    """

    def __init__(self, model_path: str | Path, max_length: int | None = None) -> None:
        from transformers import AutoConfig

        self.path = Path(model_path)
        if not (self.path / "config.json").is_file():
            raise NotACheckpoint(
                f"model {str(self.path)!r}: expected a folder in Hugging Face layout with config.json, "
                "found none; give the folder that `save_pretrained` wrote"
            )
        self.config: Any = AutoConfig.from_pretrained(self.path, local_files_only=True)
        self.text_config: Any = self.config.get_text_config()
        self.has_vision = getattr(self.config, "vision_config", None) is not None
        self._processor = self._load()
        self.tokenizer: Any = self._processor.tokenizer if self.has_vision else self._processor
        if not getattr(self._processor, "chat_template", None):
            raise NotACheckpoint(
                f"model {str(self.path)!r}: it has no chat template, so a conversation cannot be rendered; "
                "add chat_template.jinja to the folder"
            )
        limit: int = self.text_config.max_position_embeddings
        self.max_length = min(max_length or limit, limit)
        self.image_token: int | None = (
            getattr(self.config, "image_token_id", None) if self.has_vision else None
        )

    def _load(self) -> Any:
        from transformers import AutoProcessor, AutoTokenizer

        kind = AutoProcessor if self.has_vision else AutoTokenizer
        try:
            return kind.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            what = "processor" if self.has_vision else "tokenizer"
            raise NotACheckpoint(f"model {str(self.path)!r}: its {what} does not load: {error}") from error

    # -- tokens ---------------------------------------------------------------------------------------------

    @cached_property
    def eos(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's and those of generation_config.json."""
        from transformers import GenerationConfig

        found: list[Any] = [self.tokenizer.eos_token_id]
        if (self.path / "generation_config.json").is_file():
            listed = GenerationConfig.from_pretrained(self.path, local_files_only=True).eos_token_id
            found += listed if isinstance(listed, list) else [listed]
        return frozenset(int(token) for token in found if token is not None)

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Every special token: its string and id."""
        tokens: dict[str, int] = {
            str(added.content): int(index)
            for index, added in self.tokenizer.added_tokens_decoder.items()
            if added.special
        }
        tokens |= dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True))
        for name in ("image_token_id", "video_token_id", "audio_token_id"):
            index = getattr(self.config, name, None)
            if index is not None:
                tokens[str(self.tokenizer.convert_ids_to_tokens(index))] = int(index)
        return tokens

    @cached_property
    def forbidden(self) -> tuple[int, ...]:
        """Tokens that an answer must never hold: all special tokens but the end of sequence.

        A sampled image placeholder would break the learner's forward, or shift its images.
        """
        return tuple(sorted(set(self.special.values()) - self.eos))

    @property
    def pad(self) -> int:
        """The token that fills a batch; masked everywhere."""
        return int(self.tokenizer.pad_token_id or 0)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text for people and rewards, without special tokens."""
        return self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def check_text(self, text: str, where: str) -> None:
        """Raises ValueError when a text holds the string of a special token."""
        for token in self.special:
            if token in text:
                raise ValueError(
                    f"{where}: the text contains {token!r}, a special token of the model; it would not be "
                    "read as text. Remove it or write it differently (images are given as parts, never as "
                    "placeholders)"
                )

    def compact(self, prompt: Prompt) -> list[int]:
        """Token ids with one placeholder per image: what an engine takes beside the pictures themselves."""
        for message in prompt.messages:
            for part in message.parts:
                self.check_text(part.text, f"prompt {prompt.id!r}")
                if part.kind not in ("text", "image"):
                    raise ValueError(
                        f"prompt {prompt.id!r}: it holds {part.kind}; expected text and images, the kinds "
                        "that this model is trained on here"
                    )
        if prompt.acts:
            acts = [act.name for act in prompt.acts]
            raise ValueError(f"prompt {prompt.id!r}: operations inside the model ({acts}) are not supported")
        prefilled = bool(prompt.messages) and prompt.messages[-1].role == "assistant"
        text = self._processor.apply_chat_template(
            [_conversational(message) for message in prompt.messages],
            tokenize=False,
            add_generation_prompt=not prefilled,
            continue_final_message=prefilled,
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        placeholders = ids.count(self.image_token) if self.image_token is not None else 0
        if placeholders != len(prompt.media):
            raise ValueError(
                f"prompt {prompt.id!r}: it shows {len(prompt.media)} images but the chat template of "
                f"{str(self.path)!r} left {placeholders} placeholders"
                + ("" if self.has_vision else "; the model reads text only")
            )
        return ids

    def require_fit(self, prompt: int, answer: int, where: str) -> None:
        """Raises `TooLong` when that many tokens of prompt and answer exceed `max_length`."""
        if prompt + answer > self.max_length:
            raise TooLong(
                f"{where}: {prompt} prompt tokens (images included) and {answer} answer tokens exceed the "
                f"limit of {self.max_length}; nothing is truncated. Use smaller images, a shorter prompt, "
                "or a larger max_model_len"
            )

    # -- pictures -------------------------------------------------------------------------------------------

    def pictures(self, prompt: Prompt, media: MediaTable) -> list[Image.Image]:
        """The prompt's images in order of appearance."""
        return [Image.fromarray(self._image(prompt, digest, media).payload) for digest in prompt.media]

    def _image(self, prompt: Prompt, digest: str, media: MediaTable) -> Media:
        found = media.get(digest)
        if found is None:
            raise ValueError(f"prompt {prompt.id!r}: its image {digest[:12]} is missing from the media table")
        if found.space != "rgb8":
            raise ValueError(f"prompt {prompt.id!r}: image {digest[:12]}: expected rgb8, got {found.space}")
        return found

    def pixels(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """(pixel_values [patches, patch size], image_grid_thw [images, 3]) of some pictures."""
        features = self._processor.image_processor(images=list(pictures), return_tensors="pt")
        if "image_grid_thw" not in features:
            raise NotACheckpoint(
                f"model {str(self.path)!r}: its image processor "
                f"{type(self._processor.image_processor).__name__} gives no image_grid_thw; expected one "
                "of the Qwen2-VL family"
            )
        return features["pixel_values"], features["image_grid_thw"]

    def encode(self, prompt: Prompt, media: MediaTable) -> Encoded:
        """The prompt as the model's forward takes it.

        Raises ValueError for special tokens in text, missing media, or image tokens that do not match image
        features, and `TooLong`.
        """
        ids = self.compact(prompt)
        pictures = self.pictures(prompt, media)
        pixel_values, grid = self.pixels(pictures) if pictures else (None, None)
        if grid is not None:
            ids = self._expand(ids, [int(count) for count in grid.prod(dim=1)])
        self.require_fit(len(ids), 0, f"prompt {prompt.id!r}")
        encoded = Encoded(
            input_ids=ids,
            pixel_values=pixel_values,
            image_grid_thw=grid,
            digest=_digest_of_what_entered(prompt, pictures),
        )
        self.require_match(encoded, f"prompt {prompt.id!r}")
        return encoded

    def _expand(self, ids: list[int], patches: Sequence[int]) -> list[int]:
        """Each placeholder repeated once per feature of its image."""
        merged = self._processor.image_processor.merge_size**2
        counts = iter([count // merged for count in patches])
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (next(counts) if token == self.image_token else 1)
        return expanded

    def require_match(self, encoded: Encoded, where: str) -> None:
        """Raises ValueError unless image tokens equal image features."""
        tokens = encoded.input_ids.count(self.image_token) if self.image_token is not None else 0
        features = 0
        if encoded.image_grid_thw is not None:
            merged = self._processor.image_processor.merge_size**2
            features = int(encoded.image_grid_thw.prod(dim=1).sum()) // merged
        if tokens != features:
            raise ValueError(
                f"{where}: {tokens} image tokens but {features} image features; they must be equal"
            )


def _conversational(message: Message) -> dict[str, Any]:
    """A message as chat templates read it; plain text stays a string, which every template accepts."""
    if all(part.kind == "text" for part in message.parts):
        return {"role": message.role, "content": "".join(part.text for part in message.parts)}
    content = [
        {"type": "text", "text": part.text} if part.kind == "text" else {"type": part.kind}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}


def _digest_of_what_entered(prompt: Prompt, pictures: Sequence[Image.Image]) -> str:
    """The prompt's digest with every media digest computed anew from the picture that is really used."""
    seen = iter([array_digest("image", "rgb8", np.asarray(picture)) for picture in pictures])
    messages = tuple(
        replace(m, parts=tuple(replace(p, digest=next(seen)) if p.digest else p for p in m.parts))
        for m in prompt.messages
    )
    return replace(prompt, messages=messages).digest
