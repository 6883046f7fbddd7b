"""A model folder is judged from its headers: what is accepted, and what each other folder is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoint import NotACheckpoint, inspect, read
from pipelines.data import open_source
from pipelines.settings import Settings, load, model_path

Make = Callable[..., Path]


def refused(path: Path) -> str:
    with pytest.raises(NotACheckpoint) as caught:
        inspect(path)
    return str(caught.value)


def test_what_is_read_of_a_checkpoint(make_checkpoint: Make) -> None:
    found = inspect(make_checkpoint())
    assert (found.media, found.parameters, found.max_length) == ({"image", "video"}, 6, 2048)
    assert found.special == {"<|im_end|>", "<|image_pad|>"}
    assert not inspect(make_checkpoint("text", "LlamaForCausalLM", {"max_position_embeddings": 9})).sees


@pytest.mark.parametrize(
    ("config", "media"),
    [
        ({}, set()),
        ({"image_token_id": None}, set()),
        ({"vision_config": {}, "image_token_index": 5}, {"image"}),
        ({"audio_config": {}, "audio_token_index": 5}, {"audio"}),
        (
            {"thinker_config": {"image_token_id": 1, "video_token_id": 2, "audio_token_id": 3}},
            {"image", "video", "audio"},
        ),
    ],
)
def test_the_configuration_says_which_media_a_model_takes(
    config: dict[str, Any], media: set[str], make_checkpoint: Make
) -> None:
    assert read(make_checkpoint("m", "OtherModel", config)).media == media


def test_the_committed_model_is_a_checkpoint() -> None:
    found = inspect(model_path(Settings()))
    assert found.media == {"image", "video"}
    assert "<|image_pad|>" in found.special
    assert 1_000_000 < found.parameters < 3_000_000


def test_a_folder_that_is_none_or_empty(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "none")
    assert "not a checkpoint: no config.json" in refused(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "expected a JSON object"),
        ("config.json", '{"architectures": ["BertModel"]}', "expected the architecture Qwen2_5_VL"),
        ("config.json", "{}", "got None"),
        ("config.json", '{"architectures": ["XForCausalLM"], "vision_config": {}}', "with a vision tower"),
        ("config.json", '{"architectures": ["XForCausalLM"], "auto_map": {}}', "never done"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("chat_template.jinja", None, "no chat template"),
        ("preprocessor_config.json", None, "it prepares images"),
        ("model.safetensors", None, "no *.safetensors"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer?"),
        ("model.safetensors", "", "not a safetensors file"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "model-2.safetensors"}}',
            "'model-2.safetensors'",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    file: str, content: str | None, part: str, make_checkpoint: Make
) -> None:
    folder = make_checkpoint()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert part in refused(folder)


def test_weights_that_were_cut_off(make_checkpoint: Make) -> None:
    weights = make_checkpoint() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "the file is incomplete" in refused(weights.parent)


def test_pickled_weights_are_not_loaded(make_checkpoint: Make) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "can run code when loaded" in refused(folder)


def test_the_model_decides_what_is_special_and_whether_it_sees(tmp_path: Path, make_checkpoint: Make) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = ({"prompt": "<|im_end|>"}, {"prompt": "x", "image": "a.png"}, {"prompt": "fine <think>"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [f"data={tmp_path / 'rows.jsonl'}", "reward=m:f", f"model={make_checkpoint()}"]
    assert open_source(load(None, given)).inventory().usable == [1, 2]
    blind = make_checkpoint("blind", "LlamaForCausalLM")
    assert open_source(load(None, [*given, f"model={blind}"])).inventory().usable == [2]
