"""Train the base model of the glyphs world from scratch:

    python -m pipelines.worlds.glyphs.pretrain --out DIR [--steps-scale F] [--seed N]

Phase `see` teaches perception with true captions and yes/no questions. Phase `prior` then plants a language
prior: most captions name one more object, which follows from the words alone. The result sees well and still
hallucinates under greedy decoding, which is what alignment is to mend. (The other order does not work: with
such captions from the start perception never breaks through.)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

SEE_STEPS, SEE_LR = 2000, 2e-3
PRIOR_STEPS, PRIOR_LR = 250, 5e-4
#: Share of captions with an invented object. Above one half greedy decoding invents; below one it can be
#: unlearned.
PRIOR_SHARE = 0.7
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
red seven ?"). It was trained from scratch: first on true captions and answers, then on captions of which
{share:.0%} name one more object that follows from the words alone (next digit, same colour, first free
cell). So it invents objects although its vision is good. It is a test object for alignment and of no other
use.

Data: the handwritten digits of scikit-learn (UCI Optical Recognition of Handwritten Digits, CC BY 4.0). The
numbers are on scans and combinations that training never showed.

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
    from pipelines.worlds.glyphs import measure as measuring
    from pipelines.worlds.glyphs.model import build_model, build_processor, save_checkpoint
    from pipelines.worlds.glyphs.training import Phase, train_phase

    started = time.monotonic()
    model, processor = build_model(seed), build_processor()
    phases = (
        Phase(name="see", steps=SEE_STEPS, peak_lr=SEE_LR, prior=0.0),
        Phase(name="prior", steps=PRIOR_STEPS, peak_lr=PRIOR_LR, prior=PRIOR_SHARE),
    )
    numbers: dict[str, Any] = {}
    training, scene = 0.0, 0
    for planned in phases:
        phase = replace(planned, steps=max(1, round(planned.steps * scale)))
        begun = time.monotonic()
        train_phase(model, processor.tokenizer, phase, first_scene=scene, seed=seed, report=_say)
        training += time.monotonic() - begun
        scene += phase.steps * phase.batch
        numbers[phase.name] = measuring.measure(measuring.generator(model, processor), _MEASURED, seed)
        _say(f"after {phase.name}: {json.dumps(numbers[phase.name])}")
    sampling = measuring.generator(model, processor, temperature=1.0)
    numbers["sampled"] = measuring.measure_captions(sampling, _MEASURED, seed)
    _say(f"at temperature 1: {json.dumps(numbers['sampled'])}")
    save_checkpoint(model, out)
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        share=PRIOR_SHARE,
        count=_MEASURED,
        rows=_rows(numbers["see"], numbers["prior"]),
        sampled=numbers["sampled"]["chair_i"],
        seed=seed,
        scale=scale,
        machine="2 CPU cores",
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
