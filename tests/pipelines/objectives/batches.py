"""Drawn batches of comparisons, and what a model would read for them."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.objectives.base import Reads
from pipelines.objectives.batch import Table
from pipelines.types import Candidate, Comparison, Message, Part, Preference, Prompt, Response, Score

WIDTH = 5
VIEWS = ("policy", "reference", "behaviour")
FEATURES = ("kl_forward", "kl_reverse", "collision")
HIDDEN = ("hidden", "reference_hidden")
CARRY = {
    "ema/0": -1.0,
    "ema/1": -2.0,
    "z_value/mean": 0.2,
    "z_value/square": 1.0,
    "bco": 0.1,
    "bco.count": 3.0,
}


def prompt(text: str) -> Prompt:
    return Prompt(id=text, messages=(Message(role="user", parts=(Part(kind="text", text=text),)),))


@st.composite
def scores(draw: st.DrawFn) -> Score | None:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from([None, Score(value=None, missing="timeout")]))
    parts = {"task": float(draw(st.integers(0, 1)))}
    if draw(st.booleans()):
        parts["safety"] = draw(st.floats(0, 1))
    return Score(value=draw(st.floats(-2, 2)), parts=parts)


@st.composite
def comparisons(draw: st.DrawFn) -> list[Comparison]:
    """1 to 4 comparisons: answers w, l, g and up to 3 samples y; edges with weights and spans."""
    made: list[Comparison] = []
    for number in range(draw(st.integers(1, 4))):
        samples = draw(st.integers(0, 3))
        responses: list[Response] = []
        for name in ("w", "l", "g", *["y"] * samples):
            length = draw(st.integers(1, 4))
            tokens = tuple(draw(st.lists(st.integers(0, 3), min_size=length, max_size=length)))
            targets = (-1, *tokens[1:]) if length > 1 and draw(st.booleans()) else None
            responses.append(Response(tokens=tokens, text=name, targets=targets))
        cells = [(0, 0, "w@x"), (0, 1, "l@x"), (1, 0, "w@m"), (0, 2, "g")]
        cells += [(0, 3 + i, "y") for i in range(samples)]
        edges = [
            Preference(
                name=name,
                winner=winner,
                loser=loser,
                probability=draw(st.floats(0, 1)),
                margin=draw(st.floats(-1, 1)),
                weight=draw(st.floats(0.1, 3)),
                spans={"seg": _spans(draw, responses[cells[winner][1]], responses[cells[loser][1]])},
            )
            for name, winner, loser in (("text", 0, 1), ("media", 0, 2))
            if draw(st.integers(0, 4))
        ]
        made.append(
            Comparison(
                id=f"g{number}/0",
                prompts=(prompt(f"x{number}"), prompt(f"m{number}")),
                responses=tuple(responses),
                candidates=tuple(
                    Candidate(prompt=p, response=r, role=role, score=draw(scores())) for p, r, role in cells
                ),
                preferences=tuple(edges),
            )
        )
    return made


def _spans(draw: st.DrawFn, winner: Response, loser: Response) -> tuple[tuple[float, ...], tuple[float, ...]]:
    one, other = (tuple(float(draw(st.integers(0, 2))) for _ in answer.tokens) for answer in (winner, loser))
    return one, other


def numbers(cell: object, name: str, *shape: int) -> Tensor:
    """Numbers in (0, 1) that depend on the cell and the name alone."""
    source = random.Random(f"{cell}|{name}")
    flat = [source.uniform(0.01, 0.99) for _ in range(torch.Size(shape).numel())]
    return torch.tensor(flat, dtype=torch.float64).reshape(shape)


def heads() -> dict[str, nn.Module]:
    outputs = {"mask": 2, "degree": 2, "box": 2, "kind": 3}
    made = {name: nn.Linear(WIDTH, size).double() for name, size in outputs.items()}
    for name, head in made.items():
        for parameter in head.parameters():
            parameter.data = numbers(name, "head", *parameter.shape)
    return dict(made)


HEADS = heads()


def reads_of(table: Table) -> Reads:
    """Log-probs, features and heads; each cell's numbers depend on its prompt and answer alone."""
    bare = table.reads()
    longest = table.longest
    tokens = {view: torch.zeros(len(table.cells), longest, dtype=torch.float64) for view in VIEWS}
    features = {
        name: torch.zeros_like(tokens["policy"]) for name in ("kl_forward", "kl_reverse", "collision")
    }
    hidden = {
        name: torch.zeros(len(table.cells), longest, WIDTH, dtype=torch.float64)
        for name in ("hidden", "reference_hidden")
    }
    for row, cell in enumerate(table.cells):
        name = f"{cell.prompt.digest}{cell.response.tokens}{cell.response.targets}"
        length = len(cell.response.tokens)
        for view, values in tokens.items():
            values[row, :length] = -3 * numbers(name, view, length)
        for feature, values in features.items():
            sign = -1 if feature == "collision" else 1
            values[row, :length] = sign * numbers(name, feature, length)
        for feature, values in hidden.items():
            values[row, :length] = numbers(name, feature, length, WIDTH)
    zeroed = {view: torch.where(bare.mask, values, 0.0) for view, values in tokens.items()}
    masked = {name: torch.where(bare.mask, values, 0.0) for name, values in features.items()}
    masked |= {name: torch.where(bare.mask[..., None], values, 0.0) for name, values in hidden.items()}
    return replace(bare, tokens=zeroed, features=masked, heads=HEADS, carry=CARRY)
