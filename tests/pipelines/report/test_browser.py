"""The report in a real browser: it shows its headline, and it is not blank."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium on PATH")
        pytest.skip("chromium is not on PATH")
    return found


def run_browser(browser: str, profile: Path, page: Path, *what: str) -> str:
    quiet = (
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    )
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        f"--user-data-dir={profile}",
        *what,
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_report_shows_in_a_browser(browser: str, rendered: Path, tmp_path: Path) -> None:
    dom = run_browser(browser, tmp_path / "profile", rendered, "--dump-dom")
    assert "Hallucinated mentions fell: 31.0% before, 9.1% after." in dom
    assert dom.count("<svg") == 8

    shot = tmp_path / "shot.png"
    run_browser(browser, tmp_path / "profile", rendered, f"--screenshot={shot}", "--window-size=1000,4200")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (4200, 1000, 3)
    bands = pixels.reshape(6, 700, 1000, 3)
    assert all(len(np.unique(band.reshape(-1, 3), axis=0)) > 10 for band in bands)  # something in every band
    picture = (np.abs(pixels.astype(int) - (230, 60, 40)).max(axis=2) < 4).sum()
    assert picture > 500  # the red block of the microscope's pictures
