"""One real server with two models: the byte-level checkpoint that writes, and as one that embeds."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests import byte_model
from tests.serving.endpoint import PLUMBLINE, ROOT, Endpoint, serving

pytestmark = pytest.mark.timeout(900)  # the first test waits for both engines

MAX_TOKENS = 256
CONTEXT = 1024
NOISE = 2e-3  # of an element of a vector of length 1: two implementations in float32
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": {"enum": [1]}, "minItems": 10_000}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in (("get_weather", WEATHER), ("get_time", TIME))
]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
TEXTS = ["apple bird", "ein längerer Satz, byte für byte", "a"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def endpoint(
    byte_checkpoint: Path, registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("serve")
    written = {"engine": {"tools": "hermes", "context": CONTEXT}, "target": str(byte_checkpoint)}
    embedded = {"engine": {"task": "embed"}, "target": str(byte_checkpoint), "registry": str(registry)}
    settings = {"models": {"writer": written, "vectors": embedded}, "limits": {"max_tokens": MAX_TOKENS}}
    (folder / "server.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    with serving(str(folder / "server.yaml"), errors=folder / "stderr") as started:
        yield started


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with endpoint.client() as client:
        yield client


def asked(text: str = "apple bird", **more: Any) -> dict[str, Any]:
    return {"model": "writer", "messages": [{"role": "user", "content": text}], **more}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "wanted", "schema": schema, "strict": True}}


def states(folder: Path, text: str) -> torch.Tensor:
    """Last hidden states [tokens][64], each scaled to length 1: computed without vLLM, in 32 bits."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).last_hidden_state[0]
    return found / found.norm(dim=-1, keepdim=True)


def gap(vector: list[float], other: torch.Tensor) -> float:
    return float((torch.tensor(vector) - other).abs().max())


def test_both_models_are_listed_and_an_unknown_one_is_not_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["writer", "vectors"]
    assert client.models.retrieve("vectors").id == "vectors"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**asked(), "model": "nobody"})
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="a")


