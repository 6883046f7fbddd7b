"""Somebody's own rows: every kind of bad input is one message with file and line, and never a crash."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data import BadRow, DataError, FileSource, admit
from pipelines.data.files import open_file, parse_line

SPECIAL = frozenset({"<|im_end|>", "<|image_pad|>"})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png (red) and b.png (blue), 8 x 6 pixels."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def jsonl(folder: Path, *rows: Mapping[str, Any] | str | bytes, **options: Any) -> FileSource:
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
        for row in rows
    ]
    (folder / "rows.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return open_file(folder / "rows.jsonl", special=SPECIAL, **options)


def only_bad(source: FileSource) -> BadRow:
    inventory = source.inventory()
    assert (list(inventory.usable), len(inventory.bad)) == ([], 1)
    return inventory.bad[0]


def test_a_good_row_becomes_a_prompt_with_its_media_and_gold(pictures: Path) -> None:
    content = [{"type": "text", "text": "left"}, {"type": "image"}, {"type": "image"}]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
    source = jsonl(pictures, {"id": 7, "prompt": messages, "images": ["a.png", "b.png"], "truth": {"n": 2}})
    ((position, row),) = source.rows()
    prompt, media = source.prompt(row)
    assert (position, prompt.id, prompt.gold) == (0, "7", {"truth": {"n": 2}})
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert [part.kind for part in prompt.messages[1].parts] == ["text", "image", "image"]
    colours = [media[digest].payload[0, 0].tolist() for digest in prompt.media]
    assert colours == [[255, 0, 0], [0, 0, 255]]


def test_images_without_a_place_go_in_front_of_the_first_user_message(pictures: Path) -> None:
    source = jsonl(pictures, {"prompt": "describe", "image": "a.png"})
    prompt, _ = source.prompt(source.row((pictures / "rows.jsonl").read_text(), 0))
    assert [part.kind for part in prompt.messages[0].parts] == ["image", "text"]
    assert prompt.id == "rows:1"


def test_text_only_rows_and_empty_lines(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"prompt": "one"}, "", "   ", {"prompt": "two"})
    assert source.inventory().usable == [0, 3]
    assert [row["id"] for _, row in source.rows()] == ["rows:1", "rows:4"]


def test_windows_line_ends_and_a_utf8_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes('\ufeff{"prompt": "grün"}\r\n{"prompt": "x"}\r\n'.encode())
    assert open_file(tmp_path / "rows.jsonl").inventory().usable == [0, 1]


def test_at_most_count_usable_rows(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"prompt": "a"}, "broken", {"prompt": "b"}, {"prompt": "c"}, count=2)
    assert source.inventory().usable == [0, 2]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"prompt": "x"', "broken JSON"),
        ('{"prompt": "x"} trailing', "broken JSON (Extra data"),
        (b'{"prompt": "\xff"}', "byte 0xff at column 13, expected UTF-8 text"),
        (b'{"prompt": "a\x00b"}', "a NUL character"),
        ('{"prompt": "a\\u0000b"}', "a NUL character"),
        ('{"prompt": "\\ud800"}', "the lone surrogate U+D800"),
        ('{"prompt": "x", "note": ["\\udc00"]}', "the lone surrogate U+DC00"),
        ('{"prompt": "x", "prompt": "y"}', "the key 'prompt' twice"),
        ('{"prompt": "x", "value": NaN}', "the number NaN"),
        ('{"prompt": "x", "value": -Infinity}', "the number -Infinity"),
        ('{"prompt": "x", "value": 1e400}', "the number 1e400"),
        ('["prompt"]', "a JSON list, expected a JSON object"),
        ('"prompt"', "a JSON str, expected a JSON object"),
        ("[" * 100_000, "the line"),
        ('{"prompt": "x", "n": ' + "9" * 5000 + "}", "JSON that cannot be read"),
        ('{"text": "x"}', "expected a column `prompt`"),
        ('{"prompt": null}', "`prompt`: got nothing"),
        ('{"prompt": 3}', "`prompt`: got int"),
        ('{"prompt": " "}', "nothing but white space"),
        ('{"prompt": []}', "an empty list"),
        ('{"prompt": ["x"]}', "message 1: got str"),
        ('{"prompt": [{"role": "robot", "content": "x"}]}', "the role of message 1: got 'robot'"),
        ('{"prompt": [{"role": "user"}]}', "the content of message 1: got nothing"),
        ('{"prompt": [{"role": "user", "content": []}]}', "the content of message 1"),
        ('{"prompt": [{"role": "user", "content": "x", "tool": 1}]}', "the key 'tool'"),
        ('{"prompt": [{"role": "user", "content": [{"type": "video"}]}]}', "a part of message 1"),
        ('{"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}', "an image inside the part"),
        ('{"prompt": [{"role": "assistant", "content": "y"}]}', "role 'assistant'"),
        ('{"prompt": [{"role": "system", "content": [{"type": "image"}]}]}', "an image said by 'system'"),
        ('{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}', "`prompt`: got 1, expected 0"),
        ('{"prompt": "see <image> here"}', "the placeholder <image>"),
        ('{"prompt": "<|image_pad|>"}', "<|image_pad|>, a special token of the model"),
        ('{"prompt": "stop<|im_end|>"}', "<|im_end|>, a special token of the model"),
        ('{"prompt": "x", "id": ""}', "`id`: got ''"),
        ('{"prompt": "x", "id": true}', "`id`: got True"),
        ('{"prompt": "x", "images": "a.png"}', "`images`: got str"),
        ('{"prompt": "x", "images": [3]}', "an entry of `images`: got 3"),
        ('{"prompt": "x", "images": ["http://example.org/a.png"]}', "Pictures are not fetched"),
        ('{"prompt": "x", "images": ["a"], "image": "b"}', "both `images` and `image`"),
        ('{"prompt": "x", "images": ["a", "a", "a"]}', "images: got 3, expected at most 2"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_file_and_line(line: str | bytes, part: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"prompt": "fine"}, line, max_images=2)
    inventory = source.inventory()
    assert inventory.usable == [0]
    (bad,) = inventory.bad
    assert str(bad).startswith("rows.jsonl:2: ")
    assert part in str(bad)


def test_a_model_without_vision_gets_no_images(pictures: Path) -> None:
    bad = only_bad(jsonl(pictures, {"prompt": "x", "image": "a.png"}, max_images=0))
    assert "this model reads text only" in str(bad)


def test_an_id_used_twice(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    inventory = source.inventory()
    assert inventory.usable == [0]
    assert "rows.jsonl:2: `id`: got 'a' again, expected one not used at rows.jsonl:1" in str(inventory.bad[0])


def test_a_missing_and_an_unreadable_image(pictures: Path) -> None:
    (pictures / "text.png").write_text("not a picture")
    (pictures / "cut.png").write_bytes((pictures / "a.png").read_bytes()[:50])
    names = ("none.png", "text.png", "cut.png", "")
    source = jsonl(pictures, *({"prompt": "x", "images": [name]} for name in names))
    bad = source.inventory().bad
    assert [row.where for row in bad] == [f"rows.jsonl:{n}" for n in (1, 2, 3, 4)]
    assert "image 1 (none.png): got no such file" in str(bad[0])
    assert "not a picture that can be read" in str(bad[1])
    assert "damaged or truncated" in str(bad[2])


def test_an_image_that_vanishes_after_the_inventory_is_a_bad_row_not_a_crash(pictures: Path) -> None:
    source = jsonl(pictures, {"prompt": "x", "image": "a.png"})
    ((_, row),) = source.rows()
    (pictures / "a.png").unlink()
    with pytest.raises(BadRow, match=r"rows\.jsonl:1: image 1 \(a\.png\): got no such file"):
        source.prompt(row)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt\nx\n")
    for path, part in ((tmp_path, "is a directory"), (tmp_path / "no.jsonl", "no such file"), (tmp_path / "rows.csv", "'.csv'")):  # fmt: skip  # noqa: E501
        with pytest.raises(DataError, match=part):
            open_file(path)
    (tmp_path / "wide.jsonl").write_bytes('{"prompt": "x"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        open_file(tmp_path / "wide.jsonl").inventory()


def test_a_file_without_line_breaks_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.data.files.MAX_LINE", 100)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a line longer"):
        jsonl(tmp_path, {"prompt": "x"}, {"prompt": "y" * 200}).inventory()


def test_no_usable_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 usable rows"):
        admit(jsonl(tmp_path).inventory(), max_bad_rows=0)


def test_bad_rows_are_listed_and_end_the_run_above_the_limit(tmp_path: Path) -> None:
    inventory = jsonl(tmp_path, {"prompt": "fine"}, "broken", {"text": 1}).inventory()
    listing = tmp_path / "run" / "bad_rows.jsonl"
    admit(inventory, max_bad_rows=2, listing=listing)
    records = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [record["where"] for record in records] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert set(records[0]) == {"where", "what", "got", "expected", "fix"}
    with pytest.raises(DataError, match=r"2 bad rows, but data\.max_bad_rows is 1") as caught:
        admit(inventory, max_bad_rows=1)
    assert "rows.jsonl:2" in str(caught.value)


def test_a_bad_row_crosses_a_process_border_unchanged() -> None:
    error = BadRow("rows.jsonl:2", "what", "got", "expected", "fix")
    assert pickle.loads(pickle.dumps(error)).to_json() == error.to_json()


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_line_raises_anything_but_bad_row(line: bytes) -> None:
    try:
        assert isinstance(parse_line(line, "x:1"), dict)
    except BadRow as error:
        assert error.where == "x:1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "prompt"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["prompt", "images", "image", "id", "other"]), JSON, max_size=4))
def test_no_row_raises_anything_but_bad_row(row: dict[str, Any]) -> None:
    source = FileSource(path=Path("rows.jsonl"), kind="jsonl")
    try:
        assert source.row(json.dumps(row), 0)["turns"]
    except BadRow as error:
        assert error.where == "rows.jsonl:1"


def parquet(folder: Path, rows: list[dict[str, Any]]) -> FileSource:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return open_file(folder / "rows.parquet", special=SPECIAL)


def test_parquet_rows_hold_bytes_paths_and_nested_prompts(pictures: Path) -> None:
    png = (pictures / "a.png").read_bytes()
    content = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
    rows = [
        {
            "prompt": [{"role": "user", "content": content}],
            "images": [{"bytes": png, "path": None}],
            "truth": 1.5,
        },
        {
            "prompt": [{"role": "user", "content": content}],
            "images": [{"bytes": None, "path": "b.png"}],
            "truth": 2.5,
        },
    ]
    source = parquet(pictures, rows)
    made = [source.prompt(row) for _, row in source.rows()]
    assert [prompt.gold for prompt, _ in made] == [{"truth": 1.5}, {"truth": 2.5}]
    assert [prompt.id for prompt, _ in made] == ["rows:1", "rows:2"]
    first, second = (media[prompt.media[0]].payload[0, 0].tolist() for prompt, media in made)
    assert (first, second) == ([255, 0, 0], [0, 0, 255])


def test_plain_image_bytes_in_parquet(pictures: Path) -> None:
    source = parquet(pictures, [{"prompt": "x", "images": [(pictures / "a.png").read_bytes()]}])
    assert source.inventory().usable == [0]


def test_bad_parquet_rows_and_files(tmp_path: Path) -> None:
    bad = parquet(tmp_path, [{"prompt": "fine"}, {"prompt": None}]).inventory().bad
    assert [row.where for row in bad] == ["rows.parquet row 2"]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-10])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        open_file(tmp_path / "cut.parquet").inventory()


def test_extension_types_are_refused_since_reading_them_can_run_code(tmp_path: Path) -> None:
    """Where an earlier test of this process loaded Ray Data, its type refuses itself while the file opens."""
    column = pa.field("prompt", pa.string(), metadata={"ARROW:extension:name": "ray.data.arrow_tensor"})
    pq.write_table(
        pa.Table.from_arrays([pa.array(["x"])], schema=pa.schema([column])), tmp_path / "x.parquet"
    )
    with pytest.raises(DataError, match=r"extension type|not a readable Parquet file"):
        open_file(tmp_path / "x.parquet").inventory()


def test_a_source_travels(pictures: Path) -> None:
    source = jsonl(pictures, {"prompt": "x", "image": "a.png"})
    prompt, media = pickle.loads(pickle.dumps(source)).prompt(
        source.row('{"prompt": "x", "image": "a.png"}', 0)
    )
    assert np.array_equal(media[prompt.media[0]].payload[0, 0], [255, 0, 0])
