"""Answers that several weight versions made, without an engine."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.drafts import Asked, Draft, joined, prefix_logps
from pipelines.decoding import Decoder
from pipelines.types import Prompt


def completion(*tokens: int, reason: str = "abort", logp: float = -1.0) -> Any:
    logps = [{token: SimpleNamespace(logprob=logp)} for token in tokens]
    return SimpleNamespace(token_ids=list(tokens), logprobs=logps, finish_reason=reason)


def test_a_draft_goes_on_until_the_engine_says_that_it_ended():
    draft = Draft()
    draft.take(completion(5, 6), 3)
    draft.take(completion(), 4)  # it was interrupted again before it had another token
    assert draft.reason is None and draft.spans == [(3, 2)]
    draft.take(completion(7, reason="stop", logp=-2.0), 5)
    assert (draft.tokens, draft.logps, draft.reason) == ([5, 6, 7], [-1.0, -1.0, -2.0], "stop")
    assert draft.spans == [(3, 2), (5, 1)]


def test_only_drafts_without_a_token_share_a_request():
    asked = Asked(Prompt(id="p", messages=()), {}, 4, 0, Decoder(), ())
    assert [len(drafts) for drafts in asked.requests()] == [4]
    first, second, third, fourth = asked.drafts
    first.take(completion(1, reason="stop"), 0)
    second.take(completion(1), 0)
    third.take(completion(1), 0)
    assert asked.requests() == [[fourth], [second], [third]] and not asked.done


@given(
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=6),
)
def test_spans_keep_every_token_and_never_repeat_a_version_side_by_side(beginning, version, spans):
    whole = joined(beginning, version, spans)
    expected = [version] * beginning + [number for number, count in spans for _ in range(count)]
    assert [number for number, count in whole for _ in range(count)] == expected
    assert all(a[0] != b[0] for a, b in pairwise(whole)) and all(c for _, c in whole)


def test_a_beginnings_log_probabilities_are_its_own():
    """The prompt ends with the given beginning (8, 9) and two tokens that were sampled already."""
    tokens = (1, 2, 8, 9, 5, 6)
    scored: list[Any] = [None, *({t: SimpleNamespace(logprob=-float(t))} for t in tokens[1:])]
    output = SimpleNamespace(prompt_logprobs=scored)
    assert prefix_logps(output, (8, 9, 5, 6), 2) == (-8.0, -9.0)
    assert prefix_logps(SimpleNamespace(prompt_logprobs=None), (8, 9), 2) is None
