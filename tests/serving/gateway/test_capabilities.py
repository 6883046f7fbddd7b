"""What a model cannot do is refused before a replica, a quota or a turn is asked for it."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.types import MediaKind
from serving.wire import Capabilities
from tests.serving.gateways import HELLO, backend, gateway, http, post, run

TOOL = {"type": "function", "function": {"name": "f"}}
CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def refused(can: Capabilities, path: str, body: dict[str, Any]) -> dict[str, Any]:
    behind = backend()
    app = gateway(behind, capabilities={"stub": can})
    answer = run(lambda: post(app, {"model": "stub", **body}, path))
    assert answer.status_code == 400
    assert not any(replica.asked for replica in behind.replicas)
    return answer.json()["error"]


@pytest.mark.parametrize(("path", "body"), [(CHAT, HELLO), (COMPLETION, {"prompt": "a"})])
def test_a_model_that_embeds_writes_nothing(path: str, body: dict[str, Any]) -> None:
    error = refused(Capabilities(task="embed"), path, body)
    assert (error["code"], error["param"]) == ("unsupported_endpoint", "model")
    assert EMBEDDING in error["message"] and error["type"] == "invalid_request_error"


def test_a_model_that_writes_embeds_nothing() -> None:
    error = refused(Capabilities(), EMBEDDING, {"input": "a"})
    assert error["code"] == "unsupported_endpoint" and CHAT in error["message"]


def test_tools_without_a_parser_are_refused() -> None:
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": "required"}, {"tool_choice": "none"}):
        error = refused(Capabilities(), CHAT, {**HELLO, "tools": [TOOL], **choice})
        assert (error["code"], error["param"]) == ("tools_unsupported", "tools")


def test_the_list_of_models_says_what_each_does() -> None:
    async def listed(app: Any) -> Any:
        async with http(app) as connection:
            return (await connection.get("/v1/models")).json()["data"]

    tasks = [Capabilities(), Capabilities(task="embed")]
    apps = [gateway(backend(), capabilities={"stub": can}) for can in tasks] + [gateway(backend())]
    found = [(one["id"], one["task"]) for app in apps for one in run(lambda app=app: listed(app))]
    assert found == [("stub", "generate"), ("stub", "embed"), ("stub", "generate")]


@pytest.mark.parametrize(
    ("can", "path", "body"),
    [
        (Capabilities(), CHAT, HELLO),
        (Capabilities(), CHAT, {**HELLO, "tools": []}),
        (Capabilities(), COMPLETION, {"prompt": "a"}),
        (Capabilities(tools=True), CHAT, {**HELLO, "tools": [TOOL]}),
        (Capabilities(task="embed"), EMBEDDING, {"input": "a"}),
    ],
)
def test_what_a_model_can_do_reaches_it(can: Capabilities, path: str, body: dict[str, Any]) -> None:
    app = gateway(backend(), capabilities={"stub": can})
    assert run(lambda: post(app, {"model": "stub", **body}, path)).status_code == 200


@pytest.mark.parametrize(
    ("media", "taken"),
    [
        (frozenset[MediaKind](), "it takes text. "),
        (frozenset[MediaKind](("video", "image")), "it takes text, image, video. "),
    ],
)
def test_a_medium_is_refused_before_it_is_decoded(media: frozenset[MediaKind], taken: str) -> None:
    sounds = [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
    ]
    for sound in sounds:
        body = {"messages": [{"role": "user", "content": [sound]}]}
        error = refused(Capabilities(media=media), CHAT, body)
        assert error["code"] == "media_unsupported" and error["param"].startswith("messages[0].content[0].")
        assert f'"stub" takes no audio; {taken}' in error["message"]
