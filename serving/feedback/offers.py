"""An answered chat as feedback would be written with it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from pipelines.data.served import Event

ROLES: Final = ("system", "user", "assistant")


class Unsuited(ValueError):
    """An answer that alignment cannot learn from."""


@dataclass(frozen=True, kw_only=True)
class Offered:
    """An answer as it would be written, and the pictures of its prompt by file name."""

    event: Event
    media: dict[str, bytes]

    @property
    def size(self) -> int:
        texts = (part.get("text", "") for turn in self.event["messages"] for part in turn["content"])
        return sum(map(len, texts)) + len(self.event["answer"]) + sum(map(len, self.media.values()))


def offer(
    answer_id: str, client: str, version: str, prompt: dict[str, Any], answer: dict[str, Any]
) -> Offered:
    """Raises Unsuited for what the rows of a run cannot hold: tools, several answers, video, audio."""
    media: dict[str, bytes] = {}
    images: list[str] = []

    def part(given: dict[str, Any]) -> dict[str, Any]:
        match given:
            case {"type": "text", "text": str(text)}:
                return {"type": "text", "text": text}
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                name, data = _picture(url)
                media[name] = data
                images.append(name)
                return {"type": "image"}
            case _:
                raise Unsuited("a part that is neither text nor a picture")

    def turn(given: dict[str, Any]) -> dict[str, Any]:
        if given["role"] not in ROLES:
            raise Unsuited(f"a message of the role {given['role']}")
        content = given.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return {"role": given["role"], "content": [part(p) for p in parts or ()]}

    choices = answer.get("choices", [])
    text = choices[0].get("message", {}).get("content") if len(choices) == 1 else None
    if not isinstance(text, str) or not text or prompt.get("tools"):
        raise Unsuited("no single answer in words")
    messages = [turn(given) for given in prompt["messages"]]
    event = {"kind": "answer", "id": answer_id, "client": client, "version": version}
    return Offered(event={**event, "messages": messages, "images": images, "answer": text}, media=media)


def _picture(url: str) -> tuple[str, bytes]:
    """(file name, bytes) of a data URL."""
    found = re.fullmatch(r"data:image/(png|jpeg|webp|gif);base64,([A-Za-z0-9+/=]+)", url)
    if found is None:
        raise Unsuited("no picture by data URL")
    try:
        data = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        raise Unsuited("a damaged data URL") from None
    return f"{hashlib.sha256(data).hexdigest()}.{found[1]}", data
