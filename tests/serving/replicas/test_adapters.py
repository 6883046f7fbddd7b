"""Adapters are found wherever they are, copied once, and refused before an engine sees what does not fit."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors import checkpoints
from pipelines.settings_errors import SettingsError
from pipelines.worlds.glyphs import BASE_MODEL
from serving.checkpoint import NotServable, find_servable
from serving.replicas import adapter_files
from serving.replicas.adapter_files import CONFIG, WEIGHTS, BadAdapter, cache_folder, fetch
from serving.replicas.adapters import Adapter, engine_arguments, find_adapters
from serving.settings import load

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"
UP_PROJ = "model.language_model.layers.1.mlp.up_proj"
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
BASE = find_servable(Path(BASE_MODEL), "tiny")
WIDTH = 128
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def factors(module: str = Q_PROJ, rank: int = 4, inputs: int = WIDTH, outputs: int = WIDTH) -> Tensors:
    prefix = f"base_model.model.{module}"
    return {
        f"{prefix}.lora_A.weight": torch.ones(rank, inputs),
        f"{prefix}.lora_B.weight": torch.ones(outputs, rank),
    }


def adapter(folder: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({**PLAIN, **config}))
    save_file(factors() if tensors is None else tensors, folder / WEIGHTS)
    return folder


def found(source: Path | str) -> Adapter:
    (one,) = find_adapters({"short": str(source)}, BASE)
    return one


def in_memory(folder: Path, name: str) -> str:
    files = fsspec.filesystem("memory")
    for file in folder.iterdir():
        files.pipe_file(f"/{name}/{file.name}", file.read_bytes())
    return f"memory://{name}"


# -- what is served ----------------------------------------------------------------------------------------


def test_a_folder_and_a_url_of_the_same_files_are_the_same_version(tmp_path: Path) -> None:
    here = found(adapter(tmp_path / "here"))
    there = found(in_memory(tmp_path / "here", "same"))
    assert (here.id, here.digest) == (there.id, there.digest)
    assert (here.rank, here.scaling, here.targets, here.effective) == (4, 2.0, ("q_proj",), True)
    assert found(adapter(tmp_path / "other", lora_alpha=9)).id != here.id
    assert found(adapter(tmp_path / "root", use_rslora=True)).scaling == 4.0


def test_a_relative_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter(tmp_path / "near")
    monkeypatch.chdir(tmp_path)
    assert found("near").source == str(folder)
    assert found(in_memory(folder, "far")).source == "memory://far"


def test_only_what_an_adapter_consists_of_is_copied(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "crowded")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps("never read"))
    (folder / "README.md").write_text("about")
    (folder / "handler.py").write_text("raise SystemExit")
    copy, _ = fetch(str(folder))
    assert sorted(file.name for file in copy.iterdir()) == [CONFIG, WEIGHTS]


def test_a_run_a_checkpoint_and_its_folder_stand_for_one_adapter(tmp_path: Path) -> None:
    run = tmp_path / "run"
    partial = checkpoints.begin(run, 7)
    adapter(partial / "adapter")
    weights = checkpoints.weights_digest(BASE.path)
    (partial / "adapter" / "base.json").write_text(json.dumps({"weights": weights}))
    step = checkpoints.commit(run, 7, 1, {"ledger": {}})
    assert len({found(place).digest for place in (run, step, step / "adapter")}) == 1

    (step / "adapter" / CONFIG).write_text(json.dumps({**PLAIN, "lora_alpha": 99}))
    for place in (run, step, step / "adapter"):
        with pytest.raises(NotServable, match=r"bytes|SHA-256"):
            found(place)


def test_the_engine_has_room_for_all_of_them(tmp_path: Path) -> None:
    large = factors(UP_PROJ, rank=9, outputs=find_outputs(UP_PROJ))
    given = {"a": str(adapter(tmp_path / "a")), "b": str(adapter(tmp_path / "b", large, r=9))}
    arguments = engine_arguments(find_adapters(given, BASE))
    assert (arguments["max_loras"], arguments["max_lora_rank"]) == (2, 16)
    assert arguments["lora_target_modules"] == ["q_proj", "up_proj"]
    assert engine_arguments(()) == {}


def find_outputs(module: str) -> int:
    from safetensors import safe_open

    with safe_open(BASE.path / "model.safetensors", framework="pt") as opened:
        suffix = module.partition("language_model.")[2]
        (name,) = (name for name in opened.keys() if name.endswith(f"{suffix}.weight"))  # noqa: SIM118
        return opened.get_slice(name).get_shape()[0]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=3), st.integers(1, 64))
def test_it_has_an_effect_exactly_where_some_b_a_is_not_zero(
    layers: list[tuple[bool, bool]], rank: int
) -> None:
    tensors: Tensors = {}
    for index, (down, up) in enumerate(layers):
        pair = factors(Q_PROJ.replace(".0.", f".{index}."), rank)
        tensors |= {name: t * (down if "lora_A" in name else up) for name, t in pair.items()}
    with tempfile.TemporaryDirectory() as folder:
        one = found(adapter(Path(folder), tensors, r=rank))
    assert one.effective == any(down and up for down, up in layers)
    assert one.rank == rank


# -- the copy ----------------------------------------------------------------------------------------------


def test_a_whole_copy_will_do_when_the_source_is_away_and_a_damaged_one_will_not(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "gone", lora_alpha=21)
    copy, digest = fetch(str(folder))
    shutil.rmtree(folder)
    assert fetch(str(folder), digest) == (copy, digest)
    (copy / CONFIG).write_text("{}")
    with pytest.raises(BadAdapter, match=r"there is no adapter_config\.json"):
        fetch(str(folder), digest)
    adapter(folder, lora_alpha=21)
    assert fetch(str(folder), digest) == (copy, digest)
    assert json.loads((copy / CONFIG).read_text())["lora_alpha"] == 21


def test_a_source_that_changed_since_it_was_checked_is_not_loaded(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "moving", lora_alpha=31)
    copy, digest = fetch(str(folder))
    shutil.rmtree(copy)
    adapter(folder, lora_alpha=32)
    with pytest.raises(BadAdapter, match="changed since the server started"):
        fetch(str(folder), digest)


def test_many_at_once_fetch_one_whole_copy_and_leave_nothing_else(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "popular", lora_alpha=41)
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(fetch, [str(folder)] * 16))
    ((copy, digest),) = copies
    assert adapter_files.digest_of(copy) == digest
    assert not list(cache_folder().glob(".fetched-*"))


def test_what_is_refused_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    folder = adapter(tmp_path / "large")
    monkeypatch.setattr(adapter_files, "LARGEST", {**adapter_files.LARGEST, WEIGHTS: 1000})
    for source in (str(folder), in_memory(folder, "large")):
        with pytest.raises(NotServable, match=r"adapters.short: .*larger than the 1,000 bytes"):
            found(source)
    assert list(cache_folder().iterdir()) == []


def test_a_source_that_lies_about_its_size_is_bounded_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = in_memory(adapter(tmp_path / "liar"), "liar")
    monkeypatch.setattr(adapter_files, "LARGEST", {**adapter_files.LARGEST, WEIGHTS: 1000})
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "size", lambda *_: 1)
    with pytest.raises(NotServable, match="larger than the 1,000 bytes"):
        found(source)


# -- what is refused ---------------------------------------------------------------------------------------

Change = Callable[[Path], object]


def configured(**config: Any) -> Change:
    return lambda folder: adapter(folder, **config)


def holding(tensors: Tensors) -> Change:
    return lambda folder: adapter(folder, tensors)


def changed(name: str, value: Callable[[torch.Tensor], torch.Tensor | None]) -> Change:
    """One of the factors as `value` makes it; None: left out."""
    whole = factors()
    (full,) = (one for one in whole if name in one)
    new = value(whole.pop(full))
    return holding(whole if new is None else {**whole, full: new})


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


NO_LAYER = r"has no linear layer .* expected one of its language layers, such as model\.language_model\."
BAD: dict[str, tuple[Change, str]] = {
    "rank of the tensors": (
        configured(r=8),
        r"q_proj\.lora_A\.weight: expected the shape \[8, 128\] \(rank x inputs\), got \[4, 128\]",
    ),
    "width": (holding(factors(inputs=64)), r"expected the shape \[4, 128\] \(rank x inputs\), got \[4, 64\]"),
    "height": (
        holding(factors(outputs=64)),
        r"lora_B\.weight: expected the shape \[128, 4\] \(outputs x rank\), got \[64, 4\]",
    ),
    "layer that is not there": (holding(factors(Q_PROJ.replace(".0.", ".99."))), NO_LAYER),
    "vision tower": (holding(factors("model.visual.blocks.0.attn.proj")), NO_LAYER),
    "head": (holding(factors("lm_head")), NO_LAYER),
    "norm": (holding(factors("model.language_model.norm")), NO_LAYER),
    "another model's names": (holding(factors("model.layers.0.self_attn.q_proj")), NO_LAYER),
    "path as a name": (holding({"../../etc/passwd": torch.ones(4, 4)}), "expected a name such as base_model"),
    "whole layer": (
        holding({"base_model.model.lm_head.weight": torch.ones(4, 4)}),
        "expected a name such as",
    ),
    "no B": (changed("lora_B", lambda t: None), "lora_A is there, lora_B is missing"),
    "no A": (changed("lora_A", lambda t: None), "lora_B is there, lora_A is missing"),
    "NaN": (changed("lora_B", lambda t: t * torch.nan), "values that are not finite"),
    "infinite": (changed("lora_A", lambda t: t / 0), "values that are not finite"),
    "integers": (changed("lora_A", lambda t: t.int()), "expected one of F32, F16, BF16, got I32"),
    "no tensors": (holding({}), "it holds no tensors"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"there is no {WEIGHTS}: no weights"),
    "pickle": (pickled, r"adapter_model\.bin can run code when it is loaded; save it as safetensors"),
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), f"there is no {CONFIG}"),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), f"{CONFIG}: it cannot be read"),
    "deep JSON": (lambda folder: (folder / CONFIG).write_text("[" * 90_000), f"{CONFIG}: it cannot be read"),
    "no text": (
        lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\x00"),
        f"{CONFIG}: it cannot be read",
    ),
    "no object": (lambda folder: (folder / CONFIG).write_text("[]"), "expected a JSON object, got list"),
    "large configuration": (configured(revision="x" * 2**20), "larger than the 1,048,576 bytes"),
    "IA3": (configured(peft_type="IA3"), "peft_type: expected 'LORA', got 'IA3'"),
    "DoRA": (configured(use_dora=True), "use_dora=True is more than plain LoRA"),
    "biases": (configured(bias="all"), "bias='all' is more than plain LoRA"),
    "whole modules": (configured(modules_to_save=["lm_head"]), "modules_to_save=.* more than plain LoRA"),
    "ranks by layer": (configured(rank_pattern={"q_proj": 2}), "rank_pattern=.* more than plain LoRA"),
    "changed base": (configured(init_lora_weights="pissa"), "init_lora_weights='pissa' is more than plain"),
    "unknown option": (configured(of_another_year=True), "of_another_year=True is more than plain LoRA"),
    "no rank": (configured(r=0), "r: expected a rank from 1 to 512, got 0"),
    "large rank": (configured(r=513), "r: expected a rank from 1 to 512, got 513"),
    "rank as text": (configured(r="4"), "r: expected a rank from 1 to 512, got '4'"),
    "rank as truth": (configured(r=True), "r: expected a rank from 1 to 512, got True"),
    "no alpha": (configured(lora_alpha=None), "lora_alpha: expected a number other than 0, got None"),
    "alpha of zero": (configured(lora_alpha=0), "lora_alpha: expected a number other than 0, got 0"),
    "infinite alpha": (configured(lora_alpha=float("inf")), "lora_alpha: expected a number other than 0"),
    "other base": (
        lambda folder: (folder / "base.json").write_text('{"weights": "0123456789abcdef"}'),
        r"trained on other weights \(SHA-256 0123456789ab\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_an_adapter_that_does_not_fit_is_refused_in_words(name: str, tmp_path: Path) -> None:
    change, expected = BAD[name]
    folder = adapter(tmp_path / "bad")
    change(folder)
    with pytest.raises(NotServable, match=rf"^adapters\.short: {folder}: .*{expected}"):
        found(folder)


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_anywhere_is_refused(share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = adapter(Path(folder)) / WEIGHTS
        content = weights.read_bytes()
        weights.write_bytes(content[: int(share * len(content))])
        with pytest.raises(NotServable, match="damaged or cut off"):
            found(folder)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/nowhere/at/all", "there is no adapter_config.json"),
        ("memory://nobody", "there is no adapter_config.json"),
        ("s4://bucket/adapter", "it cannot be read: ValueError: Protocol not known: s4"),
    ],
)
def test_a_place_without_an_adapter_is_named(source: str, expected: str) -> None:
    with pytest.raises(NotServable, match=f"adapters.short: {source}: {expected}"):
        found(source)


def test_a_run_without_a_checkpoint_has_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(NotServable, match="ended before its first checkpoint"):
        found(tmp_path / "run")


def test_an_adapter_of_a_run_does_not_fit_the_runs_own_merged_checkpoint(tmp_path: Path) -> None:
    """Shapes and names do fit: without the digest of the base it would be applied twice."""
    merged = tmp_path / "merged"
    shutil.copytree(BASE_MODEL, merged)
    tensors = load_file(merged / "model.safetensors")
    save_file({name: t * 1.01 for name, t in tensors.items()}, merged / "model.safetensors", {"format": "pt"})
    folder = adapter(tmp_path / "adapter")
    weights = checkpoints.weights_digest(BASE.path)
    (folder / "base.json").write_text(json.dumps({"weights": weights}))
    assert found(folder)
    with pytest.raises(NotServable, match="have the adapter merged already"):
        find_adapters({"short": str(folder)}, find_servable(merged))


def test_a_base_that_is_split_over_gpus_takes_none(tmp_path: Path) -> None:
    with pytest.raises(NotServable, match=r"split over 2 GPUs.*set replicas\.gpus=1"):
        find_adapters({"short": str(adapter(tmp_path / "fits"))}, BASE, gpus=2)


ONE = "models: {tiny: {target: a, adapters: {short: x}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: {tiny: {target: a, adapters: {tiny: x}}}", "'tiny' is the name of models.tiny already"),
        (f"{ONE}, short: {{target: b}}}}", "'short' is the name of models.short already"),
        (f"{ONE}, other: {{target: b, adapters: {{short: y}}}}}}", "models.tiny.adapters.short already"),
        ("models: {tiny: {target: a, adapters: {../short: x}}}", "short"),
        ("models: {tiny: {registry: r, adapters: {short: x}}}", "each was trained on one base"),
    ],
)
def test_names_and_bases_that_cannot_be_told_apart_are_refused(
    text: str, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        load(file)
