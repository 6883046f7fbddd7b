"""Videos and sounds through the gateway, its decoders and real vLLM on CPU, held against transformers."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from pipelines.worlds.glyphs import BASE_MODEL
from serving.checkpoint import Servable, find_servable
from serving.gateway.admission import Admission, Held
from serving.gateway.gateway import build
from serving.gateway.metrics import Metrics
from serving.gateway.schema import MediaPart
from serving.gateway.stub import StubBackend
from serving.limits import Limits
from serving.media import MediaPool, clean
from serving.settings import LoadSettings, MediaSettings, Settings
from serving.wire import Capabilities, Routing
from tests import hearing_model

pytestmark = pytest.mark.timeout(900)

RATE = 2  # frames per second, at which engines of this family sample
HZ = 16_000
NEW = 16  # tokens
TOLERANCE = 2e-3  # nats: two implementations in float32
VIDEO = 2  # the processor's type of a video's tokens


@dataclass(frozen=True)
class Served:
    """A gateway over two real replicas: "sees" takes images and videos, "hears" takes sounds."""

    app: FastAPI
    pool: MediaPool
    folders: dict[str, Path]

    def post(self, model: str, *media: dict[str, Any]) -> httpx.Response:
        content = [*media, {"type": "text", "text": "describe the image ."}]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": NEW,
            "temperature": 0,
            "logprobs": True,
        }

        async def posted() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as connection:
                return await connection.post("/v1/chat/completions", json=body, timeout=120)

        return asyncio.run(posted())

    def answer(self, model: str, *media: dict[str, Any]) -> Said:
        response = self.post(model, *media)
        assert response.status_code == 200, response.text
        body = response.json()
        entries = body["choices"][0]["logprobs"]["content"]
        return Said(body["usage"]["prompt_tokens"], [entry["logprob"] for entry in entries])

    def cleaned(self, kind: Any, url: str) -> bytes:
        """What an engine gets in place of a client's medium."""
        part = MediaPart(kind=kind, url=url, param="here")
        held = Held(Admission(LoadSettings(), Metrics()))
        [clean_url] = asyncio.run(clean([part], held, limits=Limits(), pool=self.pool))
        return base64.b64decode(clean_url.partition(",")[2])


@dataclass(frozen=True)
class Said:
    prompt_tokens: int
    logprobs: list[float]  # of the greedy answer


class Replicas(StubBackend):
    """Real replicas, without a conductor."""

    def __init__(self, handles: dict[str, Any]) -> None:
        super().__init__()
        self._handles = handles

    async def answer(self, slot: str, kind: Any, body: dict[str, Any], request_id: str) -> Any:
        handle = self._handles[body["model"]]
        async for some in handle.options(stream=True).answers.remote(kind, body, request_id):
            for item in some:
                yield item

    async def routing(self, model: str | None) -> Routing | None:
        return Routing(model=str(model), stable="v-tested")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import ray
    from ray import serve

    from actors.placement import start_on_loopback
    from serving.replicas.engine_settings import environment

    before = dict(os.environ)
    os.environ.update(environment())
    folders = {"sees": Path(BASE_MODEL), "hears": hearing_model.write(tmp_path_factory.mktemp("hears"))}
    models = [find_servable(folder, name) for name, folder in folders.items()]
    start_on_loopback(num_cpus=4, log_to_driver=False)
    pool = MediaPool(MediaSettings(decoders=1), Limits())
    try:
        serve.start(proxy_location="Disabled")
        app = build(
            Settings(),
            Replicas(_started(models)),
            clean=partial(clean, limits=Limits(), pool=pool),
            capabilities={model.name: Capabilities(media=model.media) for model in models},
        )
        yield Served(app, pool, folders)
        serve.shutdown()
    finally:
        pool.close()
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _started(models: Sequence[Servable]) -> dict[str, Any]:
    """Handles, by the models' names."""
    from ray import serve

    from serving.replicas.integrity import version_of
    from serving.replicas.replica import deployment

    targets = [
        serve.RunTarget(
            target=deployment(model, slot="stable", version=version_of(model.path)),
            name=model.name,
            route_prefix=None,
        )
        for model in models
    ]
    return {model.name: handle for model, handle in zip(models, serve.run_many(targets), strict=True)}


