"""JSON-lines journals survive crashes and unusual texts, and say where they are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.journal import Journal, read_lines


def test_what_is_written_is_read_back_before_the_file_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "events.jsonl")
    journal.write("seal", step=3, folder=tmp_path)
    journal.append({"step": 4})

    first, second = read_lines(tmp_path / "deep" / "events.jsonl")

    assert first.pop("at") > 0
    assert first == {"event": "seal", "step": 3, "folder": str(tmp_path)}
    assert second == {"step": 4}
    journal.close()


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        journal = Journal(path)
        journal.append({"step": step})
        journal.close()

    assert [record["step"] for record in read_lines(path)] == [1, 2]


def test_what_a_crash_tore_is_cut_off_before_the_next_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"step": 1}\n{"step": 2, "text": "é'.encode()[:-1])  # inside a character
    assert list(read_lines(path)) == [{"step": 1}]

    journal = Journal(path)
    journal.append({"step": 2})
    journal.close()

    assert list(read_lines(path)) == [{"step": 1}, {"step": 2}]


def test_line_separators_inside_a_text_do_not_end_a_record(tmp_path: Path) -> None:
    path, text = tmp_path / "events.jsonl", "one\u2028two\u2029three\x85four\nfive\rsix"
    journal = Journal(path)
    journal.append({"text": text})
    journal.append({"text": "after"})
    journal.close()

    assert [record["text"] for record in read_lines(path)] == [text, "after"]


@pytest.mark.parametrize("torn", ['{"step": 2, "rew', '{"step": 2, "rew\n'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + torn)

    assert list(read_lines(path)) == [{"step": 1}]


def test_a_broken_line_before_the_end_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')

    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a JSON object"):
        list(read_lines(path))


def test_a_journal_that_was_never_written_is_empty(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "events.jsonl")) == []
