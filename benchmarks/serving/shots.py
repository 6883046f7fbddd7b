"""Requests to throw at a gateway: bad rows with the status that each must get, mutants, schemathesis' own.

Nothing here knows how requests travel; a shot is a method, a path, headers and bytes.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

JSON = {"content-type": "application/json"}
CHAT, COMPLETION, EMBEDDING, FEEDBACK = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/feedback",
)
MODEL = "stub"
TOKENS = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<image>", "<|endoftext|>", "[INST]", "</s>"]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One request. `expected`: the statuses that are right; empty: any documented one."""

    label: str
    path: str
    method: str = "POST"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    expected: tuple[int, ...] = ()


def chat(content: Any = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def media(kind: str, url: str) -> dict[str, Any]:
    """A chat with one medium."""
    return chat([{"type": "text", "text": "what is it?"}, {"type": kind, kind: {"url": url}}])


def valid() -> list[tuple[str, dict[str, Any]]]:
    """Requests that are answered, with every field that the schema knows."""
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    tool = {"type": "function", "function": function}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    conversation = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": [{"type": "text", "text": "be kind"}], "name": "d"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    named = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 8,
        "n": 2,
        "seed": -1,
        "stop": ["a"],
        "user": "u",
    }
    penalties = {"frequency_penalty": 1, "presence_penalty": -1.5, "logit_bias": {"5": 3}}
    return [
        (CHAT, chat()),
        (CHAT, chat(**sampling, **penalties, logprobs=True, top_logprobs=2)),
        (CHAT, chat(stream=True, stream_options={"include_usage": True}, max_completion_tokens=3)),
        (CHAT, {"model": MODEL, "messages": conversation, "tools": [tool], "tool_choice": "required"}),
        (CHAT, chat(tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}})),
        (CHAT, chat(response_format=named, parallel_tool_calls=False)),
        (CHAT, chat(response_format={"type": "json_object"})),
        (COMPLETION, {"model": MODEL, "prompt": ["a", "b"], "echo": True, "logprobs": 1, **sampling}),
        (COMPLETION, {"model": MODEL, "prompt": [[1, 2], [3]], "stream": True}),
        (COMPLETION, {"model": MODEL, "prompt": "a", "echo": True, "max_tokens": 0, "logprobs": 1}),
        (EMBEDDING, {"model": MODEL, "input": ["a", "b"], "encoding_format": "float"}),
        (FEEDBACK, {"kind": "rating", "id": "chatcmpl-" + "0" * 32, "rating": 1, "comment": "good"}),
    ]


def rows() -> list[Shot]:
    """The bad-input matrix, as far as a request can carry it, without bombs in media."""
    return [*_bytes(), *_fields(), *_names(), *_http(), *_typed_tokens(), *_large()]


def media_rows() -> list[Shot]:
    """The media of the corpus, bombs included; for a server that decodes."""
    from benchmarks.serving.corpus import items

    return [
        _shot(f"media {item.name}", media(f"{item.kind}_url", item.url), 200 if item.says is None else 400)
        for item in items()
    ]


def _shot(label: str, body: Any, *expected: int, path: str = CHAT, **headers: str) -> Shot:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Shot(label=label, path=path, body=raw, headers={**JSON, **headers}, expected=expected)


def _bytes() -> Iterator[Shot]:
    text = json.dumps(chat("X")).encode()
    for label, body in {
        "empty": b"",
        "truncated": text[:-5],
        "byte order mark": b"\xef\xbb\xbf" + text,
        "UTF-16": text.decode().encode("utf-16"),
        "not UTF-8": text.replace(b"X", b"\xff\xfe"),
        "raw NUL": text.replace(b"X", b"\0"),
        "escaped NUL": text.replace(b"X", b"\\u0000"),
        "NUL in a key": text.replace(b'"model"', b'"model\\u0000"'),
        "lone surrogate": text.replace(b"X", b"\\ud800"),
        "reversed pair": text.replace(b"X", b"\\udc00\\ud800"),
        "duplicate key": text[:-1] + b', "model": "stub"}',
        "duplicate key within": text.replace(b'"role": "user"', b'"role": "user", "role": "system"'),
        "trailing text": text + b"x",
        "a list": b"[" + text + b"]",
        "a comment": b"// hello\n" + text,
        "deep lists": b"[" * 50_000,
        "deep objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        "many values": b'{"a":[' + b"0," * 300_000 + b"0]}",
        "many objects": b'{"messages":[' + b"{}," * 200_000 + b"{}]}",
        "long number": b'{"model":"stub","seed":' + b"7" * 10_000 + b"}",
        **{
            f"number {n}": text[:-1] + f', "temperature": {n}}}'.encode()
            for n in ("NaN", "Infinity", "1e400")
        },
    }.items():
        yield _shot(label, body, 400)


