"""Pictures, and tiny detectors and segmenters with random weights, built from configurations alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.types import Media

WORDS = ("a", "red", "blue", "seven", "one", "dog")


@pytest.fixture
def picture() -> Media:
    """A random picture, 40 high and 56 wide."""
    payload = np.random.default_rng(7).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Media(kind="image", space="rgb8", payload=payload)


def save(path: Path, *parts: Any) -> str:
    for part in parts:
        part.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A zero-shot detector whose 16 boxes are the cells of a 4x4 grid over the padded picture."""
    import transformers as hf

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    symbols = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = hf.CLIPTokenizer(
        vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[], pad_token="!", model_max_length=16
    )
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = hf.Owlv2Config(
        text_config={**small, **ids, "vocab_size": len(symbols), "max_position_embeddings": 16},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    torch.manual_seed(0)
    model = hf.Owlv2ForObjectDetection(config)
    torch.nn.init.zeros_(model.box_head.dense2.weight)  # leaves each box at the cell it starts from
    torch.nn.init.zeros_(model.box_head.dense2.bias)
    images = hf.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    processor = hf.Owlv2Processor(image_processor=images, tokenizer=tokenizer)
    return save(tmp_path_factory.mktemp("owlv2"), model, processor)


@pytest.fixture(scope="session")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    import transformers as hf

    symbols = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS)
    tokenizer = hf.BertTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)})
    text = hf.BertConfig(
        vocab_size=len(symbols),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    vision = hf.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3"],
    )
    config = hf.GroundingDinoConfig(
        backbone_config=vision,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=6,
        max_text_len=32,
    )
    torch.manual_seed(0)
    model = hf.GroundingDinoForObjectDetection(config)
    images = hf.GroundingDinoImageProcessor(size={"height": 64, "width": 64})
    processor = hf.GroundingDinoProcessor(image_processor=images, tokenizer=tokenizer)
    return save(tmp_path_factory.mktemp("grounding_dino"), model, processor)


@pytest.fixture(scope="session")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> str:
    import transformers as hf

    backbone = hf.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        blocks_per_stage=[1, 1, 2, 1],
        global_attention_blocks=[3],
        window_size_per_stage=[8, 4, 4, 4],
        window_positional_embedding_background_size=[2, 2],
    )
    config = hf.Sam2Config(
        vision_config=hf.Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=hf.Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16),
        mask_decoder_config=hf.Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    torch.manual_seed(0)
    images = hf.Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    processor = hf.Sam2Processor(image_processor=images, target_size=64)
    return save(tmp_path_factory.mktemp("sam2"), hf.Sam2Model(config), processor)
