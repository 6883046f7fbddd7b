"""Weights by broadcast between real processes, over gloo: the same code runs over NCCL, which needs GPUs."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.collective import (
    CLOSED,
    Call,
    NotCollected,
    Sender,
    _awaited,
    backend_of,
    collect,
    require,
    taken,
)
from actors.lives import Deadlines, Lives
from actors.packing import pack, unpack
from actors.proof import tensor_digest
from actors.transfer import Shipment
from actors.weights import Publisher
from pipelines.journal import Journal, read_lines
from pipelines.settings import EngineSettings, LearnerSettings, RolloutSettings, Settings
from pipelines.types import Proof, WeightVersion

HERE = Path(__file__).parent
BIG = 2**21  # float32: 8 MiB, more than a socket holds, so that nobody sends into the void
BUCKETS: list[dict[str, Any]] = [
    {"embed": np.arange(BIG, dtype=np.float32), "scale": np.float32(3).reshape(())},
    {"half": np.arange(BIG, dtype=np.uint32).astype(np.uint16).reshape(4, -1), "odd": np.ones(3, np.int8)},
    {"head": np.arange(BIG, dtype=np.float32)[::-1].copy(), "none": np.zeros((0, 2), np.float32)},
]


def version(number: int = 0, buckets: list[dict[str, Any]] = BUCKETS) -> WeightVersion:
    manifest = {
        name: tensor_digest(array, "bfloat16" if name == "half" else None)
        for bucket in buckets
        for name, array in bucket.items()
    }
    return WeightVersion(
        attempt=1, number=number, step=number, stream="policy", manifest=manifest, canary=(0.0,)
    )


class Taker:
    """A process that takes weights; `collective_taker.py` says what it may be told."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        script = [sys.executable, str(HERE / "collective_taker.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(script, env=environment, stdin=pipe, stdout=pipe)

    def tell(self, made: WeightVersion, call: Call | None, timeout_s: float = 90.0, mishap: str = "") -> None:
        order = (made, Shipment(buckets=tuple(BUCKETS), call=call), timeout_s, mishap)
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps(order))
        self.process.stdin.flush()

    def line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def answer(self) -> dict[str, Any]:
        return json.loads(self.line())

    def end(self) -> int:
        self.process.kill()
        self.process.communicate()
        return self.process.returncode


class Takers:
    """Processes for as many takers as a test needs; those that it ruins are not used again."""

    def __init__(self) -> None:
        self._free: list[Taker] = []

    def get(self, count: int) -> list[Taker]:
        new = [Taker() for _ in range(count - len(self._free))]
        assert all(taker.line() == b"ready\n" for taker in new)
        self._free += new
        return self._free[:count]

    def ruin(self, taker: Taker) -> int:
        self._free.remove(taker)
        return taker.end()

    def end(self) -> None:
        for taker in self._free:
            taker.end()


@pytest.fixture(scope="module")
def takers() -> Iterator[Takers]:
    made = Takers()
    yield made
    made.end()


def opened(
    buckets: list[dict[str, Any]] = BUCKETS, join_s: float = 60.0, collective_s: float = 60.0
) -> tuple[Sender, WeightVersion, Call]:
    """A version that is ready to be sent. Enrolling ends as soon as all have, so its time may be long."""
    sender, made = Sender("gloo", "127.0.0.1", 60.0), version()
    for bucket in buckets:
        sender.hold(0, bucket)
    call = sender.open(made)
    assert call is not None and sender._round is not None
    sender._round.call = call = replace(call, join_s=join_s, collective_s=collective_s)
    return sender, made, call


def whole(made: WeightVersion, answer: dict[str, Any]) -> bool:
    expected = {name: digest.sha256 for name, digest in made.manifest.items()}
    return answer["result"] == "proved" and answer["sha256"] == expected


def test_all_takers_receive_the_same_bytes(takers: Takers) -> None:
    group = takers.get(3)
    sender, made, call = opened()
    assert call.host == "127.0.0.1" and len(call.buckets) == 3
    for taker in group:
        taker.tell(made, call)
    sender.send(3)
    answers = [taker.answer() for taker in group]
    sender.close(60)
    assert all(whole(made, answer) for answer in answers)
    assert [(answer["by"], answer["fallbacks"]) for answer in answers] == [("gloo", 0)] * 3
    assert sender.counts == {"asked": 3, "took": 3, "cut": 0, "skipped": 0}


