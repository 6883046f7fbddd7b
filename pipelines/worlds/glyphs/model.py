"""A tiny but real Qwen2.5-VL for the glyphs world: configuration, tokenizer, processor and chat template.

Everything here is what transformers and vLLM load for the big models, only smaller: about 1.4 million
parameters, so that a checkpoint fits into a repository and a laptop trains it in minutes. `transformers` is
imported inside the functions, so importing this module stays cheap.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers are typed in part only)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.worlds.glyphs import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor

IMAGE_SIZE = 64
PATCH = 8
MERGE = 2
#: A 64x64 image is 8x8 patches, merged 2x2: what the language model sees of it.
IMAGE_TOKENS = (IMAGE_SIZE // (PATCH * MERGE)) ** 2
#: About the mean and standard deviation of a scene's pixels in 0..1, which are mostly black.
PIXEL_MEAN, PIXEL_STD = 0.05, 0.2
#: The processor shrinks above and enlarges below this many pixels, so a scene passes unchanged.
_SIZE = {"shortest_edge": IMAGE_SIZE * IMAGE_SIZE, "longest_edge": IMAGE_SIZE * IMAGE_SIZE}
_PIXELS: dict[str, Any] = {
    "image_mean": [PIXEL_MEAN] * 3,
    "image_std": [PIXEL_STD] * 3,
    "patch_size": PATCH,
    "merge_size": MERGE,
    "size": _SIZE,
}

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with Qwen's special tokens: lower case, words and punctuation split apart."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys((*vocabulary.SPECIAL_TOKENS, *vocabulary.WORDS))
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=vocabulary.UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    extra = [vocabulary.TURN_START, vocabulary.VISION_START, vocabulary.VISION_END]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=vocabulary.UNKNOWN,
        eos_token=vocabulary.TURN_END,
        pad_token=vocabulary.END_OF_TEXT,
        additional_special_tokens=[*extra, vocabulary.IMAGE_PAD, vocabulary.VIDEO_PAD],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor with 8-pixel patches; a 64x64 image becomes 64 patches and 16 tokens."""
    from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_PIXELS),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**_PIXELS, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The shape of the model. Attention heads are 32 wide: vLLM's CPU attention has no narrower kernel."""
    from transformers import Qwen2_5_VLConfig

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))  # pyright: ignore[reportArgumentType]

    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": token(vocabulary.TURN_END),
        "pad_token_id": token(vocabulary.END_OF_TEXT),
        "tie_word_embeddings": True,
    }
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 3,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": IMAGE_SIZE,
        "fullatt_block_indexes": [0, 1, 2],
        "out_hidden_size": 128,
        "initializer_range": 0.05,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token(vocabulary.IMAGE_PAD),
        video_token_id=token(vocabulary.VIDEO_PAD),
        vision_start_token_id=token(vocabulary.VISION_START),
        vision_end_token_id=token(vocabulary.VISION_END),
        tie_word_embeddings=True,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )


def build_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model in fp32; the same seed gives the same weights."""
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=64
    )
    return model


def save_checkpoint(model: Qwen2_5_VLForConditionalGeneration, directory: Path) -> None:
    """Write weights, configuration, tokenizer, processor and chat template in the Hugging Face layout."""
    model.save_pretrained(directory)
    build_processor().save_pretrained(directory)
