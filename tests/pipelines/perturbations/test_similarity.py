"""CLIP and SigLIP with random weights, saved and loaded; and the choices made by any similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.perturbations.replace import MediaBank, Retrieve
from pipelines.perturbations.similarity import (
    ClipEmbedding,
    ClipSimilarity,
    corruption_weights,
    least_similar,
)
from pipelines.types import Media

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def save(path: Path, *parts: Any) -> str:
    for part in parts:
        part.save_pretrained(path)
    return str(path)


def letters(length: int) -> Any:
    """CLIP's tokenizer with single letters."""
    import transformers as hf

    alphabet = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    symbols = ["!", *alphabet, *(f"{c}</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    return hf.CLIPTokenizer(vocab=vocab, merges=[], pad_token="!", model_max_length=length)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    import transformers as hf

    tokenizer = letters(16)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = hf.CLIPConfig(
        text_config={**SMALL, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    return save(tmp_path_factory.mktemp("clip"), hf.CLIPModel(config), processor)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    import transformers as hf

    tokenizer = letters(16)
    config = hf.SiglipConfig(
        text_config={**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(1)
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor = hf.SiglipProcessor(image_processor=images, tokenizer=tokenizer)
    return save(tmp_path_factory.mktemp("siglip"), hf.SiglipModel(config), processor)


@pytest.fixture(params=["clip", "siglip"])
def model(request: pytest.FixtureRequest) -> str:
    path: str = request.getfixturevalue(request.param)
    return path


def test_similarity_is_the_cosine_of_the_model_s_embeddings(model: str, picture: Media) -> None:
    """Computed apart from the plug: both embeddings by their own calls, one text at a time."""
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    texts = ["a red seven", "dog", "cats and a very long text that is cut where the model ends"]
    got = ClipSimilarity(model)(picture, texts, {})
    raw, processor = AutoModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
    pixels = processor(images=Image.fromarray(picture.payload), return_tensors="pt")
    for text, value in zip(texts, got, strict=True):
        words = processor(text=[text], padding="max_length", truncation=True, return_tensors="pt")
        with torch.inference_mode():
            seen = raw.get_image_features(**pixels).pooler_output[0]
            said = raw.get_text_features(**words).pooler_output[0]
        expected = float(seen @ said / seen.norm() / said.norm())
        assert value == pytest.approx(expected, abs=1e-5)
    assert len(set(got)) == 3
    assert ClipSimilarity(model)(picture, [], {}) == ()
    assert ClipSimilarity(model)(picture, ["dog"], {}) == pytest.approx(got[1:2], abs=1e-6)


def test_embedding_retrieves_what_looks_alike(model: str, picture: Media) -> None:
    """A copy with one pixel changed is nearer than noise or plain grey."""
    other = picture.payload.copy()
    other[0, 0] ^= 1
    noise = np.random.default_rng(1).integers(0, 256, other.shape, dtype=np.uint8)
    payloads = (noise, other, np.full_like(other, 128), picture.payload)
    bank = MediaBank(tuple(Media(kind="image", space="rgb8", payload=payload) for payload in payloads))
    found = Retrieve(bank, ClipEmbedding(model))(picture, None, 0)
    assert np.array_equal(found.payload, other)
    assert ClipEmbedding(model)(picture).ndim == 1


def test_a_folder_without_a_model_is_named(tmp_path: Path, picture: Media) -> None:
    with pytest.raises(ValueError, match=r"similarity model '.*nothing' cannot be loaded"):
        ClipSimilarity(str(tmp_path / "nothing"))(picture, ["dog"], {})
    sound = Media(kind="audio", space="pcm16", payload=np.zeros(100, dtype=np.int16))
    with pytest.raises(ValueError, match="similarity reads images"):
        ClipSimilarity(str(tmp_path))(sound, ["dog"], {})


def brightness(media: Media, texts: Sequence[str], gold: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(float(media.payload.mean()) / 100 + len(text) for text in texts)


def test_the_least_similar_candidate_is_chosen() -> None:
    pictures = [
        Media(kind="image", space="rgb8", payload=np.full((2, 2, 3), value, dtype=np.uint8))
        for value in (90, 20, 50, 20)
    ]
    assert least_similar(pictures, "dog", {}, brightness) == 1
    with pytest.raises(ValueError, match="at least one picture"):
        least_similar([], "dog", {}, brightness)


def test_corruption_weights_golden() -> None:
    """1 - similarity, and 0 where that is below 0: brightness 0 gives the lengths 0 and 2."""
    dark = Media(kind="image", space="rgb8", payload=np.zeros((2, 2, 3), dtype=np.uint8))
    assert corruption_weights(dark, ["", "ab"], {}, brightness) == (1.0, 0.0)