def test_each_model_answers_its_own_and_says_so_otherwise(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(**asked(temperature=0)).choices[0].message.content
    assert said is not None and said.startswith("You said ")
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(**{**asked(), "model": "vectors"})
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.completions.create(model="vectors", prompt="a")
    with pytest.raises(openai.BadRequestError, match="/v1/chat/completions"):
        client.embeddings.create(model="writer", input="a")


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept_to(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(**asked(seed=seed, response_format=form(PERSON)))
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


def test_a_schema_is_kept_to_in_a_stream(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(**asked(seed=7, response_format=form(PERSON), stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    jsonschema.validate(json.loads(text), PERSON)


def test_any_json_object_and_a_schema_that_is_none(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**asked("apple json", response_format={"type": "json_object"}))
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked(response_format=form({"type": "nonsense"})))
    assert caught.value.status_code == 400


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("seed", range(2))
def test_tools_are_called_as_they_are_declared(client: openai.OpenAI, choice: Any, seed: int) -> None:
    answer = client.chat.completions.create(**asked(tools=TOOLS, tool_choice=choice, seed=seed))
    calls = answer.choices[0].message.tool_calls or []
    assert calls
    for call in calls:
        check(call.function.name, call.function.arguments)
    if choice is NAMED:
        assert [call.function.name for call in calls] == ["get_weather"]


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_tool_calls_in_a_stream(client: openai.OpenAI, choice: Any) -> None:
    calls, _ = streamed(client, asked(tools=TOOLS, tool_choice=choice, seed=3))
    assert calls
    for name, arguments in calls:
        check(name, arguments)


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}], ids=["left out", "auto"])
def test_who_has_learned_to_calls_a_tool_unasked(client: openai.OpenAI, choice: dict[str, str]) -> None:
    """No grammar here: the tags and the JSON are the model's own."""
    question = asked(tools=[byte_model.WEATHER], temperature=0, **choice)
    answer = client.chat.completions.create(**question).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert not answer.message.content
    [call] = answer.message.tool_calls or []
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in byte_model.CITIES
    assert streamed(client, question) == ([("get_weather", call.function.arguments)], "")


def test_without_tools_it_answers_in_words_and_there_is_nothing_to_choose(client: openai.OpenAI) -> None:
    for choice in ({}, {"tool_choice": "none"}):
        calls, text = streamed(client, asked(temperature=0, **choice))
        assert not calls and text.startswith("You said ")
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(**asked(tool_choice="auto"))


def streamed(client: openai.OpenAI, question: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """The calls (name, arguments) and the text that a stream's chunks amount to."""
    calls: dict[int, tuple[str, str]] = {}
    text = ""
    for chunk in client.chat.completions.create(**question, stream=True):
        for delta in (choice.delta for choice in chunk.choices):
            text += delta.content or ""
            for call in delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                more = call.function
                calls[call.index] = name + (more.name or ""), arguments + (more.arguments or "")
    return list(calls.values()), text


def check(name: str, arguments: str) -> None:
    jsonschema.validate(json.loads(arguments), {"get_weather": WEATHER, "get_time": TIME}[name])


def test_the_result_of_a_call_goes_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**asked(tools=TOOLS, tool_choice=NAMED, seed=1)).choices[0].message
    assert first.tool_calls
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"}
    messages: Any = [*asked()["messages"], first, result]
    answer = client.chat.completions.create(
        model="writer", messages=messages, tools=TOOLS, tool_choice="none"
    )
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls


@pytest.mark.parametrize("text", ["a", "a" * (CONTEXT - 150)], ids=["limit", "context"])
def test_who_asks_for_no_number_of_tokens_gets_the_limit_or_the_rest_of_the_context(
    client: openai.OpenAI, text: str
) -> None:
    answer = client.chat.completions.create(**asked(text, response_format=form(ENDLESS)))
    assert answer.usage is not None and answer.choices[0].finish_reason == "length"
    rest = CONTEXT - answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == min(MAX_TOKENS, rest)


def test_vectors_are_what_transformers_computes(client: openai.OpenAI, byte_checkpoint: Path) -> None:
    """The last token's state, normalised; as the client's base64, as numbers, and of token ids."""
    answer = client.embeddings.create(model="vectors", input=TEXTS)
    assert [item.index for item in answer.data] == [0, 1, 2] and answer.model == "vectors"
    assert answer.usage.prompt_tokens == sum(len(text.encode()) for text in TEXTS)
    for text, item in zip(TEXTS, answer.data, strict=True):
        *before, last = states(byte_checkpoint, text)
        assert torch.tensor(item.embedding).norm() == pytest.approx(1, abs=1e-3)
        assert gap(item.embedding, last) < NOISE
        assert all(gap(item.embedding, other) > 2 * NOISE for other in before[:-1])
    (numbers,) = client.embeddings.create(model="vectors", input="a", encoding_format="float").data
    assert numbers.embedding == pytest.approx(answer.data[2].embedding, abs=NOISE)
    (ids,) = client.embeddings.create(model="vectors", input=[ord("a") - ord("!")]).data
    assert ids.embedding == pytest.approx(numbers.embedding, abs=NOISE)


@pytest.mark.parametrize(
    "body",
    [{"dimensions": 7}, {"input": ["a", ""]}, {"input": "a" * 3000}],
    ids=["dimensions", "empty", "long"],
)
def test_a_text_that_cannot_be_embedded_is_the_clients_error(client: openai.OpenAI, body: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(**{"model": "vectors", "input": "a", **body})
    assert client.embeddings.create(model="vectors", input="a").data


def test_a_promotion_reaches_the_embedding_model_alone(
    endpoint: Endpoint, client: openai.OpenAI, byte_checkpoint: Path, registry: Path, tmp_path: Path
) -> None:
    """The last test that reads vectors: it changes them, live and proved."""
    other = tmp_path / "other"
    shutil.copytree(byte_checkpoint, other)
    moved = {name: tensor * 1.1 for name, tensor in load_file(other / "model.safetensors").items()}
    moved["model.embed_tokens.weight"] += 0.05
    save_file(moved, other / "model.safetensors", metadata={"format": "pt"})
    before = client.chat.completions.create(**asked()).system_fingerprint
    command = [
        *PLUMBLINE,
        "promote",
        str(other),
        "--registry",
        str(registry),
        "--force",
        "--reason",
        "a test",
    ]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300)

    expected, until = states(other, TEXTS[0])[-1], time.monotonic() + 60
    assert gap(expected.tolist(), states(byte_checkpoint, TEXTS[0])[-1]) > 4 * NOISE
    while True:
        (item,) = client.embeddings.create(model="vectors", input=TEXTS[0]).data
        if gap(item.embedding, expected) < NOISE:
            break
        assert time.monotonic() < until, endpoint.request("/v1/versions")
        time.sleep(0.2)
    assert client.chat.completions.create(**asked()).system_fingerprint == before
