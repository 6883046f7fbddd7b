"""`plumbline launch`: hand a run to a Ray cluster through its job server.

What can be known to fail is found here, before anything is uploaded: settings, the user's modules, paths that
the cluster's nodes cannot share, and a token that strangers could read on the way.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pipelines import identity, preflight
from pipelines.settings import Settings, SettingsError, load, model_path

UPLOAD_LIMIT: Final = 512 * 1024**2  # bytes; Ray's own for a working directory
IGNORE_FILES: Final = (".gitignore", ".rayignore")  # Ray leaves out what they name
STOP_MARGIN_S: Final = 30  # beyond stop_grace_s, until Ray kills a job that it was told to stop
ASK_TIMEOUT_S: Final = 30
ENDS: Final = {"SUCCEEDED": 0, "STOPPED": 128 + signal.SIGTERM}
MODES: Final = ("token", "disabled")
HOME_TOKEN: Final = ".ray/auth_token"
# Findings about this machine; the run looks at its own when it starts.
ABOUT_HERE: Final[frozenset[str]] = frozenset({"resources", "output"})
ABOUT_DATA: Final[frozenset[str]] = frozenset({"data", "pairs", "media"})


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A checked run, ready to be submitted."""

    command: tuple[str, ...]  # `ray job submit ...`, without secrets
    address: str
    job: str  # its id at the job server
    unseen: tuple[str, ...]  # settings whose paths only the cluster can check

    def shell(self, *verb: str) -> str:
        """What to paste into a shell: the submission, or a later command such as ("logs", "--follow")."""
        rest = ("ray", "job", *verb, "--address", self.address, self.job) if verb else self.command
        return f"RAY_AUTH_MODE={_mode()} {shlex.join(rest)}"


def prepare(
    run: Path, overrides: Sequence[str], *, address: str, resume: bool, follow: bool, insecure: bool
) -> Submission:
    """Check the run at `run` and write its `ray job submit` command. Starts and uploads nothing.

    The file's folder becomes the job's working directory: first on the import path of driver and workers.

    Raises SettingsError, or what `preflight.check` finds as a SettingsError.
    """
    address = address.rstrip("/")
    check_address(address, insecure=insecure)
    check_token()
    folder = run.absolute().parent
    check_folder(folder)
    with _as_in(folder):
        settings = load(run.absolute(), overrides)
        unseen = check_settings(settings, folder)
    job = f"{settings.name}-{secrets.token_hex(4)}"
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": str(settings.stop_grace_s + STOP_MARGIN_S)}
    # No CPUs for the entrypoint: Ray then keeps the driver on the head, which outlives every other node.
    command = [
        *("ray", "job", "submit", "--address", address, "--submission-id", job),
        *("--working-dir", str(folder), "--runtime-env-json", json.dumps({"env_vars": patience})),
        *(() if follow else ("--no-wait",)),
        *("--", "plumbline", "align", run.name, *overrides),
        *(("--resume",) if resume else ()),
    ]
    return Submission(command=tuple(command), address=address, job=job, unseen=tuple(unseen))


def submit(submission: Submission, *, follow: bool) -> int:
    """Run the command with the Ray of this environment; with `follow` wait for the job. Returns a status.

    0 where the job was submitted, and with `follow` where it finished; else the status of the run's own
    command, 143 for a job that was stopped, 1 for whatever Ray refused.
    """
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    ray = shutil.which("ray", path=here)
    if ray is None:
        raise SettingsError(
            f"no program `ray` beside {sys.executable}; install plumbline with its dependencies"
        )
    environment = {**os.environ, "RAY_AUTH_MODE": _mode()}
    done = subprocess.run([ray, *submission.command[1:]], env=environment, check=False)
    if not follow:
        return done.returncode
    answer = _ask(submission)
    if answer.get("status") in ENDS:
        return ENDS[answer["status"]]
    status = answer.get("driver_exit_code")
    return status if isinstance(status, int) else done.returncode or 1


