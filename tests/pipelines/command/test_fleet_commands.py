"""`plumbline status` and `plumbline fleet`: what they say, and what they refuse."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipelines import control
from pipelines.cli import app

POOL = {"wanted": 1, "serving": 1, "low": 1, "high": 3, "standbys": 0, "pinned": False}


def plumbline(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def live(run_dir: Path, **facts: Any) -> None:
    control.write_status(run_dir, {"fleet": {"pools": {"generator": POOL}, "members": []}, **facts})


def test_status_shows_a_run(tmp_path: Path) -> None:
    live(tmp_path, name="demo", phase="align", step=4, steps=60, attempt=1)
    result = plumbline("status", tmp_path)
    assert result.exit_code == 0 and "demo: align, step 4 of 60" in result.output
    as_json = json.loads(plumbline("status", tmp_path, "--json").stdout)
    assert (as_json["step"], as_json["silence"]) == (4, None)


def test_status_of_a_run_that_is_over_says_so(tmp_path: Path) -> None:
    live(tmp_path, phase="over")
    assert "the run is over" in plumbline("status", tmp_path).output
    assert "over" in json.loads(plumbline("status", tmp_path, "--json").stdout)["silence"]


def test_status_of_no_run_is_one_message(tmp_path: Path) -> None:
    result = plumbline("status", tmp_path / "none")
    assert result.exit_code == 2 and "no such folder" in result.stderr


def test_fleet_asks_and_prints_what_the_run_says(tmp_path: Path) -> None:
    live(tmp_path)
    asked: list[control.Request] = []

    def run() -> None:
        while (request := control.read_request(tmp_path)) is None:
            pass
        asked.append(request)
        live(tmp_path, request={"id": request.id, "said": "generators 1 -> 3"})

    thread = threading.Thread(target=run)
    thread.start()
    result = plumbline("fleet", tmp_path, "--rollouts", "3", "--scorers", "2")
    thread.join()
    assert (result.exit_code, result.stdout) == (0, "generators 1 -> 3\n")
    assert asked[0].sizes == {"generator": 3, "scorer": 2}


def test_a_run_that_does_not_answer_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(tmp_path)
    monkeypatch.setattr(control.await_answer, "__defaults__", (0.2,))
    result = plumbline("fleet", tmp_path, "--perturbers", "2")
    assert result.exit_code == 1 and "has not taken the request up yet" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is asked for"),
        (("--rollouts", "0"), "generators: expected 1 to"),
        (("--scorers", "-2"), "scorers: expected 1 to"),
        (("--rollouts", "two"), "Invalid value"),
    ],
)
def test_fleet_refuses_what_makes_no_sense(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    live(tmp_path)
    result = plumbline("fleet", tmp_path, *arguments)
    assert result.exit_code == 2 and said in result.stderr
    assert control.read_request(tmp_path) is None


def test_fleet_refuses_a_run_that_is_over(tmp_path: Path) -> None:
    live(tmp_path, phase="over")
    result = plumbline("fleet", tmp_path, "--rollouts", "2")
    assert result.exit_code == 2 and "its fleet cannot be changed" in result.stderr
