"""What is kept of answers and of what people think of them: consent, redaction, durability, bounds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.served import open_served, read, segments
from pipelines.settings_errors import SettingsError
from serving.feedback import FeedbackStore, load_redaction
from serving.settings import FeedbackSettings
from tests.serving.feedback.speaking import kinds, like, name, painted, prefer, rate, remember


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(tmp_path, consent="all")


def test_feedback_writes_the_answers_that_it_is_on(store: FeedbackStore, tmp_path: Path):
    for number in (1, 2, 3):
        remember(store, number, picture="red")
    assert kinds(tmp_path) == [] and not list((tmp_path / "media").iterdir())
    assert prefer(store, 1, 2) is None
    assert rate(store, kind="correction", id=name(1), correction="better") is None
    assert kinds(tmp_path) == ["answer", "answer", "choice", "correction"]
    [stored] = (tmp_path / "media").iterdir()
    assert stored.read_bytes() == painted("red")
    event = read(tmp_path).events[0]
    assert event["images"] == [stored.name] and event["version"] == "v-1"
    assert event["messages"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}
    ]


@pytest.mark.parametrize(
    ("consent", "header", "key", "kept"),
    [
        ("off", True, True, False),
        ("header", True, False, True),
        ("header", False, True, False),
        ("key", False, True, True),
        ("key", True, False, False),
        ("all", False, False, True),
    ],
)
def test_nothing_is_kept_without_consent(tmp_path: Path, consent: Any, header: bool, key: bool, kept: bool):
    store = FeedbackStore(tmp_path, consent=consent, sample=1.0)
    remember(store, 1, header=header, key=key)
    refused = like(store, 1)
    assert (refused is None) == kept == bool(kinds(tmp_path))


def test_the_sample_of_the_traffic_is_written_at_once_and_survives_a_restart(tmp_path: Path):
    store = FeedbackStore(tmp_path, consent="all", sample=0.5)
    for number in range(200):
        remember(store, number)
    written = {event["id"] for event in read(tmp_path).events}
    assert 60 < len(written) < 140  # 7 standard deviations are 50
    again = FeedbackStore(tmp_path, consent="all")
    answers = [like(again, number) for number in range(200)]
    assert [a is None for a in answers] == [name(number) in written for number in range(200)]
    assert {a.code for a in answers if a is not None} == {"answer_not_found"}


def test_unknown_expired_and_other_peoples_answers(tmp_path: Path):
    now = [0.0]
    store = FeedbackStore(tmp_path, consent="all", clock=lambda: now[0])
    remember(store, 1)
    for refused in (like(store, 9), like(store, 1, client="bob"), prefer(store, 1, 9)):
        assert refused is not None and (refused.status, refused.code) == (404, "answer_not_found")
    now[0] = 3601.0
    assert like(store, 1) is not None and kinds(tmp_path) == []


def test_the_same_again_changes_nothing_and_another_opinion_replaces_it(store: FeedbackStore, tmp_path: Path):
    remember(store, 1)
    remember(store, 2)
    assert [prefer(store, 1, 2) for _ in range(3)] == [None] * 3
    assert kinds(tmp_path) == ["answer", "answer", "choice"]
    again = FeedbackStore(tmp_path, consent="all")  # it is known after a restart as well
    assert prefer(again, 1, 2) is None and prefer(again, 2, 1) is None
    last = read(tmp_path).events[-1]
    assert (last["chosen"], last["replaces"]) == (name(2), name(1))
    assert (again.counts["repeated"], again.counts["replaced"]) == (1, 1)
    [row] = [row for _, row in open_served(tmp_path).rows()]
    assert row["gold"]["chosen"] == "text 2"


def test_a_choice_is_between_answers_to_one_prompt(store: FeedbackStore, tmp_path: Path):
    remember(store, 1)
    remember(store, 2, asked="something else?")
    refused = prefer(store, 1, 2)
    assert refused is not None and (refused.status, refused.code) == (400, "different_prompts")
    assert kinds(tmp_path) == []


def test_every_text_is_redacted_before_it_is_written(tmp_path: Path):
    store = FeedbackStore(tmp_path, consent="all", redact=lambda text: text.replace("SECRET", "*"))
    remember(store, 1, asked="SECRET 1", text="SECRET 2")
    rate(store, kind="correction", id=name(1), correction="SECRET 3", comment="SECRET 4")
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"SECRET" not in content and content.count(b"* ") == 4


@pytest.mark.parametrize("redact", [lambda text: 1 // 0, lambda text: None])
def test_where_the_redaction_fails_nothing_is_written(
    tmp_path: Path, redact: Any, caplog: pytest.LogCaptureFixture
):
    store = FeedbackStore(tmp_path, consent="all", redact=redact)
    remember(store, 1, asked="SECRET", picture="red")
    refused = like(store, 1)
    assert refused is not None and (refused.status, refused.code) == (503, "redaction_failed")
    assert store.counts["redaction_failed"] == 1 and "SECRET" not in caplog.text
    assert not segments(tmp_path) and not list((tmp_path / "media").iterdir())


def test_a_redaction_is_a_function_of_a_file_or_a_module(tmp_path: Path):
    (tmp_path / "hook.py").write_text("def clean(text):\n    return text.upper()\n")
    assert load_redaction(f"{tmp_path / 'hook.py'}:clean")("a") == "A"
    with pytest.raises(SettingsError, match=r"feedback\.redact"):
        load_redaction(f"{tmp_path / 'hook.py'}:missing")
    assert FeedbackStore.of(FeedbackSettings(folder=str(tmp_path))) is None  # consent is off by default


def test_a_redaction_of_a_package_in_the_current_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own_redaction").mkdir()
    (tmp_path / "own_redaction" / "hooks.py").write_text("def clean(text):\n    return text.upper()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_redaction("own_redaction.hooks:clean")("a") == "A"


def test_what_rows_cannot_hold_is_counted_and_not_kept(store: FeedbackStore):
    remember(store, 1, body={"tools": [{"type": "function"}]})
    remember(store, 2, text="")
    remember(store, 3, body={"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]})
    assert store.counts["unsuited"] == 3 and like(store, 1) is not None


def test_a_torn_last_line_is_removed_and_counted(store: FeedbackStore, tmp_path: Path):
    remember(store, 1)
    like(store, 1)
    [path] = segments(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"kind": "rating", "id"')
    again = FeedbackStore(tmp_path, consent="all")
    assert again.counts["torn"] == 1
    assert like(again, 1, -1) is None
    assert kinds(tmp_path) == ["answer", "rating", "rating"] and not read(tmp_path).bad


def test_a_failed_write_leaves_no_half_line(
    store: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remember(store, 1)
    remember(store, 2)
    like(store, 1)
    before = segments(tmp_path)[0].read_bytes()
    with monkeypatch.context() as full:

        def fails(handle: int) -> None:
            raise OSError(28, "No space left on device")

        full.setattr("pipelines.durable.os.fsync", fails)
        with pytest.raises(OSError, match="No space"):
            like(store, 2)
    assert segments(tmp_path)[0].read_bytes() == before
    assert like(store, 2) is None
    assert kinds(tmp_path) == ["answer", "rating", "answer", "rating"]


def test_above_its_size_the_oldest_goes(tmp_path: Path):
    store = FeedbackStore(tmp_path, consent="all", sample=1.0, max_mib=0.1)
    for number in range(100):
        remember(store, number, text=f"{number} " + "word " * 500)
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 0.1 * 2**20
    left = [int(event["id"].removeprefix("chatcmpl-"), 16) for event in read(tmp_path).events]
    assert store.counts["evicted"] > 0 and left == list(range(left[0], 100)) and len(left) > 20
    assert like(store, 0) is not None and like(store, 99) is None


def test_two_writers_see_each_other(store: FeedbackStore, tmp_path: Path):
    other = FeedbackStore(tmp_path, consent="all")
    remember(store, 1)
    like(store, 1)
    assert like(other, 1) is None and other.counts["repeated"] == 1
    assert like(other, 1, -1) is None and like(store, 1, -1) is None
    assert kinds(tmp_path) == ["answer", "rating", "rating"]
    assert [json.loads(line)["kind"] for line in segments(tmp_path)[0].read_bytes().splitlines()]
