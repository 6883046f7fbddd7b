"""What `plumbline align` says about input that it cannot use: one message with the place, and no Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app

ROOT = Path(__file__).parents[2]
GOOD = {"prompt": "describe the image .", "images": ["good.png"]}


@pytest.fixture
def own_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run of somebody's own with the base model, right but for what the test changes."""

    def write(second_row: Any = GOOD, **changes: Any) -> Path:
        Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
        (tmp_path / "broken.png").write_bytes(b"not a picture")
        line = second_row if isinstance(second_row, str) else json.dumps(second_row)
        (tmp_path / "rows.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n")
        (tmp_path / "empty.jsonl").write_text("\n")
        (tmp_path / "reward.py").write_text("def score(prompt, response, row):\n    return 1.0\n")
        run = {"data": "rows.jsonl", "reward": "reward.py:score", "output": str(tmp_path / "runs")}
        (tmp_path / "run.yaml").write_text(json.dumps(run | changes))
        return tmp_path / "run.yaml"

    return write


@pytest.fixture
def refusal(own_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The message of a run that must end with status 2 before Ray starts."""

    def started(*args: Any, **kwargs: Any) -> None:
        pytest.fail("Ray was started")

    def refused(second_row: Any = GOOD, **changes: Any) -> str:
        monkeypatch.setattr(ray, "init", started)
        result = CliRunner().invoke(app, ["align", str(own_run(second_row, **changes))])
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert result.stderr.count("plumbline: ") == 1
        assert result.stderr.startswith("plumbline: ")
        return result.stderr

    return refused


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "images": ["broken.png"]}, "rows.jsonl:2: image 1 (broken.png): got not a picture"),
        ({"prompt": "x", "images": ["none.png"]}, "rows.jsonl:2: image 1 (none.png): got no such file"),
        ('{"prompt": "x", ', "rows.jsonl:2: the line: got broken JSON"),
        ({"promt": "x"}, "rows.jsonl:2: the row: got columns ['promt'], expected a column `prompt`"),
        ({"prompt": "see <|image_pad|> here"}, "rows.jsonl:2: "),
        ({"prompt": "see <image> here"}, "rows.jsonl:2: "),
    ],
)
def test_a_bad_row_is_named_and_listed(
    row: Any, said: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    message = refusal(row)
    assert said in message
    assert "1 bad row, but data.max_bad_rows is 0" in message
    [listed] = (tmp_path / "runs" / "glyphs" / "bad_rows.jsonl").read_text().splitlines()
    assert json.loads(listed)["where"] == "rows.jsonl:2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learner": {"stps": 3}}, "run.yaml:1: unknown key 'learner.stps'; did you mean 'learner.steps'?"),
        ({"data": "none.jsonl"}, "none.jsonl: no such file"),
        ({"data": "empty.jsonl"}, "0 usable rows: the data is empty"),
        ({"model": "nowhere"}, "no such folder"),
        ({"model": "."}, "not a checkpoint: no config.json"),
        ({"reward": "reward.py:scroe"}, "has no 'scroe'; it has score"),
        ({"reward": "no.such.module:f"}, "there is no module 'no'"),
        ({"recipe": "online_dop"}, "did you mean 'online_dpo'?"),
        ({"method": {"beta": "much"}}, "recipe 'online_dpo': beta: "),
        ({"rollout": {"engine": {"max_model_len": 4096}}}, "4096 exceeds the 1024 tokens"),
        ({"learner": {"lora": {"targets": ["q_porj"]}}}, "has no module 'q_porj'"),
        ({"rollout": {"max_tokens": 30, "engine": {"max_model_len": 40}}}, "prompt 'rows:1': 2"),
    ],
)
def test_what_cannot_run_is_named(changes: dict[str, Any], said: str, refusal: Callable[..., str]) -> None:
    assert said in refusal(**changes)


def test_the_command_itself_starts_no_ray(own_run: Callable[..., Path], tmp_path: Path) -> None:
    """A Ray that starts leaves the folder of its session."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(tmp_path / "ray")}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "align", str(own_run("{"))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("plumbline: 1 bad row")
    assert "rows.jsonl:2: the line: got broken JSON" in done.stderr
    assert not (tmp_path / "ray").exists()
