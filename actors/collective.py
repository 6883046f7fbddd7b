"""Weights by broadcast: the learner's rank 0 to all generators that wait for a version, in one process group.

1. Rank 0 of a group is the learner's rank 0, which holds the tensors, in host memory, and the GPU. It sends
   from a thread of its own, and nothing that happens there reaches training.
2. A group lasts for one version. It is an object beside the default group of either side, with a store on a
   fresh port of rank 0's node; whoever waited for the version may enrol, until all have or the time is over.
3. Buckets travel as bytes, in the order in which they were gathered: gloo between host memories, NCCL where
   both sides have whole GPUs, through a staging buffer there. Only `_nccl_group` differs.
4. Every collective and the whole transfer have deadlines. Whatever goes wrong ends the group, and each taker
   pulls the same version from the object store, which holds it anyway for those that join later.
5. Bytes count only when their SHA-256 is the manifest's; the proof is the same as after any other transfer.

Received tensors enter the engine by vLLM's own weight transfer (`actors/engine_extension.py`). Its transports
are not used: their communicator has neither deadline nor abort, and their world is fixed at the start.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import distributed
from torch.distributed import (
    BroadcastOptions,  # pyright: ignore[reportPrivateImportUsage]
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from actors.packing import pack, size_of, unpack
from actors.proof import Verdict, judge_bytes
from actors.transfer import Arrays
from pipelines.settings import Settings
from pipelines.types import WeightVersion

log = logging.getLogger("actors.collective")
Kind = Literal["gloo", "nccl"]
JOIN_S = 5.0  # at most, that those who waited for a version have to enrol
POLL_S = 0.002
GRACE_S = 0.5  # gloo notices its own deadline; NCCL does not
CLOSED = 2**32  # added to the count of those who enrolled: later ones get a larger number
_environment_lock = threading.Lock()


class NotCollected(RuntimeError):
    """A version did not come this way. `reason`: late, timeout, lost, differs or no_cuda."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Call:
    """Says to takers where the group of a version forms, and what will be sent."""

    host: str
    port: int
    key: str  # attempt and number: whoever listens on that port later means another version
    backend: Kind
    buckets: tuple[tuple[str, ...], ...]  # names of tensors, in order
    join_s: float  # that takers have to enrol
    collective_s: float  # deadline of each collective
    transfer_s: float  # deadline of all of them, from the moment that the group forms


def backend_of(settings: Settings) -> Kind:
    """NCCL takes no two ranks on one GPU, so parts of GPUs go through host memory."""
    both = min(settings.learner.gpus, settings.rollout.engine.gpus)
    return "nccl" if both >= 1 else "gloo"


def require(backend: Kind) -> None:
    """Raises ValueError for NCCL in a process that sees no GPU."""
    if backend == "nccl" and not torch.cuda.is_available():
        raise ValueError(
            "sync.transport: collective uses NCCL where learner.gpus and rollout.engine.gpus are 1 or more, "
            "but this process sees no CUDA device; set both to 0 to broadcast between host memories (gloo), "
            "or use sync.transport: object_store"
        )


# -- the learner's side ------------------------------------------------------------------------------------


@dataclass
class Round:
    """The transfer of one version."""

    version: WeightVersion
    call: Call
    store: Any
    arrays: list[Arrays]


