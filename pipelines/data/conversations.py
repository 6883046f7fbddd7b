"""From a row's `prompt` and `images` columns to checked messages; no file is opened here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pipelines.data.base import BadRow

PLACEHOLDERS = ("<image>", "<video>", "<audio>")  # what other datasets write where a picture goes
ROLES = ("system", "user", "assistant")

Part = tuple[Literal["text", "image"], str]  # an image part has no text: it stands for the next image


@dataclass(frozen=True, kw_only=True)
class Turn:
    role: str
    parts: tuple[Part, ...]


def read_prompt(given: Any, images: int, special: Collection[str], where: str) -> tuple[Turn, ...]:
    """The messages of a `prompt`: text, or a list of {"role", "content"} that ends with the user.

    `content` is text or a list of {"type": "text", "text": ...} and {"type": "image"}. Images that no part
    stands for are put in front of the first user message, as TRL does. Raises BadRow.
    """
    turns = [Turn(role="user", parts=(("text", given),))] if isinstance(given, str) else _turns(given, where)
    if turns[-1].role != "user":
        raise BadRow(where, "the last message of `prompt`", f"role {turns[-1].role!r}", "role 'user'")
    _check_texts(turns, special, where)
    places = sum(kind == "image" for turn in turns for kind, _ in turn.parts)
    if places == 0 and images:
        turns = _with_images_in_front(turns, images)
    elif places != images:
        raise BadRow(where, "image parts in `prompt`", str(places), f"{images}, as many as `images` lists")
    if not any(text.strip() or kind == "image" for turn in turns for kind, text in turn.parts):
        raise BadRow(where, "`prompt`", "nothing but white space", "text or an image")
    return tuple(turns)


def _turns(given: Any, where: str) -> list[Turn]:
    expected = 'text, or a list of messages {"role": ..., "content": ...}'
    if given is None:
        raise BadRow(where, "`prompt`", "nothing", expected)
    if not isinstance(given, list):
        raise BadRow(where, "`prompt`", type(given).__name__, expected)
    if not given:
        raise BadRow(where, "`prompt`", "an empty list", "at least one message")
    messages = cast("list[Any]", given)
    return [_turn(message, f"message {number}", where) for number, message in enumerate(messages, start=1)]


def _turn(message: Any, which: str, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise BadRow(where, which, type(message).__name__, 'an object {"role": ..., "content": ...}')
    fields = _given(cast("Mapping[str, Any]", message))
    unknown = set(fields) - {"role", "content"}
    if unknown:
        raise BadRow(where, which, f"the key {min(unknown)!r}", "only role and content")
    role, content = fields.get("role"), fields.get("content")
    if role not in ROLES:
        raise BadRow(where, f"the role of {which}", repr(role), f"one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return Turn(role=role, parts=(("text", content),))
    if not isinstance(content, list) or not content:
        got = "nothing" if content is None else repr(content)[:80]  # pyright: ignore[reportUnknownArgumentType]
        raise BadRow(where, f"the content of {which}", got, "text or a list of parts")
    parts = tuple(_part(part, role, which, where) for part in cast("list[Any]", content))
    return Turn(role=role, parts=parts)


def _part(part: Any, role: str, which: str, where: str) -> Part:
    expected = '{"type": "text", "text": ...} or {"type": "image"}'
    if not isinstance(part, Mapping):
        raise BadRow(where, f"a part of {which}", type(part).__name__, expected)
    fields = _given(cast("Mapping[str, Any]", part))
    match fields:
        case {"type": "text", "text": str(text)} if len(fields) == 2:
            return ("text", text)
        case {"type": "image"} if len(fields) == 1 and role == "user":
            return ("image", "")
        case {"type": "image"} if len(fields) == 1:
            raise BadRow(
                where, f"a part of {which}", f"an image said by {role!r}", "images only from the user"
            )
        case {"type": "image"} | {"type": "image_url"}:
            fix = 'List pictures in the column `images` and write {"type": "image"} where each belongs'
            raise BadRow(where, f"a part of {which}", "an image inside the part", '{"type": "image"}', fix)
        case _:
            raise BadRow(where, f"a part of {which}", repr(dict(fields))[:80], expected)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the nulls that a columnar file fills in for keys that other rows have."""
    return {key: value for key, value in fields.items() if value is not None}


def _check_texts(turns: Sequence[Turn], special: Collection[str], where: str) -> None:
    for turn in turns:
        for _, text in turn.parts:
            check_unicode(text, "`prompt`", where)
            for token in PLACEHOLDERS:
                if token in text:
                    fix = 'Leave it out, or write a part {"type": "image"} in its place'
                    raise BadRow(where, "text in `prompt`", f"the placeholder {token}", "plain text", fix)
            for token in special:
                if token in text:
                    fix = "It would not be read as text; remove it or write it differently"
                    got = f"{token}, a special token of the model"
                    raise BadRow(where, "text in `prompt`", got, "plain text", fix)


def check_unicode(text: str, what: str, where: str) -> None:
    """Raises BadRow for a lone surrogate or NUL: neither can be encoded, stored or tokenised faithfully."""
    if "\0" in text:
        raise BadRow(where, what, "a NUL character", "text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"the lone surrogate U+{ord(text[error.start]):04X}"
        raise BadRow(where, what, got, "text that can be encoded as UTF-8") from None


def _with_images_in_front(turns: list[Turn], images: int) -> list[Turn]:
    first = next(index for index, turn in enumerate(turns) if turn.role == "user")
    picture: Part = ("image", "")
    pictures = (picture,) * images
    turn = Turn(role="user", parts=pictures + turns[first].parts)
    return [*turns[:first], turn, *turns[first + 1 :]]
