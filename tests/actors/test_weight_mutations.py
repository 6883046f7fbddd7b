"""What a faulty weight sync does to a generator: every single fault must be refused.

On the embedded base model one realistic learner step is taken; then, tensor by tensor, a sync withholds that
tensor or delivers its older value, a cache reset is skipped, an old adapter is served under a new version.
Run as a script it prints `caught/total`:

    python tests/actors/test_weight_mutations.py full|lora [CHECKPOINT]
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Faults:
    """What goes wrong in the next syncs; everything here is what a defect could do without an error."""

    withheld: str | None = None
    older: dict[str, Any] = field(default_factory=dict)  # tensors that are delivered in place of the new ones
    unreset: str | None = None
    reset_raises: str | None = None
    broken_after: int | None = None  # tensors, after which the loader's input raises...
    breaks: int = 0  # ...so many times
    old_adapter: bool = False
    unused_adapter: bool = False

    def applied(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: tensor for name, tensor in tensors.items() if name != self.withheld}
        return kept | {name: tensor for name, tensor in self.older.items() if name in kept}


def reset_with(faults: Faults, engine: Any) -> None:
    for cache in ("prefix", "mm", "encoder"):
        if cache == faults.reset_raises:
            raise RuntimeError(f"the {cache} cache was not reset")
        if cache != faults.unreset:
            getattr(engine, f"reset_{cache}_cache")()


@contextmanager
def breaking(faults: Faults) -> Iterator[None]:
    """While it lasts, vLLM's input of a full load ends with an exception where `faults` says."""
    from actors.witness import Recorder

    whole = Recorder.items

    def items(self: Any, model: Any, handed: Any) -> Iterator[Any]:
        for index, item in enumerate(whole(self, model, handed)):
            if index == faults.broken_after and faults.breaks:
                faults.breaks -= 1
                raise ConnectionError(f"cut after tensor {index}")
            yield item

    Recorder.items = items  # type: ignore[method-assign]
    try:
        yield
    finally:
        Recorder.items = whole  # type: ignore[method-assign]


