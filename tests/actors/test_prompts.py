"""The stream's arithmetic without Ray, then the same rows through Ray Data."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import prompts as module
from actors.prompts import PromptStream, line_chunks, raw_rows, read_chunk


class Rows:
    """A source of which only the reader's side is needed."""

    def __init__(self, kind: str = "glyphs", path: Path | None = None) -> None:
        self.kind, self.path = kind, path


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(source: Any, count: int) -> Iterator[str]:
        return (f"row {index}" for index in range(count))

    monkeypatch.setattr(module, "raw_rows", fake)


def stream(usable: list[int], **more: Any) -> PromptStream:
    return PromptStream(Rows(), usable, put=lambda value: value, **more)


def take(prompts: PromptStream, limit: int) -> list[tuple[int, int, str, Any]]:
    return [
        (cursor, epoch, name, parcel[0]) for cursor, epoch, name, parcel in asyncio.run(prompts.next(limit))
    ]


@pytest.mark.usefixtures("rows")
def test_rows_come_in_order_without_the_unusable_ones_and_epochs_follow() -> None:
    prompts = stream([0, 2, 3])
    assert take(prompts, 2) == [(0, 0, "0", (0, "row 0")), (1, 0, "2", (2, "row 2"))]
    assert take(prompts, 3) == [
        (2, 0, "3", (3, "row 3")),
        (3, 1, "0", (0, "row 0")),
        (4, 1, "2", (2, "row 2")),
    ]


@pytest.mark.usefixtures("rows")
def test_the_last_epoch_ends_the_stream() -> None:
    prompts = stream([0, 1], epochs=2)
    assert [len(take(prompts, 3)) for _ in range(3)] == [3, 1, 0]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("cursor", [0, 1, 2, 3, 7])
def test_a_cursor_is_the_same_prompt_after_seek(cursor: int) -> None:
    straight, sought = stream([1, 4, 5]), stream([1, 4, 5])
    take(sought, 4)
    asyncio.run(sought.seek(cursor))
    assert take(sought, 5) == take(straight, cursor + 5)[cursor:]


@pytest.mark.usefixtures("rows")
def test_an_order_rearranges_prompts_and_keeps_their_identity() -> None:
    prompts = stream([0, 2, 3])
    plain = take(prompts, 3)
    asyncio.run(prompts.reorder([2, 0, 1]))
    ordered = take(prompts, 4)
    assert [item[1:] for item in ordered[:3]] == [plain[2][1:], plain[0][1:], plain[1][1:]]
    assert [item[0] for item in ordered] == [0, 1, 2, 3]
    assert ordered[3][1:] == (1, "0", (0, "row 0"))  # behind the block the data goes on as it is
    asyncio.run(prompts.seek(1))
    assert take(prompts, 3) == ordered[1:]


@given(st.integers(1, 5), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.randoms())
def test_orders_of_several_stages_issue_every_prompt_of_every_pass_once(
    usable: int, blocks: list[int], chance: random.Random
) -> None:
    """Whatever the blocks and their orders: the stream is a permutation of the plain one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "raw_rows", lambda source, count: (f"row {i}" for i in range(count)))
        _compare_with_plain(usable, blocks, chance)


def _compare_with_plain(usable: int, blocks: list[int], chance: random.Random) -> None:
    plain, prompts = stream(list(range(usable))), stream(list(range(usable)))
    seen: list[tuple[int, str]] = []
    for size in blocks:
        order = chance.sample(range(size), size)
        asyncio.run(prompts.reorder(order, start=len(seen)))
        seen += [item[1:3] for item in take(prompts, size)]
    assert sorted(seen) == sorted(item[1:3] for item in take(plain, sum(blocks)))


@pytest.mark.usefixtures("rows")
def test_no_two_prompts_of_an_order_over_several_passes_have_one_identity() -> None:
    prompts = stream([0, 1, 2])
    first = take(prompts, 7)
    asyncio.run(prompts.reorder([6, 5, 4, 3, 2, 1, 0]))
    ordered = take(prompts, 14)
    assert [item[1:] for item in ordered[:7]] == [item[1:] for item in reversed(first)]
    assert len({(epoch, name) for _, epoch, name, _ in ordered}) == 14


@pytest.mark.usefixtures("rows")
def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="at least one usable row"):
        stream([])
    with pytest.raises(ValueError, match="permutation"):
        asyncio.run(stream([0, 1]).reorder([0, 0]))
    with pytest.raises(ValueError, match="not negative"):
        asyncio.run(stream([0]).seek(-1))


def test_data_that_became_shorter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "raw_rows", lambda source, count: iter(["row 0"]))
    with pytest.raises(ValueError, match="shorter: row 3"):
        take(stream([0, 2]), 2)


@given(st.lists(st.text(alphabet="ab\r\u2028\x85 é"), min_size=1), st.integers(1, 20), st.booleans())
def test_chunks_hold_every_line_once_in_order(
    tmp_path_factory: Any, lines: list[str], size: int, ended: bool
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "data.jsonl"
    content = "\n".join(lines).encode() + (b"\n" if ended else b"")
    path.write_bytes(content)
    read = [row["line"] for chunk in line_chunks(path, size) for row in read_chunk(chunk)]
    assert read == list(content.split(b"\n"))[: None if content and content[-1:] != b"\n" else -1]


def test_ray_data_streams_every_kind_in_order(local_ray: None, tmp_path: Path, monkeypatch: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(module, "CHUNK", 100)
    records = [{"prompt": f"say \u2028 {i}", "images": [f"{i}.png"], "extra": {"n": i}} for i in range(50)]
    jsonl = tmp_path / "data.jsonl"
    jsonl.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    parquet = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(records), parquet, row_group_size=7)
    lines = list(raw_rows(Rows("jsonl", jsonl), 50))
    assert [json.loads(line) for line in lines] == records
    assert [dict(row) for row in raw_rows(Rows("parquet", parquet), 50)] == records
    assert list(raw_rows(Rows(), 5)) == [None] * 5


def test_parcels_are_references_that_the_taker_does_not_open(local_ray: None) -> None:
    import ray

    actor = ray.remote(PromptStream).options(num_cpus=0).remote(Rows(), [0, 2, 3])
    [_, (cursor, epoch, name, parcel)] = ray.get(actor.next.remote(2), timeout=60)
    assert (cursor, epoch, name) == (1, 0, "2")
    assert isinstance(parcel[0], ray.ObjectRef) and ray.get(parcel[0]) == (2, None)
    ray.get(actor.reorder.remote([1, 0, 2]))
    assert [item[2] for item in ray.get(actor.next.remote(3), timeout=60)] == ["2", "0", "3"]
    ray.kill(actor)
