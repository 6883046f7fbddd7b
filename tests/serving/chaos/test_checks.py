"""The client's checks and the attribution on made-up records; each kind of bad answer is found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving.chaos.checks import Spelled, Tenures, Window, cause, clean_swaps, wrong
from benchmarks.serving.chaos.load import Request, Try
from benchmarks.serving.chaos.protocol import spelled
from benchmarks.serving.chaos.report import count, missed, quantiles

OLD, NEW = "v-old", "v-new"
WORDS = {"w1": OLD, "w2": NEW}
GOOD = Try(began=10.0, ended=11.0, status=200, versions=(OLD,), text="w1 w1 w1", whole=True)
BROKEN = replace(GOOD, whole=False, code="replica_lost", text="w1 ")
REFUSED = replace(GOOD, status=503, code="overloaded", versions=(), text="", whole=True)
#: A swap from 20 to 26, and a kill from 30 to 40 with a swap inside.
SWAP = Window(cause="swap", began=20.0, ended=26.0)
KILL = Window(cause="kill", began=30.0, ended=40.0)
MET = Window(cause="swap", began=29.0, ended=41.0)


def spell(number: int, text: str) -> Spelled:
    return spelled(WORDS, 3, text)


def tenures() -> Tenures:
    found = Tenures()
    found.promoted(OLD, 0.0)
    found.promoted(NEW, 20.0)
    found.settled(NEW, 26.0)
    return found


def judged(attempt: Try) -> list[str]:
    return wrong(Request(number=0, stream=True, due=0.0), attempt, spell, tenures())


def request(*tries: Try, number: int = 0, stream: bool = False) -> Request:
    return Request(number=number, stream=stream, due=tries[0].began, tries=list(tries))


def test_a_right_answer_has_nothing_wrong() -> None:
    assert judged(GOOD) == []
    assert judged(replace(GOOD, began=21.0, ended=22.0, versions=(NEW,), text="w2 w2 w2")) == []


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        (replace(GOOD, began=21, ended=22, text="w1 w1 w2"), "mixed"),  # half an answer of each
        (replace(GOOD, began=21, ended=22, versions=(OLD, NEW)), "mixed"),  # a chunk names another version
        (replace(GOOD, began=21, ended=22, text="w2 w2 w2"), "mixed"),  # whole, and not what the header says
        (replace(GOOD, text="w1 nothing w1"), "mixed"),  # weights that nobody promoted
        (replace(GOOD, text="w1 w1"), "lost"),  # the last token is missing under status 200
        (replace(GOOD, text=""), "lost"),
        (replace(GOOD, versions=(NEW,), text="w2 w2 w2"), "wrong version"),  # before it was promoted
        (replace(GOOD, began=27, ended=28), "wrong version"),  # after everybody had the new one
        (replace(GOOD, versions=()), "mixed"),  # names none
    ],
)
def test_a_bad_answer_is_found(attempt: Try, kind: str) -> None:
    assert kind in {problem.partition(":")[0] for problem in judged(attempt)}


def test_a_failed_try_is_counted_as_failed_and_not_judged() -> None:
    assert judged(BROKEN) == [] and judged(REFUSED) == []
    assert not BROKEN.good and not REFUSED.good


def test_an_answer_that_began_before_the_last_replica_changed_over_may_be_old() -> None:
    assert judged(replace(GOOD, began=25.9, ended=30.0)) == []


def test_a_version_that_comes_back_is_right_again() -> None:
    history = tenures()
    assert not history.allows(OLD, 27.0, 28.0)
    history.promoted(OLD, 50.0)
    assert history.allows(OLD, 49.0, 50.5) and not history.allows(OLD, 27.0, 28.0)
    assert history.allows(NEW, 60.0, 61.0)  # until everybody has the old one
    history.settled(OLD, 55.0)
    assert not history.allows(NEW, 60.0, 61.0)


@given(st.floats(0, 100), st.floats(0, 10))
def test_at_any_time_some_version_is_right(began: float, took: float) -> None:
    assert any(tenures().allows(version, began, began + took) for version in (OLD, NEW))


@pytest.mark.parametrize(
    ("began", "ended", "code", "expected"),
    [
        (31.0, 32.0, "replica_lost", "kill"),
        (29.5, 30.5, "replica_lost", "kill"),  # under way when it happened
        (31.0, 32.0, "swapping", "swap"),  # only a change-over says so
        (31.0, 32.0, "mixed_versions", "swap"),
        (21.0, 22.0, "unavailable", "swap"),
        (19.0, 21.0, "replica_lost", "swap"),  # nobody was killed then
        (1.0, 2.0, "replica_lost", "other"),
        (42.0, 43.0, "overloaded", "other"),
    ],
)
def test_what_a_failure_is_put_down_to(began: float, ended: float, code: str, expected: str) -> None:
    attempt = replace(BROKEN, began=began, ended=ended, code=code)
    assert cause(attempt, [SWAP, KILL, MET]) == expected


def test_what_never_recovers_explains_all_that_follows() -> None:
    assert cause(replace(BROKEN, began=900, ended=901), [Window(cause="kill", began=30.0)]) == "kill"
    assert Window(cause="kill", began=30.0).ended == math.inf


def test_swaps_are_clean_where_nobody_was_killed() -> None:
    assert clean_swaps([SWAP, KILL, MET]) == [SWAP]


def test_the_count_and_its_targets() -> None:
    fine = [request(replace(GOOD, began=21.0, ended=22.0), number=n, stream=True) for n in range(999)]
    killed = request(replace(BROKEN, began=31.0, ended=32.0), replace(GOOD, began=24.0, ended=25.0))
    found = count([*fine, killed], [SWAP, KILL], spell, tenures())
    assert (found.requests, found.first_tries, found.answered, found.streams) == (1000, 999, 1000, 999)
    assert found.failures == {"kill": 1} and found.codes == {"kill: 200 replica_lost": 1}
    assert found.in_clean_swaps == 999 and found.clean_swaps == 1
    assert missed(found, []) == []
    assert missed(found, ["the experiment broke"]) == ["the experiment broke"]


@pytest.mark.parametrize(
    ("tries", "complaint"),
    [
        ([replace(BROKEN, began=21.0, ended=22.0), GOOD], "failures caused by swaps: 1"),
        ([BROKEN, BROKEN, BROKEN], "with two retries 999 of 1000 were answered"),
        ([replace(GOOD, text="w1 w1 w2")], "answers of mixed or wrong weights"),
        ([BROKEN, replace(GOOD, text="w1 w1 w2")], "answers of mixed or wrong weights"),  # in a retry
    ],
)
def test_one_request_in_a_thousand_misses_a_target(tries: list[Try], complaint: str) -> None:
    fine = [request(replace(GOOD, began=19.0, ended=21.0)) for _ in range(999)]
    found = count([*fine, request(*tries)], [SWAP, KILL], spell, tenures())
    assert any(text.startswith(complaint) for text in missed(found, []))


def test_six_in_a_thousand_at_the_first_try_are_too_many() -> None:
    fine = [request(replace(GOOD, began=19.0, ended=21.0)) for _ in range(994)]
    lost = [request(replace(BROKEN, began=31.0, ended=32.0), GOOD) for _ in range(6)]
    windows = [SWAP, KILL]
    assert missed(count([*fine, *lost], windows, spell, tenures()), [])[0].startswith("first tries: 994")
    assert missed(count([*fine, fine[0], *lost[:5]], windows, spell, tenures()), []) == []


def test_without_a_swap_of_its_own_nothing_is_shown_about_swaps() -> None:
    found = count([request(GOOD)], [MET, KILL], spell, tenures())
    assert any("nothing is known of swaps" in text for text in missed(found, []))


def test_quantiles_count_what_never_ended() -> None:
    assert quantiles([3.0, 1.0, None, 2.0]) == {"n": 4, "never": 1, "p50": 2.0, "p95": 3.0, "max": 3.0}
    assert quantiles([None]) == {"n": 1, "never": 1}
