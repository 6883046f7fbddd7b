"""What a recipe asks of a run: engines, editors, steps, media."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import preflight
from pipelines.comparisons import Cells
from pipelines.decoding import Contrast, Decoder
from pipelines.objectives.base import Objective
from pipelines.perturbations.diffuse import Diffuse
from pipelines.programs.damaging import Damage
from pipelines.programs.editing import Edited
from pipelines.programs.mixing import Either
from pipelines.programs.sampling import Sample
from pipelines.recipe import Recipe, Stage
from pipelines.requirements import backend_of, needs_of, problems, sees, steps_of
from pipelines.rollout import Step
from pipelines.schedules import EasyToHard
from pipelines.settings import Settings, SettingsError


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
    for finding in preflight.check(run):
        if finding.check == "media":
            if not finding.ok:
                raise SettingsError(finding.text)
            yield finding.check, finding.text
