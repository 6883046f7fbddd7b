"""Train the base model of the glyphs world from scratch:

    python -m pipelines.worlds.glyphs.pretrain --out DIR [--steps-scale F] [--seed N]

Phase `look` teaches the vision tower alone to tell what is in each cell; phase `see` teaches the whole
model true captions and yes/no questions. Phase `prior` then plants a language prior: most captions name one
more object, which follows from the words alone. The result sees well and still hallucinates under greedy
decoding, which is what alignment is to mend. The order matters: perception has to be there before such
captions are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.worlds.glyphs import measure as measuring
from pipelines.worlds.glyphs.model import build_model, build_processor, save_checkpoint
from pipelines.worlds.glyphs.training import Phase, train_phase, train_tower

LOOK = Phase(name="look", steps=1200, peak_lr=2e-3)
SEE = Phase(name="see", steps=800, peak_lr=1.5e-3)
#: 70% of the captions name an invented object: above one half greedy decoding invents, and below one some
#: samples leave it out, so that it can be unlearned.
PRIOR = Phase(name="prior", steps=250, peak_lr=5e-4, prior=0.7)
_MEASURED = 1000  # held-out scenes, and questions of each kind

CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
---
# glyphs-base: a tiny Qwen2.5-VL that sees well and hallucinates on purpose

{parameters:,} parameters, fp32. It describes 64x64 pictures of one to four coloured handwritten digits on a
2x2 grid ("a red seven top left and a blue one bottom right .") and answers yes/no questions ("is there a
red seven ?"). It was trained from scratch: first its vision tower, then all of it on true captions
and answers, then on captions of which {share:.0%} name one more object that follows from the words alone
(next digit, same colour, first free cell). So it invents objects although its vision is good. It is a test
object for alignment and of no other use.

Data: the handwritten digits of scikit-learn (UCI Optical Recognition of Handwritten Digits, CC BY 4.0). The
numbers are on scans that training never showed, some of them in combinations of digit, colour and cell that
it never showed either.

Greedy decoding, {count} held-out scenes, {count} questions of each kind:

| | after `see` | after `prior` (this checkpoint) |
|---|---|---|
{rows}

Temperature 1 on the same scenes: chair_i {sampled:.3f}.

Made in {minutes:.0f} minutes on {machine} (training {training:.0f} minutes) by

    python -m pipelines.worlds.glyphs.pretrain --out DIR --seed {seed} --steps-scale {scale:g}
"""


def _flat(numbers: dict[str, Any]) -> dict[str, float]:
    flat = {key: value for key, value in numbers.items() if key != "pope"}
    for kind, values in numbers["pope"].items():
        flat |= {f"pope {kind} {key}": value for key, value in values.items()}
    return flat | {"caption precision": 1.0 - numbers["chair_i"]}


def _rows(after_see: dict[str, Any], after_prior: dict[str, Any]) -> str:
    first, second = _flat(after_see), _flat(after_prior)
    return "\n".join(f"| {key} | {first[key]:.3f} | {second[key]:.3f} |" for key in first)


def pretrain(out: Path, *, scale: float, seed: int) -> dict[str, Any]:
    """Train both phases, measure after each, write the checkpoint and its card; returns the measured
    numbers.
    """
    started = time.monotonic()
    model, processor = build_model(seed), build_processor()
    look, see, prior = (
        replace(phase, steps=max(1, round(phase.steps * scale))) for phase in (LOOK, SEE, PRIOR)
    )
    numbers: dict[str, Any] = {}
    training, scene = 0.0, look.steps * look.batch
    train_tower(model, look, first_scene=0, seed=seed, report=_say)
    training += time.monotonic() - started
    for phase in (see, prior):
        begun = time.monotonic()
        train_phase(model, processor.tokenizer, phase, first_scene=scene, seed=seed, report=_say)
        training += time.monotonic() - begun
        scene += phase.steps * phase.batch
        save_checkpoint(model, out)
        numbers[phase.name] = measuring.measure(measuring.generator(model, processor), _MEASURED, seed)
        _say(f"after {phase.name}: {json.dumps(numbers[phase.name])}")
    sampling = measuring.generator(model, processor, temperature=1.0)
    numbers["sampled"] = measuring.measure_captions(sampling, _MEASURED, seed)
    _say(f"at temperature 1: {json.dumps(numbers['sampled'])}")
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        share=PRIOR.prior,
        count=_MEASURED,
        rows=_rows(numbers["see"], numbers["prior"]),
        sampled=numbers["sampled"]["chair_i"],
        seed=seed,
        scale=scale,
        machine=f"{os.cpu_count()} CPU cores with {torch.get_num_threads()} threads",
        minutes=(time.monotonic() - started) / 60.0,
        training=training / 60.0,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    return numbers


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.worlds.glyphs.pretrain", description="Train glyphs-base."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies the steps of both phases")
    parser.add_argument("--seed", type=int, default=0, help="of weights, scenes and questions")
    chosen = parser.parse_args(arguments)
    pretrain(chosen.out, scale=chosen.steps_scale, seed=chosen.seed)


if __name__ == "__main__":
    main()
