"""A whole chat answer put together from the chunks of its stream."""

from __future__ import annotations

from typing import Any


class Transcript:
    """Only text is put together: nobody rates half a tool call."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._texts: dict[int, list[str]] = {}
        self._finish: dict[int, str] = {}
        self._is_text = True

    def add(self, chunk: dict[str, Any]) -> None:
        self._head = self._head or chunk
        for choice in chunk.get("choices") or ():
            index, delta = choice["index"], choice.get("delta") or {}
            self._texts.setdefault(index, []).append(delta.get("content") or "")
            self._is_text = self._is_text and not delta.get("tool_calls")
            if choice.get("finish_reason"):
                self._finish[index] = choice["finish_reason"]

    def answer(self) -> dict[str, Any] | None:
        """None: there is no complete answer of text."""
        if not self._is_text or not self._texts or self._texts.keys() != self._finish.keys():
            return None
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(parts)},
                "finish_reason": self._finish[index],
            }
            for index, parts in sorted(self._texts.items())
        ]
        return {**self._head, "object": "chat.completion", "choices": choices}
