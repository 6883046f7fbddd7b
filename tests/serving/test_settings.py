from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.settings_errors import keys
from serving.models import ModelSettings
from serving.settings import Settings, SettingsError, is_loopback, load


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return path


def test_the_defaults_serve_this_machine_alone() -> None:
    assert load() == Settings()
    assert is_loopback(Settings().host)
    assert Settings().feedback.consent == "off" and not Settings().log_content


def test_a_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "port: 9000\nlimits:\n  media: 2\ntls:\n")
    given = load(path, ["limits.media=3", "tls.certificate=a.pem", "tls.key=b.pem", "canary.salt=x"])
    assert (given.port, given.limits.media, given.canary.salt) == (9000, 3, "x")
    assert given.tls is not None and given.tls.key == "b.pem"


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("prot: 1", [], "serve.yaml:1: unknown key 'prot'; did you mean 'port'?"),
        ("limits:\n  medai: 1", [], "serve.yaml:2: unknown key 'limits.medai'; did you mean 'limits.media'?"),
        ("limits: {n: 0}", [], "limits.n: expected greater than 0, got 0"),
        ("load: {queue_timeout_s: .inf}", [], "load.queue_timeout_s"),
        ("feedback: {sample: 1.5}", [], "feedback.sample: expected less than or equal to 1, got 1.5"),
        ("", ["port"], "expected key=value, as in limits.media=2"),
        ("port: 1", ["port.x=2"], "port is a value, not a section"),
        ("[1]", [], "expected keys and values"),
        ("a: [", [], "serve.yaml:"),
        ("host: 0.0.0.0", [], "serve.yaml:1: host: '0.0.0.0' is reachable from outside and no keys"),
        ("", ["feedback.consent=all"], "set feedback.folder"),
        ("learning_rate: 1", [], "unknown key 'learning_rate'; known keys here: "),
        ("models: {a: {}}", [], "serve.yaml:1: models.a: expected target"),
        (
            "models: {a: {target: x, tools: y}}",
            [],
            "unknown key 'models.a.tools'; did you mean 'models.NAME.engine.tools'?",
        ),
        ("models:\n  a:\n    target: x\n    engine: {task: chat}", [], "serve.yaml:4: models.a.engine.task"),
        ("models: {'a:b': {target: x}}", [], "a:b"),
        ("models: {a: {target: x, engine: {task: embed, tools: hermes}}}", [], "calls no tools"),
        (
            "models: {a: {target: x, engine: {task: embed}, adapters: {b: y}}}",
            [],
            "models.a.adapters: a model with",
        ),
        ("models: {a: {target: x}}\nregistry: r", [], "serve.yaml:2: registry: with models each one"),
        (
            "models: {a: {registry: r}, b: {registry: ./r}}",
            [],
            "models.b.registry: './r' is that of model 'a'",
        ),
        ("", ["models.a.target=x", "models.a.engine.context=0"], "models.a.engine.context: expected greater"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, overrides: list[str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path, text), overrides)
    assert says in str(caught.value)


def test_the_files_that_the_page_shows_are_files_of_a_server(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    shown = re.findall(r"cat > server\.yaml <<'YAML'\n(.*?)\nYAML", page, re.DOTALL)
    assert len(shown) >= 2
    several = [load(write(tmp_path, text)).models for text in shown]
    assert any("vectors" in models and models["vectors"].engine.task == "embed" for models in several)


def test_the_page_has_a_row_for_every_key_of_a_model() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    section = page[page.index("| key of a model |") : page.index("## Tools and JSON")]
    for key in keys(ModelSettings):
        row = "replicas.*" if key.startswith("replicas") else key
        assert f"| `{row}" in section or key == "engine", key


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="expected UTF-8"):
        load(tmp_path / "binary")


@pytest.mark.parametrize("given", [["keys=keys.json"], ["anonymous=true"]])
def test_the_outside_is_served_with_keys_or_on_purpose(given: list[str]) -> None:
    assert load(None, ["host=0.0.0.0", *given]).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("::", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local
