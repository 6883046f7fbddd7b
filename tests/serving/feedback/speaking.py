"""Answers that a store is told of, and what people say of them."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.data.served import read
from serving.feedback import FeedbackStore
from serving.wire import Refusal


def painted(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def name(number: int) -> str:
    return f"chatcmpl-{number:032x}"


def remember(store: FeedbackStore, number: int, **more: Any) -> None:
    """`picture`: its colour; `asked`, `text`: what was asked and answered; `body`: more of the request."""
    content: list[dict[str, Any]] = [{"type": "text", "text": more.pop("asked", "what is it?")}]
    if (picture := more.pop("picture", None)) is not None:
        url = "data:image/png;base64," + base64.b64encode(painted(picture)).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    prompt = {"model": "m", "messages": [{"role": "user", "content": content}], **more.pop("body", {})}
    answer = {"choices": [{"message": {"role": "assistant", "content": more.pop("text", f"text {number}")}}]}
    given = {"client": "ann", "version": "v-1", **more}
    asyncio.run(store.remember(answer_id=name(number), prompt=prompt, answer=answer, **given))


def rate(store: FeedbackStore, client: str = "ann", **feedback: Any) -> Refusal | None:
    return asyncio.run(store.rate(client=client, feedback=feedback))


def like(store: FeedbackStore, number: int, rating: int = 1, client: str = "ann") -> Refusal | None:
    return rate(store, client, kind="rating", id=name(number), rating=rating, comment=None)


def prefer(store: FeedbackStore, chosen: int, rejected: int) -> Refusal | None:
    return rate(store, kind="choice", chosen=name(chosen), rejected=name(rejected))


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read(folder).events]
