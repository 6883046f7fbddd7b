from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.processing import Processing, TooLong
from pipelines.checkpoint import NotACheckpoint
from pipelines.types import Media, Message, Op, Part, Prompt


@pytest.fixture(scope="module")
def processing(model: Path) -> Processing:
    return Processing(model)


def _picture(seed: int, height: int = 64, width: int = 64) -> Media:
    rng = np.random.default_rng(seed)
    return Media(kind="image", space="rgb8", payload=rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def _prompt(text: str, *pictures: Media) -> Prompt:
    images = tuple(Part(kind="image", digest=item.digest) for item in pictures)
    return Prompt(id="row-1", messages=(Message(role="user", parts=(*images, Part(kind="text", text=text))),))


@pytest.mark.parametrize("shapes", [[(64, 64)], [(64, 64), (96, 48)], []])
def test_encoding_equals_the_checkpoints_own_processor(
    shapes: list[tuple[int, int]], processing: Processing, model: Path
) -> None:
    from transformers import AutoProcessor

    pictures = [_picture(i, *shape) for i, shape in enumerate(shapes)]
    prompt = _prompt("is there a red one ?", *pictures)
    encoded = processing.encode(prompt, {item.digest: item for item in pictures})

    theirs = AutoProcessor.from_pretrained(model)
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": "is there a red one ?"}]
    text = theirs.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    images = processing.pictures(prompt, {item.digest: item for item in pictures}) or None
    expected = theirs(text=[text], images=images, return_tensors="pt")
    assert encoded.input_ids == expected["input_ids"][0].tolist()
    if pictures:
        assert encoded.pixel_values is not None and encoded.image_grid_thw is not None
        assert torch.equal(encoded.pixel_values, expected["pixel_values"])
        assert torch.equal(encoded.image_grid_thw, expected["image_grid_thw"])
    else:
        assert encoded.pixel_values is None


def test_compact_ids_have_one_placeholder_per_image(processing: Processing) -> None:
    first, second = _picture(1), _picture(2)
    prompt = _prompt("describe the image .", first, second)
    compact = processing.compact(prompt)
    full = processing.encode(prompt, {item.digest: item for item in (first, second)}).input_ids
    assert processing.image_token is not None
    assert compact.count(processing.image_token) == 2
    assert full.count(processing.image_token) == 32
    assert [t for t in compact if t != processing.image_token] == [
        t for t in full if t != processing.image_token
    ]


def test_the_digest_comes_from_the_pictures_that_entered(processing: Processing) -> None:
    clean, other = _picture(1), _picture(2)
    prompt = _prompt("describe the image .", clean)
    assert processing.encode(prompt, {clean.digest: clean}).digest == prompt.digest
    assert processing.encode(prompt, {clean.digest: other}).digest != prompt.digest


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|video_pad|>"])
def test_special_tokens_typed_by_a_user_are_named(token: str, processing: Processing) -> None:
    with pytest.raises(ValueError, match=r"row-1.*" + token.replace("|", r"\|")):
        processing.compact(_prompt(f"is there {token} a red one ?"))


def test_nothing_is_truncated(model: Path) -> None:
    small = Processing(model, max_length=24)
    picture = _picture(1)
    with pytest.raises(TooLong, match="nothing is truncated"):
        small.encode(_prompt("describe the image .", picture), {picture.digest: picture})
    small.require_fit(20, 4, "here")
    with pytest.raises(TooLong, match=r"here: 20 prompt tokens .* and 5 answer tokens"):
        small.require_fit(20, 5, "here")


def test_image_tokens_must_equal_image_features(processing: Processing) -> None:
    picture = _picture(1)
    encoded = processing.encode(_prompt("describe the image .", picture), {picture.digest: picture})
    wrong = replace(encoded, input_ids=[*encoded.input_ids, processing.image_token])
    with pytest.raises(ValueError, match="17 image tokens but 16 image features"):
        processing.require_match(wrong, "row-1")


def test_a_missing_picture_is_named(processing: Processing) -> None:
    picture = _picture(1)
    with pytest.raises(ValueError, match=f"{picture.digest[:12]} is missing from the media table"):
        processing.encode(_prompt("describe the image .", picture), {})


def test_what_it_cannot_show_is_refused(processing: Processing) -> None:
    video = Prompt(id="v", messages=(Message(role="user", parts=(Part(kind="video", digest="d"),)),))
    with pytest.raises(ValueError, match="it holds video"):
        processing.compact(video)
    acting = replace(_prompt("describe the image ."), acts=(Op(name="attention_drop"),))
    with pytest.raises(ValueError, match="attention_drop"):
        processing.compact(acting)


def test_an_assistant_message_at_the_end_is_continued(processing: Processing) -> None:
    asked = _prompt("describe the image .")
    begun = Message(role="assistant", parts=(Part(kind="text", text="a red"),))
    prefilled = replace(asked, messages=(*asked.messages, begun))
    ids = processing.compact(prefilled)
    assert (
        ids
        == processing.compact(asked) + processing.tokenizer("a red", add_special_tokens=False)["input_ids"]
    )


def test_answers_may_hold_the_end_of_sequence_and_no_other_special_token(processing: Processing) -> None:
    assert processing.eos == {processing.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert processing.image_token in processing.forbidden
    assert not processing.eos & set(processing.forbidden)
    words = processing.tokenizer("a red one", add_special_tokens=False)["input_ids"]
    assert not set(words) & set(processing.forbidden)
    assert processing.decode([*words, *processing.eos]) == "a red one"


def test_a_text_model_reads_text_only(model: Path, tmp_path: Path) -> None:
    from transformers import Qwen2Config

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, tmp_path / name)
    Qwen2Config(vocab_size=118, max_position_embeddings=64).save_pretrained(str(tmp_path))
    processing = Processing(tmp_path)
    assert not processing.has_vision and processing.max_length == 64
    encoded = processing.encode(_prompt("describe the image ."), {})
    assert encoded.pixel_values is None and encoded.input_ids
    picture = _picture(1)
    with pytest.raises(ValueError, match="reads text only"):
        processing.compact(_prompt("describe the image .", picture))


def test_what_is_no_checkpoint_is_said(tmp_path: Path, model: Path) -> None:
    with pytest.raises(NotACheckpoint, match=r"config\.json"):
        Processing(tmp_path)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(model / name, tmp_path / name)
    with pytest.raises(NotACheckpoint, match="no chat template"):
        Processing(tmp_path)
