"""Settings: what is read, what is refused, and whether the message says where and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import marked_yaml
from pipelines.settings import (
    DataSettings,
    LearnerSettings,
    LoraSettings,
    RolloutSettings,
    Settings,
    SettingsError,
    demands,
    load,
    model_path,
    to_yaml,
)
from pipelines.settings_errors import ELSEWHERE, keys, nearest

ROOT = Path(__file__).parents[2]
KEYS = list(keys(Settings))


def refused(*overrides: str, text: str | None = None, folder: Path | None = None) -> str:
    path = None
    if text is not None:
        assert folder is not None
        path = folder / "run.yaml"
        path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_without_a_file_the_defaults_are_the_run() -> None:
    assert load() == Settings()


def test_the_spelled_out_default_run_is_the_default_run() -> None:
    assert load(ROOT / "examples" / "glyphs.yaml") == Settings()


def test_overrides_come_after_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("learner:\n  lr: 1e-3\n  steps: 7\n")
    run = load(tmp_path / "run.yaml", ["learner.lr=5e-7", "learner.lr=6e-7"])
    assert (run.learner.lr, run.learner.steps) == (6e-7, 7)


def test_an_override_opens_a_section_that_is_null_by_default(tmp_path: Path) -> None:
    assert load(None, ["learner.lora.rank=4"]).learner.lora == LoraSettings(rank=4)
    (tmp_path / "run.yaml").write_text("learner: {lora: null}")
    assert load(tmp_path / "run.yaml", ["learner.lora.rank=4"]).learner.lora == LoraSettings(rank=4)


def test_method_parameters_are_free() -> None:
    assert load(None, ["method.beta=0.2", "method.regions=boxes"]).method == {"beta": 0.2, "regions": "boxes"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("learner.learning_rate=1", "learner.lr"),
        ("learner.lrr=1", "learner.lr"),
        ("lr=1", "learner.lr"),
        ("rolout.generators=2", "rollout"),
        ("rollout.generator=2", "rollout.generators"),
        ("sync.max_lags=2", "sync.max_lag"),
        ("temperature=2", "rollout.temperature"),
        ("rollout.engine.max_len=2", "rollout.engine.max_model_len"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(given: str, meant: str) -> None:
    message = refused(given)
    assert f"did you mean {meant!r}?" in message
    assert f"override {given!r}" in message


def test_an_unknown_key_in_a_file_names_file_and_line(tmp_path: Path) -> None:
    message = refused(text="name: x\nlearner:\n  steps: 3\n  warmup: 2\n", folder=tmp_path)
    assert (
        message
        == f"{tmp_path / 'run.yaml'}:4: unknown key 'learner.warmup'; did you mean 'learner.warmup_steps'?"
    )


def test_a_key_like_no_other_lists_those_that_exist() -> None:
    assert "known keys here: every, keep" in refused("checkpoint.zzz=1")


def test_names_of_other_libraries_lead_to_keys_that_exist() -> None:
    assert set(ELSEWHERE.values()) <= set(KEYS)


@settings(deadline=None)
@given(st.sampled_from(KEYS), st.integers(0, 30), st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
def test_a_key_with_one_letter_more_is_always_led_back_to_a_key(key: str, place: int, letter: str) -> None:
    leaf = key.rpartition(".")[2]
    if len(leaf) < 4:
        return
    place = len(key) - len(leaf) + min(place, len(leaf))
    wrong = key[:place] + letter + key[place:]
    found = nearest(wrong, KEYS)
    assert wrong in KEYS or found in KEYS


@pytest.mark.parametrize(
    ("override", "expected", "got"),
    [
        ("learner.steps=sixty", "a valid integer", "'sixty'"),
        ("learner.steps='60'", "a valid integer", "'60'"),
        ("learner.steps=true", "a valid integer", "True"),
        ("learner.steps=1.5", "a valid integer", "1.5"),
        ("learner.steps=0", "greater than 0", "0"),
        ("learner.lr=-1e-3", "greater than 0", "-0.001"),
        ("learner.lr=.nan", "a finite number", "nan"),
        ("learner.lr=1e400", "a finite number", "inf"),
        ("learner.zero_stage=5", "0, 1, 2 or 3", "5"),
        ("learner.betas=[1, 2, 3]", "2 values", "[1, 2, 3]"),
        ("learner.betas=[0.9, 1.0]", "less than 1", "1.0"),
        ("learner=3", "a section with keys of its own", "3"),
        ("seed.x=1", "a valid integer", "{'x': 1}"),
        ("model=", "a valid string", "nothing (null)"),
        ("name=../x", "match pattern", "'../x'"),
        ("rollout.engine.dtype=int8", "'float32', 'bfloat16' or 'float16'", "'int8'"),
    ],
)
def test_a_wrong_value_says_what_is_expected_and_what_came(override: str, expected: str, got: str) -> None:
    message = refused(override)
    assert expected in message
    assert message.endswith(f"got {got}")
    assert f"override {override!r}" in message


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    message = refused("sync.evry=2", text="learner:\n  lr: x\nfoo: 1\n", folder=tmp_path)
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("learner:\n  steps: 3\n  steps: 4\n", ":3: 'learner.steps' is given twice, first on line 2"),
        ("- 1\n- 2\n", "expected keys and values such as 'model: PATH', got a list"),
        ("just text\n", "got a single value 'just text'"),
        ("learner: [1\n", ":2: not valid YAML"),
        ("a: &x 1\nb: *x\n", ":1: anchors and aliases are not supported"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        (
            "a: !!python/object:os.system x\n",
            "the tag 'tag:yaml.org,2002:python/object:os.system' is not supported",
        ),
        ("a: \x00\n", "not valid YAML"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("? [1]\n: 2\n", "expected a key of text"),
    ],
)
def test_a_file_that_is_no_settings_file(text: str, part: str, tmp_path: Path) -> None:
    message = refused(text=text, folder=tmp_path)
    assert message.startswith(str(tmp_path / "run.yaml"))
    assert part in message


def test_a_missing_file_a_folder_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "utf16.yaml").write_bytes("seed: 3".encode("utf-16"))
    with pytest.raises(SettingsError, match="expected UTF-8 text"):
        load(tmp_path / "utf16.yaml")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 3")
    assert load(tmp_path / "bom.yaml").seed == 3
    (tmp_path / "empty.yaml").write_text("")
    assert load(tmp_path / "empty.yaml") == Settings()


@pytest.mark.parametrize("override", ["foo", "=1", "a..b=1", ".a=1"])
def test_an_override_that_is_none(override: str) -> None:
    assert "expected key=value" in refused(override)


def test_an_override_inside_a_value() -> None:
    assert "data.source is a value, not a section" in refused("data=x.jsonl", "data.source.x=1")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["data=x.jsonl"], "reward: 'world' verifies answers about scenes of the glyphs world"),
        (["data=x.jsonl", "reward=a.b:c", "evaluation.scenes=4"], "evaluation: it shows held-out scenes"),
        (["reward=foo"], "reward: expected 'world', 'random'"),
        (["sync.every=70"], "sync.every: 70 exceeds learner.steps = 60"),
        (["learner.workers=30"], "learner.workers: 30 workers share 24 groups"),
        (["rollout.max_tokens=1024"], "rollout.max_tokens: 1024 leaves no room"),
        (["data.max_bad_rows=3"], "data.max_bad_rows: the glyphs world has no bad rows"),
    ],
)
def test_values_that_do_not_go_together(overrides: list[str], part: str) -> None:
    message = refused(*overrides)
    assert part in message
    assert message.startswith("override ") or "reward: 'world'" in message


def test_own_data_is_not_evaluated_on_glyphs(tmp_path: Path) -> None:
    run = load(None, ["data=rows.jsonl", "reward=my.rewards:score"])
    assert (run.evaluation.scenes, run.evaluation.questions) == (0, 0)
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert load(tmp_path / "config.yaml") == run


def test_data_is_short_for_its_source(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {source: a.jsonl, max_bad_rows: 3}\nreward: m:f\n")
    data = load(tmp_path / "run.yaml", ["data=b.jsonl"]).data
    assert (Path(data.source).name, data.max_bad_rows) == ("b.jsonl", 3)
    (tmp_path / "run.yaml").write_text("data: a.jsonl\nreward: m:f\n")
    assert load(tmp_path / "run.yaml", ["data.max_bad_rows=2"]).data.max_bad_rows == 2


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for file in (beside / "both.jsonl", here / "both.jsonl", here / "only_here.jsonl", beside / "reward.py"):
        file.touch()
    text = "data: {}\nmodel: some/model\nreward: reward.py:score\n"

    def source(name: str, *overrides: str) -> Settings:
        (beside / "run.yaml").write_text(text.format(name))
        return load(beside / "run.yaml", overrides)

    run = source("both.jsonl")
    assert run.data.source == str(beside / "both.jsonl")
    assert run.reward == f"{beside / 'reward.py'}:score"
    assert run.model == str(here / "some" / "model")
    assert source("only_here.jsonl").data.source == str(here / "only_here.jsonl")
    assert source("both.jsonl", "data=both.jsonl").data.source == str(here / "both.jsonl")


def test_the_embedded_model_is_named_glyphs() -> None:
    assert model_path(Settings()).parts[-3:] == ("worlds", "glyphs", "base")
    assert model_path(Settings(model="/a/b")) == Path("/a/b")


def test_demands_sum_every_process_and_one_cpu_for_the_data() -> None:
    """2 generators x 3 + 2 workers x 4 + 0.6 (scorer, perturbers) + 1 = 15.6 CPUs; 2 x 1 + 2 x 2 GPUs."""
    run = load(
        None,
        [
            "rollout.generators=2",
            "rollout.engine.cpus=3",
            "rollout.engine.gpus=1",
            "rollout.perturbers=5",
            "learner.workers=2",
            "learner.cpus=4",
            "learner.gpus=2",
        ],
    )
    assert demands(run) == {"CPU": 15.6, "GPU": 6.0}


@settings(deadline=None)
@given(
    st.builds(
        Settings,
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True),
        output=st.text(st.characters(codec="utf-8"), min_size=1),
        seed=st.integers(0, 2**31 - 1),
        method=st.dictionaries(
            st.sampled_from(["beta", "on", "5e-7"]), st.sampled_from(["1e5", "no", "null", 3, None])
        ),
        data=st.builds(DataSettings, count=st.none() | st.integers(1, 10**9)),
        rollout=st.builds(RolloutSettings, temperature=st.floats(1e-300, 1e300)),
        learner=st.builds(
            LearnerSettings,
            lr=st.floats(0, exclude_min=True, allow_infinity=False),
            lora=st.none()
            | st.builds(
                LoraSettings,
                targets=st.lists(
                    st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=3
                ).map(tuple),
            ),
        ),
    )
)
def test_settings_survive_a_round_trip_through_yaml(run: Settings) -> None:
    assert Settings.model_validate(marked_yaml.parse(to_yaml(run), "x").value) == run


@settings(deadline=None)
@given(st.sampled_from(["learner.lr", "learner.steps", "model", "data.count", "zz"]), st.text(max_size=30))
def test_no_override_ends_in_anything_but_settings_or_a_settings_error(key: str, value: str) -> None:
    try:
        load(None, [f"{key}={value}"])
    except SettingsError as error:
        assert re.match(r"override |settings: ", str(error))


@settings(deadline=None)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_number_that_python_prints_is_read_back(value: float) -> None:
    assert load(None, [f"learner.lr={value!r}"]).learner.lr == value


def test_the_documentation_has_every_key_and_its_default() -> None:
    """Each key that is no section stands in a table of docs/settings.md, with the code's own default."""
    text = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \|", text, re.MULTILINE))
    sections = {key.rpartition(".")[0] for key in KEYS}
    leaves = {key for key in KEYS if key not in sections}
    assert set(rows) - {"learner.lora"} == leaves
    defaults = Settings(learner=LearnerSettings(lora=LoraSettings())).model_dump()
    for key in leaves:
        value = defaults
        for name in key.split("."):
            value = value[name]
        written = rows[key].strip("`").replace("null", "None").replace("false", "False")
        if isinstance(value, tuple):
            assert written == "[" + ", ".join(map(str, value)) + "]", key
        else:
            assert written == str(value), key
