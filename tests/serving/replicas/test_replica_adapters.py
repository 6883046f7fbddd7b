"""One real server (Ray Serve, vLLM on CPU): a base and three adapters of it, side by side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.ports import free_port
from pipelines.settings import LoraSettings
from pipelines.worlds.glyphs import BASE_MODEL

pytestmark = pytest.mark.timeout(900)

CANARY = "describe the image ."
CLOSE = 1e-3  # nats, of a sum over a prompt; vLLM and Hugging Face in float32


@dataclass(frozen=True)
class Endpoint:
    url: str
    proof: dict[str, Any]
    handle: Any  # of the replica

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


def adapted(seed: int, rank: int, spread: float) -> Any:
    """The base with a LoRA adapter whose B has this standard deviation."""
    import torch
    from transformers import AutoModelForImageTextToText

    from actors.training import add_adapter

    model = AutoModelForImageTextToText.from_pretrained(BASE_MODEL, dtype=torch.float32)
    model = add_adapter(model, LoraSettings(rank=rank, alpha=2 * rank), seed, True)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, spread)
    return model


def run_of_ours(folder: Path) -> Path:
    """A run folder whose checkpoint holds an adapter, as a learner writes it."""
    from peft import get_peft_model_state_dict

    from actors import checkpoints, exporting

    model = adapted(seed=1, rank=4, spread=0.05)
    factors = {name: tensor.numpy() for name, tensor in get_peft_model_state_dict(model).items()}
    partial = checkpoints.begin(folder, 3)
    base = checkpoints.weights_digest(Path(BASE_MODEL))
    exporting.write_adapter(partial / "adapter", factors, model, base)
    checkpoints.commit(folder, 3, 1, {"ledger": {}})
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run's own, one of another rank behind a URL, and one that was never trained."""
    folder = tmp_path_factory.mktemp("adapters")
    adapted(seed=2, rank=9, spread=0.05).save_pretrained(str(folder / "remote"))
    adapted(seed=3, rank=4, spread=0.0).save_pretrained(str(folder / "blank"))
    return {
        "short": str(run_of_ours(folder / "run")),
        "remote": (folder / "remote").as_uri(),
        "blank": str(folder / "blank"),
    }


