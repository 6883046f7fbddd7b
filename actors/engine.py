"""One vLLM engine in this process, stepped by one thread that owns it.

Everything that touches the engine runs on that thread: requests and calls reach it through a queue, results
and exceptions leave it as futures. An event loop beside it stays free, so health calls answer meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from actors.adapter_format import room_for
from actors.processing import Processing
from actors.transfer import WEIGHT_TRANSFER
from pipelines.settings import EngineSettings, LoraSettings

T = TypeVar("T")
Work = Callable[[], None] | None  # None ends the thread
INTERRUPTIBLE = "interruptible"
ABORTED = "abort"  # why a completion ended that was interrupted

EXTENSION = "actors.engine_extension.Extension"
CPU_BATCHED_TOKENS = 4096  # prompt tokens of one step; prompts are taken whole


class EngineError(RuntimeError):
    """The engine failed on a request, or has stopped."""


class EngineThread:
    """Owns an engine from `build()` to `stop()`.

    `start`, `submit` and `call` return futures at once; the work happens on the engine's thread, in order,
    between two decoding steps. A step that raises fails the requests in flight with `EngineError`; the engine
    goes on if it can abort them, and is broken for good if it cannot. Cancelling a future aborts its request.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._engine: Any = None
        self._work: queue.Queue[Work] = queue.Queue()
        self._requests: dict[str, Future[Any]] = {}
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._ready: Future[None] = Future()
        self._broken: BaseException | None = None
        self.steps = 0
        self.faults = 0  # steps that raised
        self.busy_seconds = 0.0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._ready.done() and self._broken is None

    def start(self) -> Future[None]:
        """Begin to build the engine; the future ends when it is up."""
        self._thread.start()
        return self._ready

    def submit(
        self, prompt: Mapping[str, Any], params: Any, lora: Any = None, interruptible: bool = False
    ) -> Future[Any]:
        """One request; the future gets its finished `RequestOutput`.

        An `interruptible` one may come back early: completions that were under way then end with `ABORTED`.
        """
        future: Future[Any] = Future()
        name = f"{INTERRUPTIBLE if interruptible else 'request'}-{next(self._numbers)}"
        self._enqueue(lambda: self._add(name, prompt, params, lora, future), future)
        return future

    def call(self, function: Callable[[Any], T]) -> Future[T]:
        """Run `function(engine)` on the engine's thread."""
        future: Future[T] = Future()
        self._enqueue(lambda: _settle(future, lambda: function(self._engine)), future)
        return future

    def interrupt(self) -> Future[None]:
        """Give back every interruptible request with what it has so far."""
        return self.call(self._interrupt)

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the thread; requests in flight fail."""
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join(timeout_s)

    # -- on the engine's thread --------------------------------------------------------------------------

    def _enqueue(self, work: Callable[[], None], future: Future[Any]) -> None:
        if self._broken is not None or not self._thread.is_alive():
            future.set_exception(EngineError(f"the engine does not run: {self._broken or 'it was stopped'}"))
        else:
            self._work.put(work)

    def _run(self) -> None:
        try:
            self._engine = self._build()
        except BaseException as error:
            self._broken = error
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        while self._broken is None and self._serve_waiting_work():
            if self._requests:
                self._step()
        self._fail_requests(EngineError(f"the engine has stopped: {self._broken or 'as asked'}"))
        self._drop_waiting_work()
        self._engine.engine_core.shutdown()

    def _serve_waiting_work(self) -> bool:
        """Everything in the queue; blocks only while nothing decodes. False when the thread shall end."""
        idle = not self._requests
        while True:
            try:
                work = self._work.get(block=idle)
            except queue.Empty:
                return True
            if work is None:
                return False
            work()
            idle = False

    def _add(self, name: str, prompt: Any, params: Any, lora: Any, future: Future[Any]) -> None:
        if future.cancelled():
            return
        try:
            self._engine.add_request(name, prompt, params, lora_request=lora)
        except Exception as error:  # the request is at fault, not the engine
            _fail(future, error)
            return
        self._requests[name] = future

        def abort_if_cancelled(done: Future[Any]) -> None:
            if done.cancelled():
                self._work.put(lambda: self._abort(name))

        future.add_done_callback(abort_if_cancelled)

    def _abort(self, name: str) -> None:
        if self._requests.pop(name, None) is not None:
            self._engine.abort_request([name])

    def _interrupt(self, engine: Any) -> None:
        names = [name for name in self._requests if name.startswith(INTERRUPTIBLE)]
        for name, output in interrupted(engine, names).items():
            _settle(self._requests.pop(name), lambda output=output: output)

    def _step(self) -> None:
        began = time.perf_counter()
        try:
            finished = [output for output in self._engine.step() if output.finished]
        except Exception as error:
            self._recover(error)
            return
        finally:
            self.steps += 1
            self.busy_seconds += time.perf_counter() - began
        for output in finished:
            future = self._requests.pop(output.request_id, None)
            if future is not None:
                _settle(future, lambda output=output: output)

    def _recover(self, error: Exception) -> None:
        """A failed step names no request: all in flight fail, and the engine is empty then or given up."""
        self.faults += 1
        names = list(self._requests)
        failure = f"the engine failed while decoding: {type(error).__name__}: {error}"
        self._fail_requests(EngineError(failure), error)
        try:
            self._engine.abort_request(names)
            if self._engine.has_unfinished_requests():
                raise EngineError("requests survived their abort")
        except Exception as unrecoverable:
            self._broken = unrecoverable

    def _fail_requests(self, error: EngineError, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        for future in self._requests.values():
            _fail(future, error)
        self._requests.clear()

    def _drop_waiting_work(self) -> None:
        """Work that was queued behind the end still runs, so that no caller waits for ever."""
        while True:
            try:
                work = self._work.get_nowait()
            except queue.Empty:
                break
            if work is not None:
                work()
        self._fail_requests(EngineError("the engine has stopped"))


class _Sink:
    """Takes the place of the queue that vLLM puts the output of an aborted request into."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def put(self, output: Any) -> None:
        self.outputs.append(output)


