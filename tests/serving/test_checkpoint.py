"""What may be served, and what people are told about the rest. Nothing is started here."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from pathlib import Path

import pytest

from actors.checkpoints import begin, commit
from serving.app import ServeError, Server, serve
from serving.checkpoint import NotServable, Servable, find_servable
from serving.replicas.engine_settings import engine_config, media_limits
from serving.settings import Settings

SEES = frozenset(("image", "video"))


def save_model(folder: Path, *, sees: bool = True) -> Path:
    """The smallest folder that passes for a checkpoint: its headers are checked, not its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture = "Qwen2_5_VLForConditionalGeneration" if sees else "Qwen2ForCausalLM"
    config = {"architectures": [architecture], **({"image_token_id": 1, "video_token_id": 2} if sees else {})}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"added_tokens": []}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "processor_config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


def test_a_model_folder_is_served_under_its_own_name(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "my model")

    assert find_servable(folder) == Servable(path=folder, name="my-model", media=SEES)
    assert find_servable(folder, "policy").name == "policy"


def test_a_text_only_model_takes_no_images(tmp_path: Path) -> None:
    found = find_servable(save_model(tmp_path / "text", sees=False))

    assert not found.sees
    assert "limit_mm_per_prompt" not in engine_config(found, gpus=0)["engine_kwargs"]


def test_an_engine_is_told_of_each_medium_that_its_model_takes() -> None:
    sees, hears = (
        Servable(path=Path("/m"), name="m", media=frozenset(media))
        for media in (("image", "video"), ("audio",))
    )
    assert engine_config(sees, gpus=0)["engine_kwargs"]["limit_mm_per_prompt"]["video"] > 0
    assert media_limits(sees, 2) == {"limit_mm_per_prompt": {"image": 2, "video": 2, "audio": 0}}
    assert media_limits(hears, 3) == {"limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 3}}


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')

    with pytest.raises(NotServable, match="expected an architecture that writes text"):
        find_servable(folder)


def commit_model(run: Path, step: int) -> Path:
    """A committed checkpoint of a run."""
    save_model(begin(run, step))
    return commit(run, step, attempt=1, facts={})


def test_a_checkpoint_of_a_run_carries_the_name_of_the_run(tmp_path: Path) -> None:
    folder = commit_model(tmp_path / "glyphs", 60)

    assert find_servable(folder) == Servable(path=folder, name="glyphs", media=SEES)


def test_the_newest_sound_checkpoint_of_a_run_is_taken(tmp_path: Path) -> None:
    run = tmp_path / "glyphs"
    older, newer = commit_model(run, 8), commit_model(run, 12)

    assert find_servable(run).path == newer
    (newer / "config.json").write_text("{}")
    assert find_servable(run).path == older


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotServable, match="nowhere: no such folder"):
        find_servable(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, missing: str) -> None:
    folder = save_model(tmp_path / "model")
    (folder / missing).unlink()

    with pytest.raises(NotServable, match=missing.partition(".")[2]):
        find_servable(folder)


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()

    with pytest.raises(NotServable, match="before its first checkpoint"):
        find_servable(tmp_path)


def test_a_checkpoint_that_does_not_match_its_manifest_is_refused(tmp_path: Path) -> None:
    folder = commit_model(tmp_path, 1)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)

    for target in (folder, tmp_path):
        with pytest.raises(NotServable, match=r"model\.safetensors: its SHA-256"):
            find_servable(target)


def test_a_checkpoint_of_a_run_that_was_never_committed_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "checkpoints" / "step-1")

    with pytest.raises(NotServable, match="never committed"):
        find_servable(folder)


def test_a_port_in_use_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = save_model(tmp_path / "model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(folder, Settings(port=port))


def test_on_cpu_no_gpu_is_asked_for() -> None:
    config = engine_config(Servable(path=Path("/m"), name="m", media=SEES), gpus=0)

    assert config["placement_group_config"] == {"bundles": [{"CPU": 1}]}
    assert config["accelerator_config"] == {"kind": "cpu"}


def test_on_gpus_the_model_is_split_over_all_of_them() -> None:
    config = engine_config(Servable(path=Path("/m"), name="m", media=SEES), gpus=2)

    assert config["placement_group_config"] == {"bundles": [{"CPU": 1, "GPU": 1}] * 2}
    assert config["engine_kwargs"]["tensor_parallel_size"] == 2


def test_the_engine_gets_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    variables = engine_config(Servable(path=Path("/m"), name="m", media=SEES), gpus=0)["runtime_env"][
        "env_vars"
    ]

    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "7"  # the user's own


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81/v1"),
        ("0.0.0.0", "http://127.0.0.1:81/v1"),  # not an address to call
        ("::1", "http://[::1]:81/v1"),
    ],
)
def test_the_url_can_be_called(host: str, url: str) -> None:
    assert Server(models=(), settings=Settings(host=host, port=81, anonymous=True)).url == url


def test_a_symlink_to_a_model_is_followed(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    os.symlink(folder, tmp_path / "latest")

    assert find_servable(tmp_path / "latest").path == folder
    shutil.rmtree(folder)
    with pytest.raises(NotServable, match="no such folder"):
        find_servable(tmp_path / "latest")