@pytest.mark.parametrize(("mishap", "rank"), [("killed", 2), ("killed", 3), ("hangs", 1)])
def test_a_taker_that_is_lost_half_way_costs_the_others_the_broadcast_only(
    takers: Takers, mishap: str, rank: int
) -> None:
    """A death is noticed at once, far from all deadlines, wherever in gloo's tree of ranks it happens."""
    group = takers.get(3)
    sender, made, call = opened(collective_s=600.0 if mishap == "killed" else 3.0)
    assert sender._round is not None
    for number, taker in enumerate(group, start=1):
        taker.tell(made, call, mishap=mishap if number == rank else "")
        assert _awaited(sender._round.store, "joined", number, 60.0) == number
    sender.send(3)
    lost = group.pop(rank - 1)
    answers = [taker.answer() for taker in group]
    sender.close(60)
    assert sender._thread is not None and not sender._thread.is_alive()
    if mishap == "killed":
        assert lost.process.wait(60) == -9
    takers.ruin(lost)
    assert all(whole(made, answer) for answer in answers)
    fell_back = [answer["fell_back"] for answer in answers if answer["fallbacks"]]
    assert fell_back and all(cause.startswith(("lost: ", "timeout: ")) for cause in fell_back)
    assert sender.counts["asked"] == 3 and sender.counts["cut"] >= 1

    sender.hold(1, BUCKETS[0])  # and the next version is sent as ever
    following = version(1, BUCKETS[:1])
    call = sender.open(following)
    group[0].tell(following, call)
    sender.send(1)
    assert group[0].answer()["by"] == "gloo"


def test_a_taker_that_never_enrols_is_left_out_and_comes_too_late(takers: Takers) -> None:
    *prompt, late = takers.get(3)
    sender, made, call = opened(join_s=4.0)
    for taker in prompt:
        taker.tell(made, call)
    sender.send(3)
    answers = [taker.answer() for taker in prompt]
    sender.close(60)
    assert all(whole(made, answer) and answer["by"] == "gloo" for answer in answers)
    assert sender.counts == {"asked": 3, "took": 2, "cut": 1, "skipped": 0}
    late.tell(made, call)
    answer = late.answer()
    assert whole(made, answer) and answer["fell_back"].startswith(("lost: ", "timeout: "))


def test_one_that_asks_once_the_group_has_formed_is_told_so() -> None:
    sender, made, call = opened()
    assert sender._round is not None
    sender._round.store.add("joined", CLOSED)
    with pytest.raises(NotCollected, match=r"late: the group of weight version 0 has formed already"):
        taken(made, call)


def test_a_flipped_byte_is_refused_and_the_version_pulled_instead(takers: Takers) -> None:
    [taker] = takers.get(1)
    flipped = [{name: np.array(array) for name, array in bucket.items()} for bucket in BUCKETS]
    flipped[1]["half"].reshape(-1).view(np.uint8)[12345] ^= 1
    sender, made, call = opened(buckets=flipped)
    taker.tell(made, call)
    sender.send(1)
    answer = taker.answer()
    assert whole(made, answer) and answer["fallbacks"] == 1
    assert answer["fell_back"].startswith("differs: ") and "half" in answer["fell_back"]


def test_training_does_not_wait_for_a_round() -> None:
    sender, _, _ = opened(join_s=2.0)
    sender.send(1)  # nobody enrols
    sender.hold(1, BUCKETS[0])
    assert sender.open(version(1, BUCKETS[:1])) is None
    sender.send(1)
    sender.close(60)
    assert sender.counts == {"asked": 1, "took": 0, "cut": 1, "skipped": 1}


