"""What is decided about places without a Ray."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from actors import placement
from actors.placement import PROJECT_ROOT, refuse_what_cannot_fit, search_path
from pipelines.settings import SettingsError


def test_workers_look_here_first_then_in_the_users_folder_then_where_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/own", PROJECT_ROOT, "", "/own"]))

    assert search_path().split(os.pathsep) == [PROJECT_ROOT, str(tmp_path), "/own"]


def test_the_search_path_needs_no_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    assert search_path().split(os.pathsep) == [PROJECT_ROOT, str(tmp_path)]


def test_a_cluster_that_is_too_small_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 4.0})

    refuse_what_cannot_fit({"CPU": 4.0, "GPU": 0})
    with pytest.raises(SettingsError, match=r"needs 4\.2 CPU but the Ray cluster has 4"):
        refuse_what_cannot_fit({"CPU": 4.2, "GPU": 0})
    with pytest.raises(SettingsError, match=r"needs 2 GPU but the Ray cluster has 0"):
        refuse_what_cannot_fit({"CPU": 1, "GPU": 2})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "new"}),
        ({"RAY_AUTH_TOKEN": "own"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "own"}),
        ({"RAY_AUTH_TOKEN_PATH": "/own"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/own"}),
        ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "disabled"}),
    ],
)
def test_a_local_ray_asks_for_a_token_unless_the_caller_said_otherwise(
    given: dict[str, str], found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(given)
    monkeypatch.setattr(placement.os, "environ", environment)
    monkeypatch.setattr(placement.secrets, "token_hex", lambda length: "new")
    for name in ("Config", "AuthenticationTokenLoader"):  # of this process, which other tests share
        monkeypatch.setattr(placement, name, MagicMock())

    placement.ask_for_a_token()

    assert environment == found
