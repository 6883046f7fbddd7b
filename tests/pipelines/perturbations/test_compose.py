"""One picture among others: it is where the record says, byte for byte where it keeps its size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.perturbations.compose import collage, picture_in_picture, sequence, show
from pipelines.types import Media, Message, Part, Prompt


def plain(value: int, height: int, width: int) -> Media:
    payload = np.full((height, width, 3), value, dtype=np.uint8)
    return Media(kind="image", space="rgb8", payload=payload)


OTHERS = tuple(plain(value, 10 + value, 30 - value) for value in (1, 2, 3))


@given(count=st.integers(0, 3), seed=st.integers(0, 999))
def test_a_sequence_holds_all_and_knows_the_target(count: int, seed: int) -> None:
    target = plain(200, 8, 6)
    made = sequence(target, OTHERS[:count], seed)
    assert made.media[made.index] is target
    assert [media for media in made.media if media is not target] == list(OTHERS[:count])
    assert made.box == (0, 0, 6, 8)


def test_the_target_is_in_any_place() -> None:
    target = plain(200, 8, 6)
    assert {sequence(target, OTHERS, seed).index for seed in range(60)} == {0, 1, 2, 3}
    assert {collage(target, OTHERS, seed).index for seed in range(60)} == {0, 1, 2, 3}


@given(count=st.integers(0, 3), seed=st.integers(0, 999))
def test_a_collage_is_a_grid_of_the_target_s_size(count: int, seed: int) -> None:
    """1, 2, 3 and 4 pictures make 1 x 1, 1 x 2, 2 x 2 and 2 x 2 cells."""
    target = plain(200, 20, 20)
    made = collage(target, OTHERS[:count], seed)
    (canvas,) = made.media
    rows, columns = {0: (1, 1), 1: (1, 2), 2: (2, 2), 3: (2, 2)}[count]
    assert canvas.payload.shape == (20 * rows, 20 * columns, 3)
    x0, y0, x1, y1 = made.box
    assert (canvas.payload[y0:y1, x0:x1] == 200).all()
    assert (canvas.payload == 200).sum() == 20 * 20 * 3
    assert made.index == y0 // 20 * columns + x0 // 20
    assert {*range(1, count + 1), 200} <= set(np.unique(canvas.payload).tolist())
    assert canvas.parent == target.digest
    assert canvas.op is not None and canvas.op.params["box"] == list(made.box)
    json.dumps(canvas.op.to_json())


def test_what_does_not_fill_its_cell_is_in_its_middle() -> None:
    """10 x 30 in a cell of 20 x 20 shrinks to 7 x 20 (6.67 rounded), with 6 black rows above and 7 below."""
    made = collage(plain(200, 20, 20), [plain(9, 10, 30)], 0)
    other = made.media[0].payload[:, 20:] if made.index == 0 else made.media[0].payload[:, :20]
    assert other[:, 0, 0].tolist() == [0] * 6 + [9] * 7 + [0] * 7


@given(share=st.floats(0.05, 1.0), seed=st.integers(0, 999))
def test_picture_in_picture(share: float, seed: int) -> None:
    """The target keeps its proportions (2:1) and has the share of the area, as far as it fits."""
    target, background = plain(200, 20, 40), plain(5, 60, 60)
    made = picture_in_picture(target, background, seed, share)
    (canvas,) = made.media
    x0, y0, x1, y1 = made.box
    assert canvas.payload.shape == (60, 60, 3)
    assert (canvas.payload[y0:y1, x0:x1] == 200).all()
    assert (canvas.payload == 200).sum() == (x1 - x0) * (y1 - y0) * 3
    assert x1 - x0 == pytest.approx(min((share * 3600 * 2) ** 0.5, 60), abs=0.51)
    assert y1 - y0 == pytest.approx((x1 - x0) / 2, abs=0.8)
    assert np.array_equal(background.payload, plain(5, 60, 60).payload)


def test_show_puts_them_into_the_prompt() -> None:
    target = plain(200, 8, 6)
    user = Message(
        role="user", parts=(Part(kind="image", digest=target.digest), Part(kind="text", text="what ?"))
    )
    prompt = Prompt(id="p", messages=(user,))
    made = sequence(target, OTHERS, 4)
    shown = show(prompt, made, "in image {number} , ", "sequence")
    assert shown.media == tuple(media.digest for media in made.media)
    assert [part.text for part in shown.messages[0].parts if part.kind == "text"] == [
        f"in image {made.index + 1} , ",
        "what ?",
    ]
    assert (shown.origin, shown.id) == ("sequence", "p")
    assert len(show(prompt, made).messages[0].parts) == 5
    with pytest.raises(ValueError, match="expected one picture to compose, got 4"):
        show(shown, made)


def test_bad_input_is_refused() -> None:
    sound = Media(kind="audio", space="pcm16", payload=np.zeros(100, dtype=np.int16))
    for make in (
        lambda: sequence(sound, OTHERS, 0),
        lambda: collage(plain(1, 2, 2), [sound], 0),
        lambda: picture_in_picture(plain(1, 2, 2), sound, 0),
    ):
        with pytest.raises(ValueError, match="reads images"):
            make()
    with pytest.raises(ValueError, match="at most 1, got 0"):
        picture_in_picture(plain(1, 2, 2), plain(1, 2, 2), 0, 0)