@pytest.fixture(scope="module")
def endpoint(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    from ray import serve

    from serving.app import APPLICATION, running
    from serving.served import find
    from serving.settings import Settings

    port = free_port()
    before = dict(os.environ)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    models = {"tiny": {"target": str(BASE_MODEL), "adapters": sources}}
    settings = Settings.model_validate({"port": port, "models": models})
    try:
        with running(find(None, settings), settings) as server:
            handle = serve.get_deployment_handle("tiny--stable", APPLICATION)
            yield Endpoint(url=server.origin, proof=handle.proof.remote().result(), handle=handle)
    finally:
        os.environ.clear()
        os.environ.update(before)


def body(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": CANARY}]
    return {
        "model": model,
        "messages": messages,
        "max_tokens": 16,
        "temperature": 0,
        "logprobs": True,
        **more,
    }


def chat(endpoint: Endpoint, model: str) -> httpx.Response:
    return httpx.post(f"{endpoint.url}/v1/chat/completions", json=body(model), timeout=60)


def spoken(answer: httpx.Response) -> list[tuple[str, float]]:
    assert answer.status_code == 200, answer.text
    entries = answer.json()["choices"][0]["logprobs"]["content"]
    return [(entry["token"], round(entry["logprob"], 3)) for entry in entries]


def merged_canaries(source: Path) -> list[float]:
    """What PEFT's merged model gives for the replica's canaries: a text, and the same after a picture."""
    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from actors.processing import Processing
    from pipelines.types import Media, Message, Part, Prompt

    base = AutoModelForImageTextToText.from_pretrained(BASE_MODEL, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(source)).merge_and_unload()
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[8:24, 8:24, 0] = 255
    media = Media(kind="image", space="rgb8", payload=picture)
    image, words = Part(kind="image", digest=media.digest), Part(kind="text", text=CANARY)
    processing, values = Processing(str(BASE_MODEL)), []
    for parts in ((words,), (image, words)):
        prompt = Prompt(id="canary", messages=(Message(role="user", parts=parts),))
        encoded = processing.encode(prompt, {media.digest: media})
        ids = torch.tensor([list(encoded.input_ids)])
        extra: dict[str, Any] = {}
        if encoded.pixel_values is not None:
            kinds = (ids == processing.image_token).int()
            extra = {"pixel_values": encoded.pixel_values, "image_grid_thw": encoded.image_grid_thw}
            extra["mm_token_type_ids"] = kinds
        with torch.no_grad():
            logits = model(input_ids=ids, **extra).logits[0].float().log_softmax(-1)
        values.append(float(logits[:-1].gather(1, ids[0, 1:, None]).sum()))
    return values


def test_every_name_is_a_model_whose_version_names_base_and_adapter(endpoint: Endpoint) -> None:
    assert [model["id"] for model in endpoint.get("/v1/models")["data"]] == [
        "tiny",
        "short",
        "remote",
        "blank",
    ]
    stable = {route["model"]: route["stable"] for route in endpoint.get("/v1/versions")["routing"]}
    assert len(set(stable.values())) == 4
    assert all(stable[name].startswith(f"{stable['tiny']}+v-") for name in ("short", "remote", "blank"))
    for name, version in stable.items():
        answer = chat(endpoint, name)
        assert (answer.json()["model"], answer.json()["system_fingerprint"]) == (name, version)
        assert answer.headers["x-plumbline-version"] == version
    pinned = body("short", plumbline={"version": stable["tiny"]})
    refused = httpx.post(f"{endpoint.url}/v1/chat/completions", json=pinned, timeout=60)
    assert refused.status_code == 404  # the base's answers are asked for under the base's name


def test_each_says_what_it_says_alone_when_all_are_asked_at_once(endpoint: Endpoint) -> None:
    alone = {name: spoken(chat(endpoint, name)) for name in ("tiny", "short", "remote", "blank")}
    assert alone["blank"] == alone["tiny"]
    assert len({tuple(alone[name]) for name in ("tiny", "short", "remote")}) == 3

    async def together() -> None:
        async with httpx.AsyncClient(base_url=endpoint.url, timeout=120) as client:
            names = [name for name in alone for _ in range(4)]
            asked = [client.post("/v1/chat/completions", json=body(name)) for name in names]
            for name, answer in zip(names, await asyncio.gather(*asked), strict=True):
                assert spoken(answer) == alone[name], name

    asyncio.run(together())


def test_the_proof_agrees_with_the_model_that_peft_merges(
    endpoint: Endpoint, sources: dict[str, str], tmp_path: Path
) -> None:
    proofs = endpoint.proof["adapters"]
    folders = {
        "short": Path(sources["short"]) / "checkpoints" / "step-3" / "adapter",
        "remote": Path(sources["remote"].removeprefix("file://")),
    }
    for name, folder in folders.items():
        elements, canary = proofs[name]["elements"], proofs[name]["canary"]
        assert elements["written"] == elements["elements"] > 0
        assert canary["moved"] > 10 * CLOSE > canary["noise"]
        assert canary["values"] == pytest.approx(merged_canaries(folder), abs=CLOSE)
    assert proofs["blank"]["canary"]["moved"] < CLOSE
    assert endpoint.proof["elements"]["written"] == endpoint.proof["elements"]["elements"] > 0


def test_another_base_does_not_slip_under_the_adapters(endpoint: Endpoint) -> None:
    from serving.wire import Version

    other = Version(id="v-000000000000", path=str(BASE_MODEL), digest="0" * 64)
    standing = endpoint.handle.swap.remote(other).result()
    assert (standing.state, standing.refused) == ("serving", (other.id,))
    assert "adapters" in standing.detail
    assert spoken(chat(endpoint, "short"))
