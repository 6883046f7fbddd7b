"""What `plumbline launch` refuses before anything is sent, and the command that it prints."""

from __future__ import annotations

import io
import json
import shlex
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipelines import launch as launching
from pipelines.cli import app

LOOPBACK = "http://127.0.0.1:8265"


@pytest.fixture(autouse=True)
def with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-secret")


@pytest.fixture
def dry(tmp_path: Path) -> Callable[..., Result]:
    """`plumbline launch --dry-run` of this run in a folder of its own."""

    def run(*arguments: str, address: str = LOOPBACK, **settings: Any) -> Result:
        (tmp_path / "run.yaml").write_text(json.dumps({"output": "/shared/runs", **settings}))
        command = ["launch", str(tmp_path / "run.yaml"), "--address", address, "--dry-run", *arguments]
        return CliRunner().invoke(app, command)

    return run


def refusal(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return result.stderr


def test_the_printed_command_is_what_a_shell_has_to_be_given(
    dry: Callable[..., Result], tmp_path: Path
) -> None:
    result = dry('method={beta: "0.2"}', "learner.steps=3", "--resume", stop_grace_s=100)

    assert result.exit_code == 0, result.output
    mode, *words = shlex.split(result.stdout)
    options, entrypoint = words[: words.index("--")], words[words.index("--") + 1 :]
    assert mode == "RAY_AUTH_MODE=token"
    assert options[:3] == ["ray", "job", "submit"]
    given = dict(zip(options[3:-1:2], options[4::2], strict=True))
    assert given.pop("--submission-id").startswith("glyphs-")
    assert json.loads(given.pop("--runtime-env-json")) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "130"}}
    assert given == {"--address": LOOPBACK, "--working-dir": str(tmp_path)}
    assert options[-1] == "--no-wait"
    assert entrypoint == [
        "plumbline",
        "align",
        "run.yaml",
        'method={beta: "0.2"}',
        "learner.steps=3",
        "--resume",
    ]
    assert "the-secret" not in result.output


def test_following_waits(dry: Callable[..., Result]) -> None:
    assert "--no-wait" not in dry("--follow").stdout


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("127.0.0.1:8265", "expected that of the job server"),
        ("ray://127.0.0.1:10001", "expected that of the job server"),
        ("http://me:secret@127.0.0.1:8265", "leave name and password out"),
        ("http://10.0.0.7:8265", "not encrypted"),
        ("http://127.0.0.1.example.org:8265", "not encrypted"),
        ("http://head:8265", "not encrypted"),
    ],
)
def test_an_address_that_a_token_is_not_sent_to(address: str, part: str, dry: Callable[..., Result]) -> None:
    assert part in refusal(dry(address=address))


@pytest.mark.parametrize("address", ["https://ray.example.org", "http://localhost:1", "http://[::1]:8265"])
def test_an_address_that_a_token_may_be_sent_to(address: str, dry: Callable[..., Result]) -> None:
    assert dry(address=address).exit_code == 0


def test_who_asks_for_it_sends_the_token_unencrypted(dry: Callable[..., Result]) -> None:
    assert dry("--insecure", address="http://10.0.0.7:8265").exit_code == 0


def test_without_a_token_nothing_is_tried(
    dry: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no token" in refusal(dry())

    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    assert dry().exit_code == 0

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))  # Ray reads that one alone
    assert "no token" in refusal(dry())

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert dry().exit_code == 0
    monkeypatch.setenv("RAY_AUTH_MODE", "tokens")
    assert "got 'tokens'" in refusal(dry())


@pytest.mark.parametrize("name", ["pipelines", "actors", "serving.py"])
def test_a_folder_that_hides_our_packages(name: str, dry: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch() if path.suffix else path.mkdir()

    assert str(path) in refusal(dry())


def test_a_folder_that_ray_does_not_upload(dry: Callable[..., Result], tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(launching.UPLOAD_LIMIT + 1)  # sparse
    assert "more than 512 MiB" in refusal(dry())

    (tmp_path / ".rayignore").write_text("weights.bin\n")
    assert dry().exit_code == 0


def test_every_problem_of_the_run_is_named_at_once(dry: Callable[..., Result]) -> None:
    text = refusal(dry(output="runs", recipe="online_dp", reward="nowhere:score"))

    assert "'runs' would lie in a temporary folder" in text
    assert "online_dpo" in text  # the nearest right name
    assert "nowhere" in text


def test_modules_are_looked_for_beside_the_run(dry: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "beside_the_run.py").write_text("def score(prompt, response, row):\n    return 1.0\n")

    assert dry(reward="beside_the_run:score").exit_code == 0


def test_what_only_the_cluster_has_is_named_and_what_the_folder_lacks_is_refused(
    dry: Callable[..., Result],
) -> None:
    there = dry(model="/shared/model")
    assert there.exit_code == 0, there.output
    assert "the cluster will look: model = /shared/model" in there.stderr

    assert "no such folder" in refusal(dry(model="model"))  # relative: it would have to be in the folder


@pytest.mark.parametrize(
    ("answer", "of_ray", "status"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, 0),
        ({"status": "FAILED", "driver_exit_code": 2}, 1, 2),
        ({"status": "STOPPED", "driver_exit_code": None}, 0, 143),
        ({"status": "FAILED", "driver_exit_code": None}, 1, 1),  # the entrypoint never ran
        ({"status": "RUNNING", "driver_exit_code": None}, 0, 1),  # the log broke off
        ({}, 0, 1),  # no answer
    ],
)
def test_the_status_of_a_followed_job(
    answer: dict[str, Any], of_ray: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[urllib.request.Request] = []

    def urlopen(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        sent.append(request)
        return io.BytesIO(json.dumps(answer).encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(launching.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": of_ray}))
    job = launching.Submission(command=("ray",), address=LOOPBACK, job="job-1", unseen=())

    assert launching.submit(job, follow=True) == status
    [request] = sent
    assert request.full_url == f"{LOOPBACK}/api/jobs/job-1"
    assert request.get_header("Authorization") == "Bearer the-secret"