def faulty_full(faults: Faults) -> Any:
    from actors.adoption import FullWeights

    class Faulty(FullWeights):
        def handed(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
            return faults.applied(tensors)

        def reset(self, engine: Any) -> None:
            reset_with(faults, engine)

    return Faulty()


def faulty_adapter(faults: Faults, settings: Any, model: str) -> Any:
    from actors.adoption import AdapterWeights

    class Faulty(AdapterWeights):
        def handed(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
            return faults.applied(tensors)

        def add(self, engine: Any, count: int, number: int, tensors: Mapping[str, Any]) -> Any:
            return self.request if faults.old_adapter else super().add(engine, count, number, tensors)

        def load(self, engine: Any, version: Any, arrays: Any) -> Any:
            older = self.request
            report = super().load(engine, version, arrays)
            if faults.unused_adapter:
                self.request = older  # the new adapter is loaded, but requests go on naming the old one
            return report

        def reset(self, engine: Any) -> None:
            reset_with(faults, engine)

    return Faulty(settings, model)


class Learner:
    """A plain Hugging Face model that takes AdamW steps on two canaries, and publishes versions."""

    def __init__(self, path: str, lora: Any) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        from actors.processing import Processing

        torch.manual_seed(0)
        self.processing = Processing(path)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
        self.lora = lora
        if lora is not None:
            from actors.training import add_adapter

            self.model = add_adapter(self.model, lora, 0, True)
        self.canaries = canaries(self.processing)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=3e-4)
        self.number = -1

    def logp(self, canary: Any) -> Any:
        import torch

        encoded = self.processing.encode(canary.prompt, canary.media)
        ids = torch.tensor([[*encoded.input_ids, *canary.tokens]])
        extra: dict[str, Any] = {}
        if encoded.pixel_values is not None:
            kinds = (ids == self.processing.image_token).int()
            extra = {
                "pixel_values": encoded.pixel_values,
                "image_grid_thw": encoded.image_grid_thw,
                "mm_token_type_ids": kinds,
            }
        logits = self.model(input_ids=ids, **extra).logits[0].float().log_softmax(-1)
        start = len(encoded.input_ids) - 1
        return sum(logits[start + i, token] for i, token in enumerate(canary.tokens))

    def step(self) -> None:
        self.optimizer.zero_grad()
        (-sum(self.logp(canary) for canary in self.canaries) / len(self.canaries)).backward()
        self.optimizer.step()

    def publish(self) -> tuple[Any, dict[str, np.ndarray]]:
        import torch

        from actors.proof import tensor_digest
        from pipelines.types import WeightVersion

        self.number += 1
        if self.lora is None:
            state = {k: v for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        else:
            from peft import get_peft_model_state_dict

            state = get_peft_model_state_dict(self.model)
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in state.items()}
        with torch.no_grad():
            values = tuple(float(self.logp(canary)) for canary in self.canaries)
        version = WeightVersion(
            attempt=1,
            number=self.number,
            step=self.number,
            stream="policy",
            manifest={name: tensor_digest(array) for name, array in arrays.items()},
            canary=values,
            adapter=self.lora is not None,
        )
        return version, arrays


def canaries(processing: Any) -> tuple[Any, ...]:
    """An answer under a picture and the same answer under text alone."""
    from pipelines.types import Canary, Media, Message, Part, Prompt

    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    media = Media(kind="image", space="rgb8", payload=picture)
    words = Part(kind="text", text="describe the image .")
    tokens = tuple(
        processing.tokenizer("a red seven top left and a blue one .", add_special_tokens=False)["input_ids"]
    )
    shown = Prompt(
        id="shown", messages=(Message(role="user", parts=(Part(kind="image", digest=media.digest), words)),)
    )
    told = Prompt(id="told", messages=(Message(role="user", parts=(words,)),))
    return (
        Canary(prompt=shown, media={media.digest: media}, tokens=tokens),
        Canary(prompt=told, media={}, tokens=tokens),
    )


class Trial:
    """One generator that is given faults, one by one, and made whole again after each."""

    def __init__(self, generator: Any, faults: Faults, old: Any, new: Any, prompt: Any) -> None:
        self.generator, self.faults, self.old, self.new = generator, faults, old, new
        self.prompt = prompt
        self.results: dict[str, list[str]] = {}  # fault -> parts that refused it

    async def __call__(self, name: str, **fault: Any) -> None:
        from actors.generator import Quarantined

        for key, value in fault.items():
            setattr(self.faults, key, value)
        proof = await self.generator.adopt(*self.new)
        vars(self.faults).update(vars(Faults()))
        parts = ("bytes_received", "elements_loaded", "canary_change", "caches_fresh")
        refused = [part for part in parts if getattr(proof, part) == "failed"]
        if refused:
            try:
                await self.generator.sample(self.prompt, {}, 1, 0)
                refused = []  # it went on sampling
            except Quarantined:
                pass
        self.results[name] = refused
        healed = await self.generator.adopt(*self.old)
        if not healed.holds:
            raise AssertionError(f"after {name!r} a faultless sync is refused: {healed}")


async def full(path: str) -> dict[str, list[str]]:
    from actors.adoption import as_tensor
    from actors.generator import Decoding, Generator
    from pipelines.settings import EngineSettings

    learner = Learner(path, None)
    old = learner.publish()
    learner.step()
    new = learner.publish()
    faults = Faults()
    settings = EngineSettings(max_model_len=512, kv_cache_gib=0.25)
    generator = Generator("mutant", path, settings, Decoding(max_tokens=4), swap=faulty_full(faults))
    await generator.start(learner.canaries)
    await faultless(generator, old, new)
    trial = Trial(generator, faults, old, new, learner.canaries[-1].prompt)
    for name in [*new[1], "lm_head.weight"]:
        await trial(f"withheld: {name}", withheld=name)
    moved = [name for name in new[1] if not np.array_equal(old[1][name], new[1][name])]
    for name in moved:
        await trial(f"older: {name}", older={name: as_tensor(old[1][name], "float32")})
    head = next(name for name in old[1] if name.endswith("embed_tokens.weight"))
    await trial("older: lm_head.weight", older={"lm_head.weight": as_tensor(old[1][head], "float32")})
    for cache in ("prefix", "mm", "encoder"):
        await trial(f"not reset: {cache}", unreset=cache)
        await trial(f"reset fails: {cache}", reset_raises=cache)
    with breaking(faults):
        for k in range(len(new[1])):
            await trial(f"cut after tensor {k}", broken_after=k, breaks=2)
        trial.results |= await cut_once(generator, faults, old, new, learner)
    trial.results |= await one_bit(generator, new, head)
    await generator.stop()
    return trial.results


async def lora(path: str) -> dict[str, list[str]]:
    from actors.adoption import as_tensor
    from actors.generator import Decoding, Generator
    from pipelines.settings import EngineSettings, LoraSettings

    adapter = LoraSettings(rank=4, alpha=8)
    learner = Learner(path, adapter)
    learner.step()
    old = learner.publish()
    learner.step()
    learner.step()
    new = learner.publish()
    faults = Faults()
    settings = EngineSettings(max_model_len=512, kv_cache_gib=0.25)
    swap = faulty_adapter(faults, adapter, path)
    generator = Generator("mutant", path, settings, Decoding(max_tokens=4), lora=adapter, swap=swap)
    await generator.start(learner.canaries)
    await faultless(generator, old, new)
    trial = Trial(generator, faults, old, new, learner.canaries[-1].prompt)
    for name in new[1]:
        await trial(f"withheld: {name}", withheld=name)
        await trial(f"older: {name}", older={name: as_tensor(old[1][name], "float32")})
    await trial("old adapter under a new version", old_adapter=True)
    await trial("new adapter loaded, old one served", unused_adapter=True)
    for cache in ("mm", "encoder"):
        await trial(f"not reset: {cache}", unreset=cache)
        await trial(f"reset fails: {cache}", reset_raises=cache)
    trial.results |= await one_bit(generator, new, next(iter(new[1])))
    await generator.stop()
    return trial.results


async def faultless(generator: Any, old: Any, new: Any) -> None:
    """Without a fault both versions are proved, so that a refusal means something."""
    for version in (old, new, old):
        proof = await generator.adopt(*version)
        assert proof.holds and proof.canary_change == "proved", proof


async def cut_once(
    generator: Any, faults: Faults, old: Any, new: Any, learner: Learner
) -> dict[str, list[str]]:
    """A load that breaks once is made good by the second: the outputs are bit for bit those of the version.

    The names of what was right are given as if they were refusals, so that one list holds everything.
    """

    async def output() -> list[float]:
        return [await generator.logprob(c.prompt, c.media, c.tokens) for c in learner.canaries]

    await generator.adopt(*new)
    expected = await output()
    found: dict[str, list[str]] = {}
    for k in range(0, len(new[1]), 8):
        assert (await generator.adopt(*old)).holds and await output() != expected
        faults.broken_after, faults.breaks = k, 1
        proof = await generator.adopt(*new)
        right = proof.holds and proof.detail["attempts"] == 2 and await output() == expected
        found[f"cut once after tensor {k}"] = ["loaded again"] if right else []
    vars(faults).update(vars(Faults()))
    return found


async def one_bit(generator: Any, new: Any, name: str) -> dict[str, list[str]]:
    version, arrays = new
    flipped = arrays[name].copy()
    flipped.view(np.uint8).reshape(-1)[0] ^= 1
    proof = await generator.adopt(version, {**arrays, name: flipped})
    return {f"one bit of {name}": ["bytes_received"] if proof.bytes_received == "failed" else []}


def main(kind: str, model: str | None = None) -> dict[str, list[str]]:
    from pipelines.worlds.glyphs import BASE_MODEL

    trials: dict[str, Callable[[str], Any]] = {"full": full, "lora": lora}
    return asyncio.run(trials[kind](model or str(BASE_MODEL)))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_fault_of_a_sync_is_refused(kind: str, tmp_path: Path):
    """In its own process: an engine leaves traces in the process that it ran in."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, kind, *filter(None, [os.environ.get("PLUMBLINE_TEST_MODEL")])]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-2])
    print(f"{kind}: {done.stdout.splitlines()[-1]} faults of a sync refused")
    assert len(results) > (80 if kind == "full" else 40)
    assert [name for name, refused in results.items() if not refused] == []


if __name__ == "__main__":
    found = main(*sys.argv[1:])
    print(json.dumps(found))
    print(f"{sum(map(bool, found.values()))}/{len(found)}")
