"""A run's folder as its control panel: whole files, honest ages, requests that are answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines import control
from pipelines.settings_errors import SettingsError
from pipelines.status import describe

FLEET: dict[str, Any] = {
    "pools": {
        "generator": {
            "wanted": 2,
            "serving": 1,
            "low": 1,
            "high": 3,
            "standbys": 1,
            "pinned": True,
        },
        "scorer": {"wanted": 1, "serving": 1, "low": 1, "high": None, "standbys": 0, "pinned": False},
    },
    "members": [
        {
            "role": "generator",
            "index": 4,
            "state": "serving",
            "version": 6,
            "in_flight": 3,
            "node": "0123456789abcdef",
            "pid": 77,
            "age_s": 12.4,
        },
        {
            "role": "generator",
            "index": 5,
            "state": "starting",
            "version": -1,
            "in_flight": 0,
            "node": None,
            "pid": None,
            "age_s": 1.0,
        },
    ],
    "pressure": {"0123456789abcdef": 0.91},
}


def write(folder: Path, **facts: Any) -> dict[str, Any]:
    control.write_status(folder, {"fleet": FLEET, **facts})
    return control.read_status(folder)


def shown(status: dict[str, Any], now: float | None = None) -> str:
    console = Console(width=110, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for part in describe(status, now):
        console.print(part, highlight=False)
    return console.export_text()


def test_a_status_says_who_wrote_it_and_comes_back(tmp_path: Path) -> None:
    status = write(tmp_path, phase="align", step=3)
    assert (status["phase"], status["step"], status["fleet"], status["pid"]) == (
        "align",
        3,
        FLEET,
        os.getpid(),
    )
    assert control.silence(status) is None
    assert os.listdir(tmp_path) == [control.STATUS]  # nothing half-written is left


def test_readers_never_see_half_a_status(tmp_path: Path) -> None:
    write(tmp_path, filler="")
    done = threading.Event()

    def keep_writing() -> None:
        for length in range(300):
            control.write_status(tmp_path, {"fleet": FLEET, "filler": "x" * (length % 7) * 20_000})
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    read = 0
    while not done.is_set():
        assert control.read_status(tmp_path)["fleet"] == FLEET
        read += 1
    writer.join()
    assert read > 0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"at": 1, "host": "h", "pid": 2, "fleet": {}}']
)
def test_what_is_no_status_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / control.STATUS).write_text(content)
    with pytest.raises(SettingsError, match=r"status\.json: cannot be read"):
        control.read_status(tmp_path)


def test_a_folder_without_a_status_is_told_from_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the run has not started yet"):
        control.read_status(tmp_path)
    with pytest.raises(SettingsError, match="no such folder"):
        control.read_status(tmp_path / "none")


def test_silence_names_its_cause(tmp_path: Path) -> None:
    status = write(tmp_path, phase="align")
    assert control.silence(status, now=status["at"] + 40) == "the run has not written for 40 s"
    assert control.silence({**status, "phase": "over"}) == "the run is over (over)"
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    assert (
        control.silence({**status, "pid": int(ended.stdout)})
        == f"the run's process {int(ended.stdout)} is gone"
    )
    elsewhere = {**status, "pid": int(ended.stdout), "host": "another-machine"}
    assert control.silence(elsewhere) is None  # its number means nothing here


def test_a_request_reaches_the_run_and_its_answer_comes_back(tmp_path: Path) -> None:
    write(tmp_path, phase="align")
    request = control.write_request(tmp_path, {"generator": 3, "scorer": 1})
    seen = control.read_request(tmp_path)
    assert seen is not None and (seen.id, seen.sizes) == (request, {"generator": 3, "scorer": 1})
    assert control.await_answer(tmp_path, request, timeout_s=0.0) is None
    write(tmp_path, request={"id": "another", "said": "no"})
    assert control.await_answer(tmp_path, request, timeout_s=0.0) is None
    write(tmp_path, request={"id": request, "said": "generators 1 -> 3"})
    assert control.await_answer(tmp_path, request) == "generators 1 -> 3"


@pytest.mark.parametrize("size", [0, -1, control.MOST + 1])
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path)
    with pytest.raises(SettingsError, match=f"generators: expected 1 to {control.MOST}, got {size}"):
        control.write_request(tmp_path, {"generator": size})
    assert control.read_request(tmp_path) is None


def test_a_run_that_is_not_live_is_not_asked(tmp_path: Path) -> None:
    write(tmp_path, phase="over")
    with pytest.raises(SettingsError, match="the run is over"):
        control.write_request(tmp_path, {"generator": 1})
    with pytest.raises(SettingsError, match="nothing is asked for"):
        control.write_request(tmp_path, {})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "3",
        "\x00",
        '{"id": 1}',
        '{"id": "a", "sizes": 7}',
        '{"id": "a", "sizes": {}}',
        '{"id": "a", "sizes": {"generator": 0}}',
        '{"id": "a", "sizes": {"generator": "many"}}',
    ],
)
def test_a_request_that_cannot_be_read_is_a_request_with_a_problem(tmp_path: Path, content: str) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / control.REQUEST).write_text(content)
    request = control.read_request(tmp_path)
    assert request is not None and "not a request" in str(request.problem) and request.sizes == {}


def test_people_see_members_lag_leases_alarms_and_age(tmp_path: Path) -> None:
    leases = {
        "counts": {"issued": 9, "leased": 3, "dropped": {"tie": 2, "stale": 1}},
        "held_bytes": 3 * 2**20,
        "leases": [{"group": "g[1]", "generator": 4, "age_s": 2.0, "tries": 1}],
    }
    alarm = {"monitor": "length", "value": 2.0, "threshold": 1.5, "step": 3, "advice": "look at it"}
    status = write(tmp_path, name="demo", phase="align", step=3, steps=60, attempt=2, newest=8)
    status |= {"leases": leases, "alarms": [alarm], "request": {"id": "x", "said": "generators 1 -> 2"}}
    text = shown(status, now=status["at"] + 2)
    assert "demo: align, step 3 of 60, attempt 2; written 2 s ago" in text
    row = next(line.split() for line in text.splitlines() if "generator-4" in line)
    assert row == ["generator-4", "serving", "6", "2", "3", "77", "0123456789ab", "12", "s"]
    assert "waits for room" in text and "2 (as asked for)" in text and "any number" in text
    assert "6 to 6, newest 8" in text
    assert "91% full" in text
    assert "groups: issued 9, leased 3, dropped 3; 3.0 MiB held" in text
    assert "g[1] on generator-4 for 2 s, try 2" in text
    assert (
        "alarm: step 3: length is 2, threshold 1.5: look at it" in text
        and "last request: generators 1 -> 2" in text
    )
    assert "has not written" not in text
    assert "has not written for 41 s" in shown(status, now=status["at"] + 41)


def test_the_fewest_facts_are_enough(tmp_path: Path) -> None:
    control.write_status(tmp_path, {"fleet": {"pools": {}, "members": []}})
    assert "run: ?, step ? of ?" in shown(control.read_status(tmp_path))


def test_reading_and_writing_need_no_ray(tmp_path: Path) -> None:
    code = "import sys, pipelines.control, pipelines.status; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_status_file_is_plain_json(tmp_path: Path) -> None:
    write(tmp_path, path=tmp_path)
    assert json.loads((tmp_path / control.STATUS).read_text())["path"] == str(tmp_path)