class Sender:
    """On the learner's rank 0: `hold` each bucket, `open`, publish what it gives, `send`.

    `host`: this node, as the others reach it. `timeout_s`: of one whole transfer. Raises ValueError without
    the GPU that the backend needs.
    """

    def __init__(self, backend: Kind, host: str, timeout_s: float) -> None:
        require(backend)
        self._backend: Kind = backend
        self._host, self._timeout_s = host, timeout_s
        self._device = _device(backend)
        self._held: tuple[int, list[Arrays]] = (-1, [])
        self._round: Round | None = None
        self._thread: threading.Thread | None = None
        # Takers that waited, those that have it all, those that do not; versions not sent: a round went on.
        self.counts = dict.fromkeys(("asked", "took", "cut", "skipped"), 0.0)

    def hold(self, number: int, tensors: Arrays) -> None:
        """Keep a bucket of the version that comes next until it is sent; the arrays must not change."""
        if self._held[0] != number:
            self._held = (number, [])
        self._held[1].append(tensors)

    def open(self, version: WeightVersion) -> Call | None:
        """The call to a version whose buckets are held.

        None while the round before it goes on: training does not wait, and takers pull this version.
        """
        (_, arrays), self._held = self._held, (-1, [])
        if self._thread is not None and self._thread.is_alive():
            self.counts["skipped"] += 1
            return None
        store = _listening(self._host)
        call = Call(
            host=self._host,
            port=store.port,
            key=f"{version.attempt}-{version.number}",
            backend=self._backend,
            buckets=tuple(tuple(bucket) for bucket in arrays),
            join_s=min(JOIN_S, self._timeout_s / 4),
            collective_s=self._timeout_s / 2,
            transfer_s=self._timeout_s,
        )
        self._round = Round(version, call, PrefixStore(call.key, store), arrays)
        return call

    def send(self, waiting: int) -> None:
        """Begin to send to those who waited for the version. Returns at once."""
        sending, self._round = self._round, None
        if sending is None or not waiting:
            return
        self.counts["asked"] += waiting
        self._thread = threading.Thread(target=self._send, args=(sending, waiting), daemon=True)
        self._thread.start()

    def close(self, within_s: float) -> None:
        """Wait so long for the end of the round under way."""
        if self._thread is not None:
            self._thread.join(within_s)

    def _send(self, sending: Round, waiting: int) -> None:
        number = sending.version.number
        try:
            took = self._sent(sending, _enrolled(sending, waiting))
        except Exception as error:
            _let_go(error)
            took = _count(sending.store, "took")
            log.warning("weight version %d: its broadcast was cut: %.300r", number, error)
        self.counts["took"] += took
        self.counts["cut"] += waiting - took

    def _sent(self, sending: Round, joined: int) -> int:
        """How many have all of it."""
        if not joined:
            return 0
        call, until = sending.call, time.monotonic() + sending.call.transfer_s
        with _group(call, sending.store, 0, joined + 1, call.host) as group:
            for names, arrays in zip(call.buckets, sending.arrays, strict=True):
                packed = torch.from_numpy(pack(sending.version, names, arrays)).to(self._device)
                _broadcast(group, packed, min(call.collective_s, until - time.monotonic()))
            until = min(until, time.monotonic() + call.collective_s)
            # What was sent may still be on its way from one taker to the next.
            return _awaited(sending.store, "took", joined, until - time.monotonic())


def _listening(host: str) -> Any:
    """A store on a fresh port of one address; torch by itself would listen on all of them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    return TCPStore(
        host,
        server.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=_seconds(JOIN_S),
        master_listen_fd=server.detach(),
    )


def _enrolled(sending: Round, waiting: int) -> int:
    """How many are in the group, once all of them or the time is over."""
    _awaited(sending.store, "joined", waiting, sending.call.join_s)
    joined = int(sending.store.add("joined", CLOSED)) - CLOSED
    sending.store.set("world", str(joined + 1))
    return joined


def _awaited(store: Any, key: str, number: int, timeout_s: float) -> int:
    """What is counted under `key` when it reaches a number, or when the time is over."""
    until = time.monotonic() + timeout_s
    while (count := _count(store, key)) < number and time.monotonic() < until:
        time.sleep(POLL_S)
    return count


def _count(store: Any, key: str) -> int:
    return int(store.add(key, 0))


# -- the generator's side ----------------------------------------------------------------------------------


def taken(version: WeightVersion, call: Call) -> tuple[dict[str, NDArray[Any]], Verdict]:
    """A version's tensors by broadcast, with the verdict that they are what was published; blocks.

    Raises NotCollected, after which none of them may be used.
    """
    arrays = collect(version, call)
    received = judge_bytes(version, arrays)
    if received.result == "failed":
        raise NotCollected("differs", f"{dict(received.detail)}")
    return arrays, replace(received, detail={**received.detail, "by": call.backend})


def collect(version: WeightVersion, call: Call) -> dict[str, NDArray[Any]]:
    """Bytes by broadcast, not yet verified. Raises NotCollected."""
    try:
        require(call.backend)
    except ValueError as error:
        raise NotCollected("no_cuda", str(error)) from None
    try:
        return _collected(version, call)
    except NotCollected:
        raise
    except Exception as error:  # of the store, of gloo, of NCCL: a peer is gone, or does not answer
        _let_go(error)
        reason = "timeout" if isinstance(error, TimeoutError) else "lost"
        raise NotCollected(reason, f"{type(error).__name__}: {error!s:.300}") from error


def _collected(version: WeightVersion, call: Call) -> dict[str, NDArray[Any]]:
    address = _towards(call.host, call.port)
    root = TCPStore(
        call.host, call.port, is_master=False, wait_for_workers=False, timeout=_seconds(call.join_s)
    )
    store = PrefixStore(call.key, root)
    rank = int(store.add("joined", 1))
    if rank > CLOSED:
        raise NotCollected("late", f"the group of weight version {version.number} has formed already")
    store.wait(["world"], _seconds(call.join_s + GRACE_S))
    world, until = int(store.get("world")), time.monotonic() + call.transfer_s
    device, arrived = _device(call.backend), dict[str, NDArray[Any]]()
    with _group(call, store, rank, world, address) as group:
        for names in call.buckets:
            buffer = torch.empty(size_of(version, names), dtype=torch.uint8, device=device)
            _broadcast(group, buffer, min(call.collective_s, until - time.monotonic()))
            arrived |= unpack(version, names, buffer.cpu().numpy())
        store.add("took", 1)
    return arrived


def _towards(host: str, port: int) -> str:
    """The address of this machine that faces `host`; nothing is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


