"""What users type stays text: strings of special tokens and media placeholders never become tokens.

A tokenizer turns `<|im_end|>` into the token that ends a turn wherever it stands. So a character that shows
nothing is put after the first one of every such string in a request, and what the template's own strings
mean stays untouched. It works on requests alone, whatever engine reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any

BREAKERS = ("\u2060", "\u200b", " ")  # word joiner, zero-width space; then what every tokenizer keeps
MEDIA = ("image_token_id", "video_token_id", "audio_token_id")


class NotText(ValueError):
    """The request holds a special token that cannot be written as text; the message names the field."""


class PlainText:
    """Rewrites requests for one tokenizer.

    Args:
        tokenizer: of transformers.
        media: ids of the media placeholders of the model's configuration.
    """

    def __init__(self, tokenizer: Any, media: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        added = {str(token.content): index for index, token in tokenizer.added_tokens_decoder.items()}
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        placeholders = {str(tokenizer.convert_ids_to_tokens(index)): index for index in media}
        # Added tokens that are words or white space steer nothing: some vocabularies hold many of them.
        tags = {text: index for text, index in added.items() if re.search(r"[^\w\s]", text)}
        marks = {text: index for text, index in {**special, **tags, **placeholders}.items() if text.strip()}
        self._ids = frozenset(marks.values()) - {tokenizer.unk_token_id}  # unknown words are text
        self._ends = frozenset(
            index for index in (tokenizer.bos_token_id, tokenizer.eos_token_id) if index is not None
        )
        longest_first = sorted(marks, key=len, reverse=True)
        self._mark = re.compile("|".join(map(re.escape, longest_first))) if marks else None
        self._breaker = next((one for one in BREAKERS if self._breaks(one, marks)), BREAKERS[-1])

    @classmethod
    def of(cls, tokenizer: Any, config: Any) -> PlainText:
        """`config`: the model's, which names its media placeholders."""
        named = (getattr(config, name, None) for name in MEDIA)
        return cls(tokenizer, [index for index in named if index is not None])

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request with plain text in its messages and tools; media, roles and ids as they were."""
        plain = dict(body)
        plain["messages"] = [self._message(message) for message in body["messages"]]
        if body.get("tools"):
            plain["tools"] = self._deep(body["tools"])
        self._require_plain(_texts([plain["messages"], plain.get("tools", [])]), "messages")
        return plain

    def written(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        """The same for `prompt` (and `suffix`) of a completion and `input` of an embedding.

        Lists of token ids stay; raises NotText where they hold a special token other than those that begin
        and end a text.
        """
        given = body[key]
        for ids in _id_lists(given):
            if any(token in self._ids and token not in self._ends for token in ids):
                raise NotText(f"{key}: it holds a special token; give text, or the ids of text")
        plain = {**body, key: self._deep(given)}
        if isinstance(body.get("suffix"), str):
            plain["suffix"] = self.text(body["suffix"])
        self._require_plain(_texts([plain[key], plain.get("suffix")]), key)
        return plain

    def text(self, text: str) -> str:
        """The text with every special token's string broken."""
        return text if self._mark is None else self._mark.sub(self._broken, text)

    def _broken(self, found: re.Match[str]) -> str:
        return found[0][0] + self._breaker + found[0][1:]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        plain = dict(message)
        content = message.get("content")
        if isinstance(content, str):
            plain["content"] = self.text(content)
        elif isinstance(content, list):
            plain["content"] = self._parts(content)
        if isinstance(message.get("name"), str):
            plain["name"] = self.text(message["name"])
        if message.get("tool_calls"):
            plain["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return plain

    def _parts(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Templates write parts one after the other: a string that is cut across two parts counts too."""
        plain: list[dict[str, Any]] = []
        before = ""
        for part in parts:
            if part.get("type") != "text":
                plain.append(part)
                before = ""
                continue
            text = self.text(part["text"])
            if self._mark is not None and self._mark.search(before + text):
                text = self._breaker + text
            before += text
            plain.append({**part, "text": text})
        return plain

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        """Arguments are JSON in a string: an escape in them can spell what the string itself does not."""
        function = dict(call["function"])
        try:
            arguments = json.dumps(self._deep(json.loads(function["arguments"])), ensure_ascii=False)
        except ValueError:
            arguments = function["arguments"]
        function["arguments"] = self.text(arguments)
        function["name"] = self.text(function["name"])
        return {**call, "function": function}

    def _deep(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._deep(one) for one in value]
        if isinstance(value, dict):
            return {self._deep(key): self._deep(one) for key, one in value.items()}
        return value

    def _breaks(self, breaker: str, marks: Iterable[str]) -> bool:
        self._breaker = breaker
        return all(not self._steers(self.text(f"a{mark}b")) for mark in marks)

    def _steers(self, text: str) -> bool:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return not self._ids.isdisjoint(ids)

    def _require_plain(self, texts: Iterable[str], where: str) -> None:
        """The tokenizer has the last word: it may join what no rule here foresaw."""
        if any(self._steers(text) for text in texts):
            raise NotText(f"{where}: the text holds a special token of the model that cannot be read as text")


def _texts(value: Any) -> Iterable[str]:
    """Every string that reaches a prompt; media (data URLs) are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict) and value.get("type") not in (
        "image_url",
        "video_url",
        "audio_url",
        "input_audio",
    ):
        for one in value.values():
            yield from _texts(one)


def _id_lists(given: Any) -> list[list[int]]:
    if not isinstance(given, list) or not given or isinstance(given[0], str):
        return []
    return given if isinstance(given[0], list) else [given]