def film(*colours: tuple[int, int, int]) -> dict[str, Any]:
    """A square of each colour in turn, two frames of it."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "4"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for colour in colours:
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[8:24, 8:24] = colour
            for _ in range(2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return {"type": "video_url", "video_url": {"url": _data_url("video/mp4", out.getvalue())}}


def tone(hertz: float, seconds: float = 1.0, rate: int = HZ) -> dict[str, Any]:
    out = io.BytesIO()
    times = np.arange(int(seconds * rate)) / rate
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes((np.sin(2 * np.pi * hertz * times) * 20_000).astype("<i2").tobytes())
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(out.getvalue()).decode(), "format": "wav"},
    }


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def test_what_is_said_of_a_video_depends_on_every_frame_and_on_their_order(served: Served) -> None:
    films = [film(RED, GREEN, BLUE), film(BLUE, GREEN, RED), film(RED, GREEN, WHITE)]
    answers = [served.answer("sees", one) for one in films]
    assert len({tuple(one.logprobs) for one in answers}) == len(answers)
    assert len({one.prompt_tokens for one in answers}) == 1
    assert served.answer("sees", films[0]) == answers[0]

    longer = served.answer("sees", film(RED, GREEN, BLUE, WHITE))
    assert longer.prompt_tokens == answers[0].prompt_tokens + 16  # of a patch grid of 4 x 4


def test_a_video_is_read_as_by_transformers(served: Served) -> None:
    """With text after a video numbered as Qwen's own code and vLLM do; see `_positions`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    sent = film(RED, GREEN, BLUE, WHITE)
    frames = _frames(served.cleaned("video", sent["video_url"]["url"]))
    assert len(frames) == 8
    processor: Any = AutoProcessor.from_pretrained(served.folders["sees"])
    text = _prompt(processor, "video")
    inputs = processor(text=[text], videos=[frames], video_metadata=[_metadata(frames)], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(served.folders["sees"], dtype="float32").eval()
    expected = _greedy_at(model, inputs, _positions(model, inputs))
    answer = served.answer("sees", sent)
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.logprobs == pytest.approx(expected, abs=TOLERANCE)


def test_a_sound_is_heard_as_by_transformers(served: Served) -> None:
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    processor: Any = AutoProcessor.from_pretrained(served.folders["hears"])
    model = Qwen2AudioForConditionalGeneration.from_pretrained(served.folders["hears"], dtype="float32")
    answers = []
    for sent in (tone(440), tone(880), tone(440, seconds=2)):
        url = f"data:audio/wav;base64,{sent['input_audio']['data']}"
        with wave.open(io.BytesIO(served.cleaned("audio", url))) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / np.float32(2**15)
        inputs = processor(
            text=[_prompt(processor, "audio")], audio=[samples], sampling_rate=HZ, return_tensors="pt"
        )
        answers.append(served.answer("hears", sent))
        assert answers[-1] == _greedy(model, inputs)
    assert len({tuple(one.logprobs) for one in answers}) == len(answers)


def test_sounds_of_other_rates_are_heard_in_full(served: Served) -> None:
    lengths = {served.answer("hears", tone(440, rate=rate)).prompt_tokens for rate in (8_000, HZ, 44_100)}
    assert len(lengths) == 1


def test_a_sound_without_room_for_one_feature_is_refused_in_words(served: Served) -> None:
    response = served.post("hears", tone(440, seconds=0.001))
    assert response.status_code == 400
    assert "too short" in response.json()["error"]["message"]


def test_media_that_a_model_does_not_take_are_refused_by_name(served: Served) -> None:
    sound = served.post("sees", tone(440))
    assert sound.status_code == 400
    error = sound.json()["error"]
    assert error["param"] == "messages[0].content[0].input_audio.data"
    assert '"sees" takes no audio; it takes text, image, video.' in error["message"]
    video = served.post("hears", film(RED))
    assert '"hears" takes no video; it takes text, audio.' in video.json()["error"]["message"]


def _prompt(processor: Any, kind: str) -> str:
    content = [{"type": kind}, {"type": "text", "text": "describe the image ."}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _greedy(model: Any, inputs: Any) -> Any:
    """The same of transformers' own forward."""
    import torch

    with torch.inference_mode():
        made = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    length = inputs["input_ids"].shape[1]
    values = [
        logits[0].log_softmax(-1)[token].item()
        for logits, token in zip(made.logits, made.sequences[0, length:], strict=True)
    ]
    return Said(length, pytest.approx(values, abs=TOLERANCE))


def _frames(data: bytes) -> NDArray[np.uint8]:
    """[frames, height, width, 3]"""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _metadata(frames: NDArray[np.uint8]) -> dict[str, Any]:
    count = len(frames)
    return {
        "fps": RATE,
        "duration": count / RATE,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
    }


def _positions(model: Any, inputs: Any) -> Any:
    """[3, 1, tokens]: after a video transformers 5.19 goes on from its height and width, the others from the
    latest position, which may be that of its last frames."""
    found, _ = model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"],
        attention_mask=inputs["attention_mask"],
    )
    after = int((inputs["mm_token_type_ids"][0] == VIDEO).nonzero().max()) + 1
    found[:, :, after:] += found[:, :, :after].max() + 1 - found[0, 0, after]
    return found


def _greedy_at(model: Any, inputs: Any, positions: Any) -> list[float]:
    """Log-probabilities of the greedy answer, each from a forward over all tokens before it."""
    import torch

    seen = dict(inputs)
    values: list[float] = []
    for _ in range(NEW):
        with torch.inference_mode():
            logps = model(**seen, position_ids=positions).logits[0, -1].log_softmax(-1)
        best = logps.argmax()
        values.append(float(logps[best]))
        if best == model.config.text_config.eos_token_id:
            break
        positions = torch.cat([positions, positions[:, :, -1:] + 1], dim=2)
        added = {"input_ids": best, "attention_mask": torch.tensor(1), "mm_token_type_ids": torch.tensor(0)}
        seen |= {name: torch.cat([seen[name], value.view(1, 1)], dim=1) for name, value in added.items()}
    return values
