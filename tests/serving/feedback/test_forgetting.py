"""Forgetting: what is deleted is gone from the disk, and servers that write meanwhile notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.data.served import open_served, read, segments
from serving.feedback import FeedbackStore
from serving.feedback.forgetting import Kept, NothingKept, Tells, count, forget, of_answer, of_client
from tests.serving.feedback.speaking import kinds, like, name, prefer, rate, remember


def content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    """Ann and Bob got answers about two pictures, of which one is Ann's alone; both said what they think."""
    store = FeedbackStore(tmp_path, consent="all", sample=1.0)
    remember(store, 1, client="ann", picture="red", text="said to ann")
    remember(store, 2, client="bob", picture="blue", text="said to bob")
    remember(store, 3, client="ann", picture="blue", text="also said to ann")
    like(store, 1, client="ann")
    like(store, 2, client="bob")
    return store


def test_a_client_is_gone_from_log_rows_and_pictures(store: FeedbackStore, tmp_path: Path):
    source = open_served(tmp_path)
    before = [position for position, _ in source.rows()]
    assert len(before) == 3  # two ratings and an answer
    assert forget(tmp_path, of_client("ann")) == Kept(answers=2, feedback=1, pictures=1)
    left = content(tmp_path)
    assert b"ann" not in left and name(1).encode() not in left and b"said to bob" in left
    assert len(list((tmp_path / "media").iterdir())) == 1  # the blue one, which Bob was shown too
    [(position, _)] = source.rows()
    assert position in before  # the row of a run that goes on stays in its place


def test_one_answer_goes_with_all_that_names_it(store: FeedbackStore, tmp_path: Path):
    remember(store, 4, client="ann", picture="red", text="another one to ann")
    assert prefer(store, 4, 1) is None
    assert rate(store, kind="correction", id=name(1), correction="better") is None
    assert forget(tmp_path, of_answer(name(1))) == Kept(answers=1, feedback=3, pictures=0)
    left = content(tmp_path)
    assert name(1).encode() not in left and b"better" not in left and b"another one to ann" in left
    assert kinds(tmp_path) == ["answer", "answer", "rating", "answer"]


@pytest.mark.parametrize("tells", [of_client("ann"), of_answer(name(2)), of_client("nobody")])
def test_counting_first_deletes_nothing_and_tells_the_truth(
    store: FeedbackStore, tmp_path: Path, tells: Tells
):
    before = content(tmp_path)
    counted = count(tmp_path, tells)
    assert content(tmp_path) == before
    assert forget(tmp_path, tells) == counted
    assert count(tmp_path, tells) == Kept(answers=0, feedback=0, pictures=0)


def test_a_server_that_runs_knows_it_no_more(store: FeedbackStore, tmp_path: Path):
    """The log shrinks to nothing, which is a change too; and what is said later is written as ever."""
    for client in ("ann", "bob"):
        forget(tmp_path, of_client(client))
    refused = like(store, 1, client="ann", rating=-1)
    assert refused is not None and refused.code == "answer_not_found"
    assert kinds(tmp_path) == []
    remember(store, 5, client="ann")
    assert like(store, 5, client="ann") is None and kinds(tmp_path) == ["answer", "rating"]


def test_a_server_notices_what_goes_from_an_old_part_of_the_log(tmp_path: Path):
    store = FeedbackStore(tmp_path, consent="all", sample=1.0, max_mib=0.1)
    for number in range(4):
        remember(store, number, client="ann" if number == 0 else "bob", text="word " * 1000)
    newest = segments(tmp_path)[-1].read_bytes()
    assert len(segments(tmp_path)) > 1 and b"ann" not in newest
    forget(tmp_path, of_client("ann"))
    assert segments(tmp_path)[-1].read_bytes() == newest
    assert like(store, 0, client="ann") is not None and like(store, 3, client="bob") is None


def test_feedback_under_way_is_not_written_behind_the_deletion(
    store: FeedbackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The store has found the answer in the log; before it writes the opinion, the answer is forgotten."""
    clean = store._clean

    def meanwhile(events: list[dict[str, Any]]) -> Any:
        forget(tmp_path, of_client("ann"))
        return clean(events)

    monkeypatch.setattr(store, "_clean", meanwhile)
    refused = rate(store, "ann", kind="correction", id=name(1), correction="in the words of ann")
    assert refused is not None and refused.code == "answer_not_found"
    assert b"ann" not in content(tmp_path)


def test_what_a_crash_left_of_a_write_goes_too(store: FeedbackStore, tmp_path: Path):
    for leftover in (tmp_path / "log" / ".00000001.jsonl.77", tmp_path / "media" / ".abc.png.77"):
        leftover.write_bytes(b"said to ann")
    forget(tmp_path, of_client("ann"))
    assert b"said to ann" not in content(tmp_path)


def test_a_folder_without_feedback_is_refused_and_left_as_it_is(tmp_path: Path):
    for act in (count, forget):
        with pytest.raises(NothingKept, match=r"feedback\.folder"):
            act(tmp_path / "other", of_client("ann"))
    assert not list(tmp_path.iterdir())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clients=st.lists(st.sampled_from(["ann", "bob", "eve"]), min_size=1, max_size=8),
    judged=st.sets(st.integers(0, 7)),
)
def test_whoever_is_forgotten_others_keep_every_line(
    tmp_path_factory: pytest.TempPathFactory, clients: list[str], judged: set[int]
):
    folder = tmp_path_factory.mktemp("kept")
    store = FeedbackStore(folder, consent="all", sample=1.0)
    for number, client in enumerate(clients):
        remember(store, number, client=client)
        if number in judged:
            like(store, number, client=client)
    before = read(folder).events
    forget(folder, of_client("ann"))
    assert read(folder).events == [event for event in before if event["client"] != "ann"]
