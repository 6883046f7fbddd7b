from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from pipelines.worlds.glyphs.scenes import (
    KINDS,
    POPULAR,
    Scene,
    is_held_out_combination,
    make_scene,
    render_image,
    scans_of,
    scenes,
)


def test_the_same_arguments_give_the_same_scenes_and_pixels() -> None:
    first, second = list(scenes("train", 5, 20, seed=3)), list(scenes("train", 5, 20, seed=3))
    assert first == second
    assert first[4] == make_scene("train", 9, 3)
    assert all(np.array_equal(render_image(a), render_image(b)) for a, b in zip(first, second, strict=True))


def test_seed_split_and_index_each_change_the_scene() -> None:
    def facts(scene: Scene) -> object:
        return scene.objects

    base = facts(make_scene("train", 0, 0))
    others = [make_scene("train", 0, 1), make_scene("heldout", 0, 0), make_scene("train", 1, 0)]
    assert base not in [facts(other) for other in others]


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown split 'test'; expected one of train, heldout"):
        scenes("test", 0, 1, 0)  # type: ignore[arg-type]


def test_scans_of_the_splits_are_disjoint_and_complete() -> None:
    train = {int(scan) for digit in range(10) for scan in scans_of("train", digit)}
    heldout = {int(scan) for digit in range(10) for scan in scans_of("heldout", digit)}
    assert not train & heldout
    assert len(train | heldout) == 1797
    assert 280 <= len(heldout) <= 310
    used = {glyph.scan for scene in scenes("train", 0, 500, 0) for glyph in scene.objects}
    assert used <= train
    used = {glyph.scan for scene in scenes("heldout", 0, 500, 0) for glyph in scene.objects}
    assert used <= heldout


def test_held_out_combinations_are_never_in_training_but_in_held_out_scenes() -> None:
    def combinations(split: str) -> set[tuple[int, int, int]]:
        drawn = scenes(split, 0, 1500, 1)  # type: ignore[arg-type]
        return {(g.digit, g.colour, g.cell) for scene in drawn for g in scene.objects}

    held_out = {(*kind, cell) for kind in KINDS for cell in range(4) if is_held_out_combination(*kind, cell)}
    assert len(held_out) == 11
    assert not combinations("train") & held_out
    assert held_out <= combinations("heldout")
    # every kind is learned somewhere, so only its place is new
    assert {combination[:2] for combination in combinations("train")} == set(KINDS)


def test_scenes_have_one_to_four_objects_in_distinct_cells_in_reading_order() -> None:
    drawn = list(scenes("train", 0, 800, 2))
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3, 4}
    for scene in drawn:
        cells = [glyph.cell for glyph in scene.objects]
        assert cells == sorted(set(cells))


def test_popular_kinds_are_the_most_frequent_ones() -> None:
    drawn = Counter(glyph.kind for scene in scenes("train", 0, 4000, 0) for glyph in scene.objects)
    rarest_popular = min(drawn[kind] for kind in POPULAR)
    most_frequent_other = max(drawn[kind] for kind in KINDS if kind not in POPULAR)
    assert rarest_popular > most_frequent_other


def test_boxes_are_tight_around_exactly_the_lit_pixels() -> None:
    for scene in scenes("train", 0, 60, 4):
        left = render_image(scene)
        for glyph in scene.objects:
            x0, y0, x1, y1 = glyph.box
            inside = left[y0:y1, x0:x1]
            lit = inside.any(axis=2)
            assert lit[0].any() and lit[-1].any() and lit[:, 0].any() and lit[:, -1].any()
            assert set(np.flatnonzero(inside.any(axis=(0, 1)))) == {glyph.colour}
            left[y0:y1, x0:x1] = 0
        assert not left.any()


def test_objects_stay_in_their_cells() -> None:
    for scene in scenes("heldout", 0, 100, 0):
        for glyph in scene.objects:
            x0, y0, x1, y1 = glyph.box
            left, top = 32 * (glyph.cell % 2), 32 * (glyph.cell // 2)
            assert left <= x0 < x1 <= left + 32
            assert top <= y0 < y1 <= top + 32


def test_facts_survive_json_and_columnar_number_types() -> None:
    scene = next(s for s in scenes("train", 0, 50, 0) if len(s.objects) > 1)
    facts = json.loads(json.dumps(scene.to_json()))
    assert Scene.from_json(facts) == scene
    assert len(json.dumps(facts)) < 800
    for entry in facts["objects"]:
        entry["digit"] = np.int64(entry["digit"])
        entry["box"] = np.array(entry["box"])
    assert Scene.from_json(facts) == scene
