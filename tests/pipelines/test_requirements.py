"""What a recipe asks of a run: engines, editors, steps, media."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipelines import preflight
from pipelines.comparisons import Cells
from pipelines.decoding import Contrast, Decoder, FromCheckpoint, FromReference
from pipelines.objectives.base import Objective
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.damaging import Damage
from pipelines.programs.editing import Edited
from pipelines.programs.given import Offline, Recorded
from pipelines.programs.mixing import Either
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.requirements import (
    backend_of,
    needs_of,
    other_models,
    problems,
    recorded_pairs,
    sees,
    steps_of,
)
from pipelines.rollout import Step
from pipelines.schedules import EasyToHard
from pipelines.settings import Settings, SettingsError
from pipelines.worlds.glyphs import BASE_MODEL


def recipe(*programs: Step, **more: Any) -> Recipe:
    stages = tuple(
        Stage(rollout=program, compare=Cells({"y": "y@x"}), objective=Objective(()), **more)
        for program in programs
    )
    return Recipe(name="test", paper="", source="", stages=stages)


def settings(**given: Any) -> Settings:
    return Settings.model_validate(given)


CONTRAST = Either(0.5, Sample(2), Sample(2, decoder=Contrast())) >> Sample(1, "z", decoder=Decoder())


def test_vllm_is_taken_where_it_can_and_may_be_left() -> None:
    assert backend_of(settings(), recipe(Sample(2) >> Sample(2))) == "vllm"
    assert backend_of(settings(), recipe(CONTRAST)) == "transformers"
    forced = settings(rollout={"engine": {"backend": "transformers"}})
    assert backend_of(forced, recipe(Sample(2) >> Sample(2))) == "transformers"
    assert not list(problems(forced, recipe(CONTRAST)))


def test_a_backend_that_cannot_is_refused_with_the_step_and_the_fix() -> None:
    [problem] = problems(settings(rollout={"engine": {"backend": "vllm"}}), recipe(CONTRAST))
    assert problem.startswith("rollout.engine.backend: vLLM cannot do ['contrast'], which Sample(n=2")
    assert "Contrast(" in problem and "Either" not in problem and "auto or transformers" in problem


def test_a_survey_by_log_probs_needs_an_engine_that_probes() -> None:
    assert needs_of(recipe(Sample(2) >> Sample(2), order=EasyToHard(key="reference_gap"))) == {"probe"}


def test_more_stages_than_steps_is_refused() -> None:
    [problem] = problems(settings(learner={"steps": 1}), recipe(Sample(2), Sample(2)))
    assert (
        problem.startswith("learner.steps: recipe 'test' has 2 stages") and "raise learner.steps" in problem
    )


def test_an_editor_that_only_knows_glyphs_is_refused_for_own_data() -> None:
    edits = recipe(Sample(1) >> Edited("g", "y", "correct"))
    own = {"data": {"source": "rows.jsonl"}, "reward": "mine:score"}
    [problem] = problems(settings(**own), edits)
    assert "Edited(name='g'" in problem and "give your own editor" in problem
    assert not list(problems(settings(**own, editor="mine:edit"), edits))
    assert not list(problems(settings(), edits))


def test_every_step_is_found_wherever_it_stands() -> None:
    @dataclass(frozen=True)
    class Holder(Step):
        inner: tuple[Step, ...]

        @property
        def makes(self) -> frozenset[str]:
            return frozenset("xy")

    names = [type(step).__name__ for step in steps_of(recipe(Holder((CONTRAST, Sample(1)))))]
    assert names == ["Holder", "Pipe", "Either", "Sample", "Sample", "Sample", "Sample"]


def test_a_recipe_that_damages_media_refuses_rows_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage = Damage("m", Diffuse(500))
    optional = Damage("m", Diffuse(500), optional=True)
    assert sees(recipe(Sample(2) >> damage)) == damage
    assert sees(recipe(Sample(2) >> optional)) is None and sees(recipe(Sample(2))) is None
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "say it"}) + "\n")
    run = settings(data={"source": str(path)}, reward="mine:score", recipe="mdpo")
    with pytest.raises(SettingsError, match=r"no row of .*rows.jsonl shows a picture.*mdpo damages"):
        dict(media_check(run))


def media_check(run: Settings) -> Iterator[tuple[str, str]]:
    found = finding("media", run)
    if not found.ok:
        raise SettingsError(found.text)
    yield found.check, found.text


def finding(check: str, run: Settings) -> preflight.Finding:
    return next(found for found in preflight.check(run) if found.check == check)


def test_samples_of_another_checkpoint() -> None:
    """vLLM does not draw them, and a folder that is no checkpoint is found before anything starts."""
    both = Sample(1, decoder=FromReference()) >> Sample(1, "z", decoder=Contrast(other="two"))
    assert other_models(recipe(both, Sample(1, decoder=FromCheckpoint(path="one")))) == {"one", "two"}
    method = {"source": "strong_chosen", "strong": str(BASE_MODEL)}
    run = settings(recipe="single_source", method=method)
    assert "decoded by transformers" in finding("recipe", run).text
    refused = finding("recipe", settings(rollout={"engine": {"backend": "vllm"}}, **run_of(run)))
    assert "vLLM cannot do ['checkpoint'], which Sample(n=1" in refused.text
    lost = finding("recipe", settings(recipe="synthalign_pds", method={"models": ["/no/where"]}))
    assert not lost.ok and "synthalign_pds samples from another model: /no/where: no such" in lost.text


def run_of(run: Settings) -> dict[str, Any]:
    return {"recipe": run.recipe, "method": run.method}


def pairs_in(path: Path, rows: list[tuple[str, str]]) -> dict[str, Any]:
    lines = [{"prompt": "say it", "chosen": won, "rejected": lost} for won, lost in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"reward": "random", "recipe": "dpo", "method": {"pairs": "recorded"}}


def test_recorded_pairs_are_probed(tmp_path: Path) -> None:
    """Labels at random: 0.5 within six errors of 0.02; a word that only chosen answers have: near 1."""
    random, path = Random(1), tmp_path / "rows.jsonl"

    def text() -> str:
        return " ".join(random.choices(("a", "red", "blue", "seven", "two", "one", "top", "left"), k=12))

    rows = [(text(), text()) for _ in range(400)]
    run = pairs_in(path, rows)
    strict = {"source": str(path), "max_probe_auc": 0.7}
    fair = settings(data=strict, **run)
    area = re.search(r"an AUC of (0\.\d\d) \(0\.5: it cannot; 400 rows\)", finding("pairs", fair).text)
    assert area is not None and abs(float(area[1]) - 0.5) < 0.12
    preflight.require(fair)
    pairs_in(path, [(f"{won} indeed", lost) for won, lost in rows])
    assert finding("pairs", settings(data={"source": str(path)}, **run)).ok  # by default it only reports
    told = finding("pairs", settings(data=strict, **run))
    assert not told.ok and re.match(r"data\.max_probe_auc: .* AUC of (1\.00|0\.9\d) in 400 rows", told.text)
    with pytest.raises(SettingsError, match="take both sides from one source"):
        preflight.require(settings(data=strict, **run))
    assert finding("pairs", settings(data=strict, reward="random")).text == "none are recorded"
    pairs_in(path, rows[:9])
    assert finding("pairs", settings(data=strict, **run)).text == "9 recorded ones, too few for a probe"


def test_who_reads_recorded_pairs() -> None:
    two = Recorded("w", "chosen") >> Recorded("l", "rejected")
    assert recorded_pairs(recipe(Sample(1) >> Offline())) and recorded_pairs(recipe(Sample(1) >> two))
    assert not recorded_pairs(recipe(Recorded("w", "chosen") >> Sample(1)))


def test_mixed_versions_are_refused_where_a_stage_an_engine_or_a_term_forbids_them() -> None:
    from pipelines.objectives.policy_gradient import PolicyGradient

    def refused(method: Recipe, **sync: Any) -> list[str]:
        run = settings(sync={"in_flight": "keep", **sync})
        return [problem for problem in problems(run, method) if problem.startswith("sync.in_flight")]

    plain = recipe(Sample(4))
    assert refused(plain) == []
    assert "stage 1 of test learns from the newest alone" in refused(plain, max_lag=0)[0]
    assert "stage 1 of test learns" in refused(recipe(Sample(4), max_lag=0))[0]
    mixing = recipe(Sample(4, decoder=Contrast()))
    assert "the Hugging Face generator decodes whole answers" in refused(mixing)[0]
    assert list(problems(settings(sync={"in_flight": "abort"}), mixing)) == []
    ratio = Stage(rollout=Sample(4), compare=Cells({"y": "y@x"}), objective=1.0 * PolicyGradient("y"))
    [problem] = refused(replace(plain, stages=(ratio,)))
    assert "PolicyGradient" in problem and "set it to wait or abort" in problem