# -- the group ---------------------------------------------------------------------------------------------


@contextmanager
def _group(call: Call, store: Any, rank: int, world: int, address: str) -> Iterator[Any]:
    """A process group that ends with the block, by abort where the block fails."""
    make = _nccl_group if call.backend == "nccl" else _gloo_group
    group = make(store, rank, world, call.collective_s, address)
    try:
        yield group
    except BaseException:
        with suppress(Exception):
            group.abort()
        raise
    with suppress(Exception):  # all has arrived
        group.shutdown()


def _let_go(error: Exception) -> None:
    """Drop the group that the error's frames hold: only then do its connections close, and peers notice."""
    traceback.clear_frames(error.__traceback__)


def _gloo_group(store: Any, rank: int, world: int, timeout_s: float, address: str) -> Any:
    kind: Any = distributed.ProcessGroupGloo
    options = kind._Options()
    options._devices = [kind.create_device(hostname=address)]  # else it picks an interface
    options._timeout = _seconds(timeout_s)
    return kind(store, rank, world, options)


def _nccl_group(store: Any, rank: int, world: int, timeout_s: float, address: str) -> Any:
    """NCCL finds its own interfaces (NCCL_SOCKET_IFNAME), so `address` is not used.

    By default torch's watchdog ends the process when a collective times out. That of this group must only
    clean up; the mode is read while a group is made (ProcessGroupNCCL.cpp, read; never run here).
    """
    kind: Any = vars(distributed)["ProcessGroupNCCL"]  # only torch builds with CUDA have it
    options = kind.Options()
    options._timeout = _seconds(timeout_s)
    options.config.blocking = 0  # so that its set-up can be given up as well
    mode = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(math.ceil(timeout_s)))
    with _environment_lock:
        before = os.environ.get(mode)
        os.environ[mode] = "2"  # CleanUpOnly
        try:
            return kind(store, rank, world, options)
        finally:
            os.environ.pop(mode)
            if before is not None:
                os.environ[mode] = before


def _broadcast(group: Any, buffer: torch.Tensor, timeout_s: float) -> None:
    """From rank 0 to all. Raises TimeoutError, or what the group says of a lost peer."""
    if timeout_s <= 0:
        raise TimeoutError("the deadline of the whole transfer has passed")
    options = BroadcastOptions()
    options.rootRank, options.asyncOp, options.timeout = 0, True, _seconds(timeout_s)
    work = group.broadcast([buffer], options)
    until = time.monotonic() + timeout_s + GRACE_S
    while not work.is_completed():
        if time.monotonic() > until:
            raise TimeoutError(f"a bucket of {buffer.nbytes} bytes took over {timeout_s:.3g} s")
        time.sleep(POLL_S)
    work.wait()


def _seconds(seconds: float) -> timedelta:
    return timedelta(milliseconds=max(1, round(1000 * seconds)))


def _device(backend: Kind) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