def _fields() -> Iterator[Shot]:
    wrong: dict[str, list[Any]] = {
        "n": [0, -1, 9, 10**9, 10**30, 1.5, True, "1", []],
        "max_tokens": [0, -5, 10**9, 2**63, "8"],
        "max_completion_tokens": [0, 10**12],
        "temperature": [-0.1, 2.1, 1e308, "hot", [1]],
        "top_p": [0, 1.1, -1],
        "frequency_penalty": [3, "x"],
        "logprobs": [1, "true"],
        "top_logprobs": [5, 21, 10**9],
        "logit_bias": [{"a": 1}, {"-1": 1}, {"1": 1000}, {str(i): 0 for i in range(500)}],
        "seed": [2**64, 0.5],
        "stop": ["", [""], ["a"] * 17, [3], "x" * 300],
        "user": [5, "x" * 600],
        "stream": ["yes", 1],
        "stream_options": [{"include_usage": True}, {"other": 1}],
        "tools": [[{}], [{"type": "retrieval"}], "x", [_tool("f g")], [_tool(f"f{i}") for i in range(65)]],
        "tool_choice": ["required", "any", {"type": "function", "function": {"name": "g"}}],
        "response_format": [
            "json",
            {"type": "xml"},
            {"type": "json_schema"},
            _schema({"$ref": "https://example.org/s.json"}),
            _schema({"$ref": "file:///etc/passwd"}),
            _schema({"enum": ["x" * 70_000]}),
        ],
        "plumbline": ["x", [], {"unknown": 1}],
        "model": [None, 5, ""],
        "messages": [None, [], "hi", [None], [{}], [{"role": "root", "content": ""}], [{"role": "user"}]],
    }
    for name, values in wrong.items():
        for value in values:
            yield _shot(f"{name} {str(value)[:20]}", chat() | {name: value}, 400)
    for name in (
        "chat_template",
        "chat_template_kwargs",
        "prompt_embeds",
        "mm_processor_kwargs",
        "guided_json",
        "guided_regex",
        "structured_outputs",
        "top_k",
        "min_p",
        "ignore_eos",
        "add_generation_prompt",
        "kv_transfer_params",
        "vllm_xargs",
        "cache_salt",
        "priority",
        "prompt_logprobs",
        "return_token_ids",
        "truncate_prompt_tokens",
        "documents",
        "functions",
        "__class__",
        "",
    ):
        yield _shot(f"field {name}", chat() | {name: {"a": 1}}, 400)
    for name in ("uuid", "image_embeds", "path"):
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}, name: "x"}
        yield _shot(f"part {name}", chat([part]), 400)
    for prompt in ("", [], [[]], [1, "a"], [-1], [2**40], [[1], "a"], None, {"a": 1}, ["x"] * 300):
        yield _shot(
            f"prompt {str(prompt)[:20]}", {"model": MODEL, "prompt": prompt}, 400, 200, path=COMPLETION
        )


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def _names() -> Iterator[Shot]:
    names = [
        "../x",
        "/etc/passwd",
        "%2e%2e/x",
        "stub/../stub",
        "Stub",
        "stub ",
        " stub",
        "\u0455tub",
        "x" * 4096,
        ".",
    ]
    for name in names:
        yield _shot(f"model {name[:12]}", chat() | {"model": name}, 404)
    for path in (
        "/v1/models/..%2f..%2fetc",
        "/v1/models/%00",
        "/v1/models/" + "x" * 4000,
        "/v1/models/%F0%28",
    ):
        yield Shot(label=f"path {path[:24]}", method="GET", path=path, expected=(404,))


