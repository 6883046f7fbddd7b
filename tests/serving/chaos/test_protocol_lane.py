"""One minute of the protocol lane: Ray Serve, gateway, conductor, registry are real, the engine is a stub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)

SECONDS = 60
#: Answers are short, so that as small a share of them is cut off as of a ten-minute run's.
SHORT = ("--kill-every", "20", "--swap-every", "20", "--tokens", "4", "--token-s", "0.005")


def test_a_minute_of_kills_and_swaps_reaches_every_target(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.serving.chaos", "--seconds", str(SECONDS), *SHORT]
    ended = subprocess.run(
        [*command, "--no-ingress", "--out", str(tmp_path / "lane"), "--json", str(file)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    result = json.loads(file.read_text())
    numbers = result["numbers"]
    assert result["missed"] == [] and "no model is involved" in result["engine"]
    assert numbers["requests"] == 10 * SECONDS and numbers["streams"] == 5 * SECONDS
    assert numbers["success with two retries"] == 1 and numbers["first-try success"] >= 0.995
    assert numbers["replicas killed"] == 3 and numbers["of them while they changed over"] == 1
    assert numbers["swaps"] == 4 and numbers["requests during those"] > 0  # of swaps without a kill
    assert numbers["conductors killed"] == 1 and numbers["replicas that refused damaged files"] >= 2
    assert len({kill["pid"] for kill in result["kills"]}) == 4
