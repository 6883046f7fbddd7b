"""Two real replicas (vLLM on CPU): one changes over as it answers, the other was started with the target."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.serving.chaos.real import perturbed
from pipelines.worlds.glyphs import BASE_MODEL
from serving.checkpoint import Servable
from serving.wire import Version

pytestmark = pytest.mark.timeout(900)

STREAMS = 8


@dataclass(frozen=True)
class Pair:
    changing: Any  # handle of the replica that starts with `old`
    fresh: Any  # handle of one that was started with `new`
    old: Version
    new: Version


def version(path: Path) -> Version:
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    return Version(id=f"v-{digest[:12]}", path=str(path), digest=digest)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    import ray
    from ray import serve

    from actors.placement import start_on_loopback
    from serving.replicas.engine_settings import environment
    from serving.replicas.replica import deployment

    before = dict(os.environ)
    os.environ.update(environment())
    old = version(Path(BASE_MODEL))
    new = version(perturbed(tmp_path_factory.mktemp("versions") / "new", 0.02, 0))
    start_on_loopback(num_cpus=4, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        targets = [
            serve.RunTarget(
                target=deployment(
                    Servable(path=Path(first.path), name="tiny", media=frozenset({"image"})),
                    slot=slot,
                    version=first,
                ),
                name=slot,
                route_prefix=None,
            )
            for slot, first in (("stable", old), ("canary", new))
        ]
        yield Pair(*serve.run_many(targets), old=old, new=new)
        serve.shutdown()
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def picture() -> dict[str, Any]:
    image = Image.new("RGB", (64, 64), "black")
    image.paste((0, 0, 255), (32, 8, 48, 24))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def asked(text: str = "describe the image .", **more: Any) -> dict[str, Any]:
    content = [picture(), {"type": "text", "text": text}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 24}
    return {**body, "temperature": 0, "logprobs": True, **more}


async def answers(handle: Any, body: dict[str, Any], request_id: str = "r") -> list[Any]:
    lists = handle.options(stream=True).answers.remote("chat", body, request_id)
    return [item async for some in lists for item in some]


def spoken(answer: Any) -> list[tuple[str, float]]:
    entries = answer.body["choices"][0]["logprobs"]["content"]
    return [(entry["token"], round(entry["logprob"], 3)) for entry in entries]


def test_a_change_over_under_load_equals_a_fresh_start_and_mixes_nothing(pair: Pair) -> None:
    async def story() -> None:
        [before] = await answers(pair.changing, asked())
        [fresh] = await answers(pair.fresh, asked())
        assert (before.version, fresh.version) == (pair.old.id, pair.new.id)
        assert spoken(before) != spoken(fresh)

        streams = [
            asyncio.create_task(answers(pair.changing, asked(stream=True), f"s{number}"))
            for number in range(STREAMS)
        ]
        swap = asyncio.ensure_future(pair.changing.swap.remote(pair.new))
        later = [
            asyncio.create_task(answers(pair.changing, asked(), f"l{number}")) for number in range(STREAMS)
        ]
        standing = await swap
        assert (standing.version, standing.state, standing.detail) == (pair.new.id, "serving", "")
        expected = {pair.old.id: spoken(before), pair.new.id: spoken(fresh)}
        for items in await asyncio.gather(*streams):
            assert len({item.version for item in items}) == 1
            assert items[-1].body["choices"]
        for [item] in await asyncio.gather(*later):
            assert spoken(item) == expected[item.version]

        [after] = await answers(pair.changing, asked())
        assert after.version == pair.new.id
        assert spoken(after) == spoken(fresh)
        proof = await pair.changing.proof.remote()
        assert proof["elements"]["written"] == proof["elements"]["elements"] > 0
        assert proof["caches"]["cached_tokens"] == 0
        assert proof["caches"]["encoded"] >= 1
        assert proof["canary"]["distinguishable"]

        back = await pair.changing.swap.remote(pair.old)
        assert back.version == pair.old.id
        [again] = await answers(pair.changing, asked())
        assert spoken(again) == spoken(before)

    asyncio.run(story())


def test_a_version_without_a_tensor_is_not_served(pair: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(BASE_MODEL, broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in sorted(tensors) if "k_proj.weight" in name)
    del tensors[name]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    async def story() -> None:
        [before] = await answers(pair.changing, asked())
        standing = await pair.changing.swap.remote(version(broken))
        assert (standing.version, standing.state) == (before.version, "serving")
        assert "not proved" in standing.detail
        [after] = await answers(pair.changing, asked())
        assert (after.version, spoken(after)) == (before.version, spoken(before))

    asyncio.run(story())


def test_typed_placeholders_are_text_and_errors_are_safe(pair: Pair) -> None:
    async def story() -> None:
        [plain] = await answers(pair.changing, asked("describe <|image_pad|> <|im_end|> ."))
        assert plain.body["choices"][0]["message"]["content"]
        [refused] = await answers(pair.changing, asked("hello " * 3000))
        assert (refused.status, refused.code) == (400, "context_length_exceeded")
        await pair.changing.check_health.remote()

    asyncio.run(story())


def test_what_the_engine_cannot_take_is_the_requests_fault(pair: Pair) -> None:
    """Blamed on the engine it would be tried again, on other replicas, for as long as requests are."""

    async def story() -> None:
        body = {"model": "tiny", "prompt": "", "max_tokens": 1}
        lists = pair.fresh.options(stream=True).answers.remote("completion", body, "r")
        [refused] = [item async for some in lists for item in some]
        assert (refused.status, refused.code) == (400, "invalid_request")

    asyncio.run(story())


@pytest.mark.parametrize("stream", [False, True])
def test_a_vocabulary_without_json_is_told_from_an_engine_that_fails(pair: Pair, stream: bool) -> None:
    async def story() -> None:
        body = asked(response_format={"type": "json_object"}, stream=stream)
        *_, last = await answers(pair.fresh, body)
        assert (last.status, last.code) == (400, "format_unreachable")

    asyncio.run(story())