def interrupted(engine: Any, names: Sequence[str]) -> dict[str, Any]:
    """Abort requests; name -> its `RequestOutput` with all completions, those under way as far as they are.

    vLLM 0.32 makes this output for every aborted request, but only where somebody waits at a queue.
    """
    processor = engine.output_processor
    found: dict[str, Any] = {}
    for name in names:
        sink = _Sink()
        for internal in processor.external_req_ids.get(name, ()):
            state = processor.request_states[internal]
            state.queue = sink
            if state.parent_req is not None:
                processor.parent_requests.pop(state.parent_req.request_id, None)  # an abort forgets that
        engine.abort_request([name])
        (found[name],) = [output for output in sink.outputs if output.finished]
    return found


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    """Give a future the outcome of a function, unless it was cancelled meanwhile."""
    if future.cancelled():
        return
    try:
        result = function()
    except Exception as error:
        _fail(future, error)
        return
    with contextlib.suppress(InvalidStateError):  # cancelled in between
        future.set_result(result)


def _fail(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled in between
        future.set_exception(error)


def build_engine(model_path: str, settings: EngineSettings, lora: LoraSettings | None, seed: int) -> Any:
    """An in-process `LLMEngine`; call it on the thread that shall own it.

    The environment is set before vLLM is imported, because vLLM reads it then.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # "auto" kills workers that share cores
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": settings.dtype,
        "seed": seed,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "generation_config": "vllm",  # nothing of a checkpoint's decoding defaults leaks into the policy
        "disable_log_stats": True,
        "worker_extension_cls": EXTENSION,
        "weight_transfer_config": {"backend": WEIGHT_TRANSFER},
        "mm_processor_cache_gb": 1.0,
    }
    processing = Processing(model_path)
    # A probe asks for the likeliest tokens down to one that is allowed.
    arguments["max_logprobs"] = max(20, 1 + len(processing.forbidden))
    if processing.has_vision:
        arguments["limit_mm_per_prompt"] = {"image": settings.images_per_prompt, "video": 0}
    if current_platform.is_cpu():
        # A compiled graph could hold on to packed weights of an older version, hence eager.
        arguments |= {
            "enforce_eager": True,
            "skip_mm_profiling": True,
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
            # A seeded request that is prefilled in pieces crashes vLLM 0.32 on CPU ("does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, settings.max_model_len),
        }
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    if lora is not None:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_cpu_loras": 1,
            "max_lora_rank": room_for(lora.rank),
            # By default the head is wrapped too, and vLLM 0.32 on CPU then fails on prompt log-probabilities.
            "lora_target_modules": list(lora.targets),
        }
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    # A line per image that threads stay as they are, and per rotary table that a reload brings it no weights.
    for noisy in ("v1.worker.cpu_worker", "model_executor.model_loader.reload.layerwise"):
        logging.getLogger(f"vllm.{noisy}").setLevel(logging.ERROR)
    return engine