def _http() -> Iterator[Shot]:
    for path in (
        "/pause",
        "/update_weights",
        "/invocations",
        "/collective_rpc",
        "/docs",
        "/tokenize",
        "/v1",
        "/.env",
    ):
        yield Shot(label=f"route {path}", path=path, body=b"{}", expected=(404,))
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        yield Shot(label=f"method {method}", method=method, path=CHAT, expected=(405,))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        yield _shot(f"type {kind}", chat(), 415, **{"content-type": kind})
    yield _shot("gzip", chat(), 415, **{"content-encoding": "gzip"})
    yield _shot("host", chat(), 403, host="evil.example")
    yield _shot("request id", chat(), 200, **{"x-request-id": "a" * 5000})
    yield _shot("key in a field", chat() | {"api_key": "sk-x"}, 400)


def _typed_tokens() -> Iterator[Shot]:
    for token in TOKENS:
        yield _shot(f"token {token}", chat(f"a {token} b"), 200)


def _large() -> Iterator[Shot]:
    yield _shot("long text", chat("x" * 250_000), 400)
    yield _shot("many messages", {"model": MODEL, "messages": [{"role": "user", "content": "a"}] * 300}, 400)
    yield _shot("large body", chat("x" * (33 * 2**20)), 413)


NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**9), 0.5, 1e308, -1e-308, "", " ", "a" * 3000,
    "\0", "\ud800", "\u202e", "ﷺ" * 50, "../../etc/passwd", "%s%n%x", "{{7*7}}", "${jndi:ldap://x}",
    "<script>", "'; --", "data:,", "data:image/png;base64,", "file:///etc/passwd", "http://169.254.169.254/",
    "http://[::1]/", [], {}, [[]], {"": ""}, [None], {"type": "text"}, {"$ref": "#"}, ["a", 1, None], *TOKENS,
]  # fmt: skip


def mutants(random_: random.Random) -> Iterator[Shot]:
    """Valid requests with up to three things wrong in them, without end."""
    bases = valid()
    while True:
        path, base = random_.choice(bases)
        body = json.loads(json.dumps(base))
        for _ in range(random_.randint(0, 3)):
            _mutate(body, random_)
        raw = json.dumps(body, ensure_ascii=random_.random() < 0.5).encode("utf-8", "surrogatepass")
        if random_.random() < 0.2:
            raw = _damaged(raw, random_)
        yield Shot(label="mutant", path=path, body=raw)


def _mutate(value: Any, random_: random.Random) -> None:
    """Change one place somewhere inside, in place."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys or random_.random() < 0.1:
            break
        key = random_.choice(keys)
        if isinstance(value[key], (dict, list)) and random_.random() < 0.7:
            value = value[key]
            continue
        if random_.random() < 0.2:
            del value[key]
        else:
            value[key] = copy.deepcopy(random_.choice(NASTY))
        return
    if isinstance(value, dict):
        value[random_.choice(["x", "chat_template", "stream", "n", "\0", "type", "url"])] = copy.deepcopy(
            random_.choice(NASTY)
        )
    else:
        value.append(copy.deepcopy(random_.choice(NASTY)))


def _damaged(raw: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(raw))
    kind = random_.randrange(4)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + bytes([random_.randrange(256)]) + raw[at + 1 :]
    if kind == 2:
        return raw[:at] + random_.choice([b"\0", b"\\u0000", b"\\ud800", b"NaN", b"[" * 200]) + raw[at:]
    return raw + raw[at:]


def schema_shots(document: dict[str, Any], seed: int, count: int) -> list[Shot]:
    """What schemathesis makes of our own description: `count` requests, to the letter and against it."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from schemathesis import GenerationMode

    operations = [one.ok() for one in schemathesis.openapi.from_dict(document).get_all_operations()]
    posts = [one for one in operations if one.method.upper() == "POST"]
    found: list[Shot] = []
    options = settings(
        max_examples=-(-count // (2 * len(posts))),
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    for operation in posts:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            def collect(case: Any) -> None:
                found.append(_of_case(case, f"schema {mode.value}", len(found) % 2 == 0))  # noqa: B023 (called at once)

            seeded(seed)(options(given(case=operation.as_strategy(generation_mode=mode))(collect)))()
    return found[:count]


def _of_case(case: Any, label: str, known_model: bool) -> Shot:
    arguments = case.as_transport_kwargs(base_url="http://127.0.0.1")
    body = arguments.get("json", arguments.get("data"))
    if known_model and isinstance(body, dict) and "model" in body:
        body = body | {"model": MODEL}  # a made-up name is refused before anything else is looked at
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {k.lower(): v for k, v in arguments["headers"].items() if k.lower() == "content-type"}
    return Shot(label=label, path=case.formatted_path, body=raw, headers=sent)