def check_address(address: str, *, insecure: bool) -> None:
    """Raise SettingsError unless it is a job server's address to which a token may be sent."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(
            f"--address: expected that of the job server, such as http://127.0.0.1:8265, got {address!r}"
        )
    if parts.username or parts.password:
        raise SettingsError("--address: leave name and password out of it; the command is printed")
    if parts.scheme == "http" and not insecure and not _on_this_machine(parts.hostname):
        raise SettingsError(
            f"--address: {address} is not encrypted, and whoever reads the token on the way can run code on "
            "the cluster; forward the port to this machine (`ray dashboard`, `kubectl port-forward` or "
            "`ssh -L 8265:127.0.0.1:8265`) and give http://127.0.0.1:8265, use https, or add --insecure"
        )


def check_token() -> None:
    """Raise SettingsError when Ray would find no token to send."""
    mode = _mode()
    if mode not in MODES:
        raise SettingsError(f"RAY_AUTH_MODE: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == "token" and not _token():
        raise SettingsError(
            f"no token for the cluster: put its token into RAY_AUTH_TOKEN or ~/{HOME_TOKEN} (mode 600); "
            "RAY_AUTH_MODE=disabled submits to a cluster that asks for none"
        )


def check_folder(folder: Path) -> None:
    """Raise SettingsError when the folder cannot be a job's working directory."""
    for path in (folder / f"{name}{suffix}" for name in identity.PACKAGES for suffix in ("", ".py")):
        if path.exists():
            raise SettingsError(
                f"{path}: hides our own package {path.stem!r} on the cluster, since this folder comes first "
                "on the import path there; put the run's YAML and your modules into a folder of their own"
            )
    if any((folder / name).exists() for name in IGNORE_FILES):
        return  # Ray leaves files out, and refuses what is still too large
    size = 0
    for root, _, files in os.walk(folder):
        size += sum(os.lstat(os.path.join(root, name)).st_size for name in files)
        if size > UPLOAD_LIMIT:
            raise SettingsError(
                f"{folder}: holds more than {UPLOAD_LIMIT // 1024**2} MiB, which Ray does not upload; keep "
                "data, models and runs elsewhere, on storage that all nodes share, or name them in .rayignore"
            )


def check_settings(settings: Settings, folder: Path) -> list[str]:
    """All of `preflight.check` that makes sense away from the cluster; returns what only it can see.

    Raises SettingsError with every problem.
    """
    unseen = {
        key: str(path)
        for key, path in (("model", model_path(settings)), ("data.source", _source(settings)))
        if path is not None and not path.exists() and not path.is_relative_to(folder)
    }
    skipped = ABOUT_HERE | unseen.keys() | (ABOUT_DATA if unseen else ABOUT_HERE)
    findings = [finding for finding in preflight.check(settings) if finding.check not in skipped]
    problems = dict.fromkeys(finding.text for finding in findings if not finding.ok)
    if not Path(settings.output).is_absolute():
        problems[
            f"output: {settings.output!r} would lie in a temporary folder of one node; give an absolute path "
            "on storage that all nodes share, such as output=/shared/runs"
        ] = None
    if problems:
        raise SettingsError("\n".join(problems))
    return [f"{key} = {path}" for key, path in unseen.items()]


def _source(settings: Settings) -> Path | None:
    return None if settings.data.source == "glyphs" else settings.data.served or Path(settings.data.source)


@contextlib.contextmanager
def _as_in(folder: Path) -> Generator[None]:
    """The cluster starts the run in this folder: relative paths and modules are looked for there."""
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.path.remove(str(folder))


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _mode() -> str:
    return os.environ.get("RAY_AUTH_MODE", "token").lower()


def _token() -> str:
    """What Ray would send, in its order: the variable, the file it names, the file in the home directory."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / HOME_TOKEN)
    return file.read_text().strip() if file.is_file() else ""


def _ask(submission: Submission) -> dict[str, Any]:
    """What the job server knows of the job; nothing when it does not say."""
    request = urllib.request.Request(f"{submission.address}/api/jobs/{submission.job}")
    if _mode() == "token":
        request.add_unredirected_header("Authorization", f"Bearer {_token()}")
    try:
        with urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError, ValueError):
        return {}
