from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.worlds.glyphs.model import IMAGE_TOKENS, build_model, build_processor, build_tokenizer
from pipelines.worlds.glyphs.scenes import make_scene, render_image
from pipelines.worlds.glyphs.training import (
    Phase,
    answer_logits,
    encode,
    learning_rate,
    make_batch,
    see,
    to_patches,
    train_phase,
    train_tower,
)
from pipelines.worlds.glyphs.vocabulary import (
    CAPTION_PROMPT,
    CELLS,
    COLOURS,
    DIGITS,
    SPECIAL_TOKENS,
    UNKNOWN,
    WORDS,
)

TALK = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPT}]},
    {"role": "assistant", "content": "a red seven top left ."},
]
PHASE = Phase(name="test", steps=30, peak_lr=2e-3, prior=0.5, batch=8)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([render_image(make_scene("train", index, 0)) for index in range(3)])


def test_every_word_of_the_grammar_is_one_known_token() -> None:
    tokenizer = build_tokenizer()
    for word in (*DIGITS, *COLOURS, *" ".join(CELLS).split(), *WORDS, *SPECIAL_TOKENS):
        ids = tokenizer(word)["input_ids"]
        assert len(ids) == 1
        assert (ids[0] == tokenizer.unk_token_id) == (word == UNKNOWN)
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(8)] == list(SPECIAL_TOKENS)


def test_captions_survive_the_tokenizer_and_unknown_words_do_not() -> None:
    tokenizer = build_tokenizer()
    caption = "a red seven top left and a blue one bottom right ."
    assert tokenizer.decode(tokenizer(caption)["input_ids"]) == caption
    assert tokenizer.decode(tokenizer("Describe the image.")["input_ids"]) == "describe the image ."
    assert tokenizer.decode(tokenizer("a purple seven")["input_ids"]) == "a <unk> seven"


def test_the_chat_template_writes_qwen_conversations() -> None:
    processor = build_processor()
    written = processor.apply_chat_template([{"role": "system", "content": "be helpful ."}, *TALK])
    assert written == (
        "<|im_start|>system\nbe helpful .<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>describe the image .<|im_end|>\n"
        "<|im_start|>assistant\na red seven top left .<|im_end|>\n"
    )
    asked = processor.apply_chat_template(TALK[:1], add_generation_prompt=True)
    assert asked == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>describe the image .<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_scene_becomes_sixteen_tokens_and_as_many_features(pictures: np.ndarray) -> None:
    processor, model = build_processor(), build_model(0)
    prompt = processor.apply_chat_template(TALK[:1], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[Image.fromarray(pictures[0])], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == IMAGE_TOKENS == 16
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    assert [len(feature) for feature in features] == [IMAGE_TOKENS]


def test_training_sees_the_patches_and_tokens_that_the_processor_makes(pictures: np.ndarray) -> None:
    processor = build_processor()
    written = [processor.apply_chat_template(TALK)] * len(pictures)
    inputs = processor(
        text=written, images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt"
    )
    torch.testing.assert_close(to_patches(pictures).flatten(0, 1), inputs["pixel_values"], rtol=0, atol=1e-5)
    ids, learn = encode(processor.tokenizer, [(CAPTION_PROMPT, "a red seven top left .")])
    assert ids == inputs["input_ids"][0].tolist()
    said = [token for token, learned in zip(ids, learn, strict=True) if learned]
    assert processor.tokenizer.decode(said) == "a red seven top left . <|im_end|>"


def test_the_fast_forward_pass_is_the_model_itself(pictures: np.ndarray) -> None:
    model = build_model(0)
    grid = torch.tensor([[1, 8, 8]])
    patches = to_patches(pictures)
    with torch.no_grad():
        expected = model.model.get_image_features(patches.flatten(0, 1), grid.expand(3, -1)).pooler_output
        torch.testing.assert_close(see(model, patches), torch.stack(list(expected)), rtol=0, atol=1e-5)
        batch = make_batch(build_tokenizer(), PHASE, 0, seed=0)
        logits, ids = answer_logits(model, batch)
        whole = model(
            input_ids=batch.ids,
            pixel_values=batch.patches.repeat(2, 1, 1).flatten(0, 1),
            image_grid_thw=grid.expand(len(batch.ids), -1),
            mm_token_type_ids=(batch.ids == model.config.image_token_id).int(),
        ).logits
    assert len(ids) == int(batch.learn.sum())
    torch.testing.assert_close(logits, whole[:, :-1][batch.learn[:, 1:]], rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = (build_model(seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_learning_rate_warms_up_to_the_peak_and_falls() -> None:
    rates = [learning_rate(step, PHASE) for step in range(PHASE.steps)]
    assert max(rates) == pytest.approx(PHASE.peak_lr)
    assert rates[0] == pytest.approx(PHASE.peak_lr / 3)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_both_kinds_of_training_learn_in_a_few_steps() -> None:
    """Untrained, the losses are near log(118) = 4.8 (words) and above log(31) = 3.4 (kinds of objects)."""
    model, lines = build_model(0), list[str]()
    kinds = train_tower(model, PHASE, first_scene=0, seed=0, report=lines.append)
    assert kinds[0] > 2.5
    assert np.mean(kinds[-5:]) < 0.75 * kinds[0]
    words = train_phase(model, build_tokenizer(), PHASE, first_scene=240, seed=0, report=lines.append)
    assert words[0] > 3.5
    assert np.mean(words[-5:]) < 0.6 * words[0]
    assert [line.split(":")[0] for line in lines] == ["test", "test"]


def test_an_invented_object_is_in_about_the_share_of_captions_that_the_phase_says() -> None:
    tokenizer = build_tokenizer()
    phase = Phase(name="test", steps=1, peak_lr=1e-3, prior=1.0, batch=40)
    true = make_batch(tokenizer, Phase(name="test", steps=1, peak_lr=1e-3, batch=40), 0, seed=0)
    more = make_batch(tokenizer, phase, 0, seed=0)
    longer = more.learn[:40].sum(dim=1) - true.learn[:40].sum(dim=1)
    full = [len(make_scene("train", index, 0).objects) == 4 for index in range(40)]
    assert longer.tolist() == [0 if no_room else 6 for no_room in full]  # "and a red eight top right"
    assert json.dumps(true.ids[40:].tolist()) != json.dumps(true.ids[:40].tolist())