def test_buckets_of_a_version_that_was_not_finished_are_not_sent_with_the_next() -> None:
    sender = Sender("gloo", "127.0.0.1", 4.0)
    sender.hold(0, BUCKETS[0])
    sender.hold(1, BUCKETS[1])
    call = sender.open(version(1, BUCKETS[1:2]))
    assert call is not None and call.buckets == (("half", "odd"),)


def test_the_call_goes_to_those_who_waited() -> None:
    async def scenario() -> tuple[int, Any, Any]:
        publisher = Publisher(attempt=1)
        waits = [asyncio.create_task(publisher.next(after=-1, timeout_s=30)) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        waiting = await publisher.publish(version(), {n: a for b in BUCKETS for n, a in b.items()}, call="C")
        return waiting, await asyncio.gather(*waits), await publisher.next(after=-1, timeout_s=30)

    waiting, prompt, late = asyncio.run(scenario())
    assert waiting == 2
    assert [shipment.call for _, [shipment] in prompt] == ["C", "C"] and late[1][0].call is None
    assert all(shipment.buckets for _, [shipment] in [*prompt, late])


def test_a_fallback_is_an_event_with_its_cause(tmp_path: Path) -> None:
    parts = dict.fromkeys(("bytes_received", "elements_loaded", "canary_change", "caches_fresh"), "proved")
    detail = {"bytes": {"tensors": 1, "fell_back": "lost: a peer"}}
    proof = Proof(version=3, generator="generator-0", **parts, detail=detail, seconds=0.1)  # pyright: ignore[reportArgumentType]

    async def adopt(version: Any, shipment: Any) -> Proof:
        return proof

    member: Any = SimpleNamespace(name="generator-0", remote=SimpleNamespace(adopt=adopt))
    nodes: Any = None
    deadlines = Deadlines(health=30, progress=30, start=30, adopt=30)
    lives = Lives(nodes, (), deadlines, Journal(tmp_path / "events.jsonl"))
    asyncio.run(lives._adopt(member, version(3), None, ()))
    events = [*read_lines(tmp_path / "events.jsonl")]
    assert [event["event"] for event in events] == ["proof", "fell_back"]
    assert (events[1]["version"], events[1]["cause"]) == (3, "lost: a peer")


@given(st.lists(st.tuples(st.sampled_from(["float32", "uint16", "int8"]), st.integers(0, 70)), max_size=6))
def test_a_bucket_is_unpacked_as_it_was_packed(tensors: list[tuple[str, int]]) -> None:
    arrays = {str(i): np.arange(size).astype(dtype) for i, (dtype, size) in enumerate(tensors)}
    made = version(0, [arrays])
    back = unpack(made, list(arrays), pack(made, list(arrays), arrays))
    assert list(back) == list(arrays)
    assert all(back[name].dtype == array.dtype for name, array in arrays.items())
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())


def gpus(learner: float, engine: float) -> Settings:
    rollout = RolloutSettings(engine=EngineSettings(gpus=engine))
    return Settings(learner=LearnerSettings(gpus=learner), rollout=rollout)


def test_nccl_is_for_whole_gpus_on_both_sides() -> None:
    kinds = {(a, b): backend_of(gpus(a, b)) for a in (0, 0.5, 1) for b in (0, 0.5, 1)}
    assert [pair for pair, kind in kinds.items() if kind == "nccl"] == [(1, 1)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_nccl_without_a_gpu_is_refused_in_words() -> None:
    for refused in (lambda: require("nccl"), lambda: Sender("nccl", "127.0.0.1", 1.0)):
        with pytest.raises(ValueError, match=r"sync\.transport: collective .*no CUDA device; set both to 0"):
            refused()
    _, made, call = opened()
    with pytest.raises(NotCollected, match=r"no_cuda: sync\.transport") as caught:
        collect(made, replace(call, backend="nccl"))
    assert caught.value.reason == "no_cuda"


def test_a_call_that_nobody_answers_has_a_deadline() -> None:
    sender, made, call = opened(join_s=0.5)
    with pytest.raises(NotCollected) as caught:  # the sender never says how many there are
        taken(made, call)
    assert caught.value.reason in ("lost", "timeout")
    sender.send(0)  # gives the store up
    with pytest.raises(NotCollected, match="lost"):
        taken(made, call)
