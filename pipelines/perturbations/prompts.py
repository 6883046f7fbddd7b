"""Damage to prompts: media taken away, words added, and acts inside the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelines.types import Message, Op, Part, Prompt


def without_media(prompt: Prompt, origin: str = "without_media") -> Prompt:
    """The prompt with its media taken away, as BPO (code read) and M3ID (third-party note) blind a model.

    A message that held media alone keeps an empty text. Raises ValueError for a prompt without media.
    """
    if not prompt.media:
        raise ValueError(f"prompt {prompt.id}: it has no media to take away")

    def blinded(message: Message) -> Message:
        kept = tuple(part for part in message.parts if not part.digest)
        return replace(message, parts=kept or (Part(kind="text"),))

    return replace(prompt, messages=tuple(map(blinded, prompt.messages)), origin=origin)


def without_text(prompt: Prompt, origin: str = "without_text") -> Prompt:
    """The prompt with the text of its user messages taken away: NaPO (third-party note) asks nothing.

    Raises ValueError for a prompt without media, of which nothing would be left.
    """
    if not prompt.media:
        raise ValueError(f"prompt {prompt.id}: without its text nothing is left, since it has no media")

    def silent(message: Message) -> Message:
        kept = tuple(part for part in message.parts if part.digest)
        return replace(message, parts=kept or (Part(kind="text"),)) if message.role == "user" else message

    return replace(prompt, messages=tuple(map(silent, prompt.messages)), origin=origin)


def add_text(prompt: Prompt, text: str, origin: str) -> Prompt:
    """The prompt with a text at the end of its last user message; MAPL adds constraints so (inferred).

    Raises ValueError for a prompt without a user message.
    """
    places = [i for i, message in enumerate(prompt.messages) if message.role == "user"]
    if not places:
        raise ValueError(f"prompt {prompt.id}: it has no user message to add a text to")
    last = prompt.messages[places[-1]]
    *before, final = last.parts or (Part(kind="text"),)
    if final.kind == "text":
        parts = (*before, replace(final, text=f"{final.text} {text}".lstrip()))
    else:
        parts = (*last.parts, Part(kind="text", text=text))
    messages = (
        *prompt.messages[: places[-1]],
        replace(last, parts=parts),
        *prompt.messages[places[-1] + 1 :],
    )
    return replace(prompt, messages=messages, origin=origin)


@dataclass(frozen=True)
class VisualDrop:
    """Hides each visual embedding from attention with probability `rho`, independently.

    BDHS, "Understanding Alignment in Multimodal LLMs", with rho = .99 (paper read). It happens inside the
    model, so it is an act of the prompt which a decoder that can do it carries out.

    Raises ValueError for a probability outside 0..1.
    """

    rho: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise ValueError(f"VisualDrop(rho=...): expected a probability, got {self.rho}")

    def op(self, seed: int) -> Op:
        params = {"space": "embeddings", "rho": self.rho, "strength": self.strength}
        return Op(name="visual_drop", params=params, seed=seed)

    @property
    def strength(self) -> float:
        """Rho."""
        return self.rho


def with_act(prompt: Prompt, op: Op) -> Prompt:
    """The prompt with one more act inside the model; its digest differs."""
    return replace(prompt, acts=(*prompt.acts, op), origin=op.name)
