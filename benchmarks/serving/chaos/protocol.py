"""The protocol lane: everything is real but the model (`benchmarks.serving.chaos.stub`)."""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.checkpoints import begin, commit
from benchmarks.serving.chaos.checks import Spelled
from benchmarks.serving.chaos.lane import REPLICAS, Lane, play
from benchmarks.serving.chaos.stub import WEIGHTS, stubs, word
from serving.app import running
from serving.registry.registry import Entry, Registry
from serving.served import Served, find
from serving.settings import Settings

MODEL = "stub"


def checkpoint(run: Path, step: int) -> Path:
    """The smallest one that can be registered; its weights are the step, as a number."""
    folder = begin(run, step)
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    (folder / "tokenizer.json").write_text('{"added_tokens": []}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", float(step)))
    return commit(run, step, attempt=1, facts={"weight_version": step, "ledger": {}})


def damage(entry: Entry) -> None:
    """Flip a bit of the weights behind the registry's back."""
    file = entry.path / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def spelled(words: Mapping[str, str], tokens: int, text: str) -> Spelled:
    """`words`: what a version's weights spell -> the version. An answer has `tokens` of them."""
    said = text.split(" ")
    known = frozenset(words.get(one, f"unknown {one!r}") for one in said)
    return Spelled(versions=known, whole=len(said) == tokens)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The lane's result."""
    run_dir = given.out / MODEL
    registry = Registry(given.out / "registry")
    first, second, damaged = (registry.register(checkpoint(run_dir, step)) for step in (1, 2, 3))
    registry.promote(first.id, why="the first version served", against=None)
    words = {word(entry.path): entry.id for entry in (first, second, damaged)}
    damage(damaged)
    lane = Lane(
        name="protocol",
        engine="a stub: no model is involved",
        model=MODEL,
        rate=given.rate,
        kill_every=given.kill_every,
        swap_every=given.swap_every,
        body=lambda number: _body(number, given.tokens),
        spell=lambda number, text: spelled(words, given.tokens, text),
    )
    settings = Settings.model_validate(
        {"port": given.port, "registry": str(registry.folder), "replicas": {"fewest": REPLICAS}}
    )

    def bound(models: Sequence[Served], settings: Settings) -> Any:
        from serving.deployments import Gateway, scales

        (model,) = models
        options = scales(settings.replicas, settings.load)["stable"]
        slots = {
            "stable": stubs(MODEL, "stable", options=options, load_s=given.load_s, token_s=given.token_s)
        }
        return Gateway.bind(settings, {MODEL: slots}, {MODEL: model.capabilities})

    with running(find(None, settings, MODEL), settings, bound=bound) as server:
        return play(lane, server.origin, registry, (first, second), damaged, given)


def _body(number: int, tokens: int) -> dict[str, Any]:
    content = f"question {number}"
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
