"""The report of a synthetic run: complete, self-contained, valid, escaped, honest about what is missing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import render

VOID = {"meta", "br", "img", "link", "hr", "input"}
MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """Tags must balance; ids must be unique; remembers what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if attributes.get("id"):
            self.ids[str(attributes["id"])] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run_dir: Path) -> Page:
    return Page(render(run_dir).read_text(encoding="utf-8"))


def test_every_section_is_there_with_its_numbers(rendered: Path) -> None:
    """0.9 wrong of 2.9 mentions is 31.0%, 0.2 of 2.2 is 9.1%; their ratio is 0.29."""
    page = Page(rendered.read_text(encoding="utf-8"))
    for section in ("change", "pope", "curves", "time", "weights", "accounting", "microscope", "settings"):
        assert page.ids[section] == 1
    assert "Hallucinated mentions fell: 31.0% before, 9.1% after." in page.text
    assert "After / before = 0.29 (95% interval" in page.text
    assert "200 held-out scenes" in page.text
    assert "Captions with a hallucination (CHAIR-s) 90.0% 20.0% \N{MINUS SIGN}70.0" in page.text
    assert "POPE adversarial, accuracy 90.0% 90.0% 0.0 0.0 to 0.0 no clear change" in page.text
    assert "canary change 1 1 0" in page.text  # proved, not distinguishable, failed
    assert "issued 27 trained 24" in page.text
    assert "dropped: tie 2" in page.text
    assert "scorer: timeout 1" in page.text
    assert "align 64.5 s" in page.text
    assert "damaged: diffuse (step 500, seed 3)" in page.text
    assert "12 trained comparisons" in page.text
    assert "Not recorded" not in page.text


def test_the_page_needs_nothing_else(rendered: Path) -> None:
    page = Page(rendered.read_text(encoding="utf-8"))
    assert not page.all("script") and not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), target


def test_no_style_loads_anything(rendered: Path) -> None:
    text = rendered.read_text(encoding="utf-8")
    assert "@import" not in text
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []


def test_ids_are_unique_and_references_resolve(rendered: Path) -> None:
    text = rendered.read_text(encoding="utf-8")
    page = Page(text)
    assert [name for name, count in page.ids.items() if count > 1] == []
    references = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    assert references and references <= set(page.ids)


def test_people_who_do_not_see_get_words(rendered: Path) -> None:
    page = Page(rendered.read_text(encoding="utf-8"))
    assert page.all("img") and all(image.get("alt") for image in page.all("img"))
    charts = page.all("svg")
    assert len(charts) == 8
    assert all(chart.get("role") == "img" and chart.get("aria-label") for chart in charts)
    labels = [str(chart["aria-label"]) for chart in charts]
    assert any("reward" in label.lower() and "from -0.6 at 1 to 1.4 at 6" in label for label in labels)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_no_placeholder_colour_is_left(rendered: Path) -> None:
    text = rendered.read_text(encoding="utf-8")
    assert "#0102" not in text
    assert "var(--series-2)" in text and "currentColor" in text


def test_answers_are_escaped(make_run: MakeRun, tools: dict[str, Any]) -> None:
    run_dir = make_run()
    row = tools["row"](True, 1, 0, 0)
    row |= {
        "rejected": "<script>alert(1)</script> & more",
        "prompt_text": "<b>bold</b>",
        "prompt_id": '"><img src=x onerror=alert(1)>',
        "parts_rejected": json.dumps({"<i>": "<u>"}),
    }
    tools["write_rows"](run_dir, [row])
    page = page_of(run_dir)
    assert not page.all("script") and not page.all("u") and not page.all("i")
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.all("img"))
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text and "<script" not in text
    assert "&lt;b&gt;bold" in text


def test_wrong_mentions_are_marked_and_explained(make_run: MakeRun, tools: dict[str, Any]) -> None:
    run_dir = make_run()
    assert "Struck" not in page_of(run_dir).text
    row = tools["row"](True, 1, 0, 0)
    row["parts_rejected"] = json.dumps({"wrong": 1.0, "wrong_mentions": ["a blue two top right"]})
    tools["write_rows"](run_dir, [row])
    text = render(run_dir).read_text(encoding="utf-8")
    assert '<mark class="wrong">a blue two top right</mark>' in text
    assert "Struck" in text


def test_a_comparison_of_two_pictures_shows_one_answer(make_run: MakeRun, tools: dict[str, Any]) -> None:
    run_dir = make_run()
    for path in (run_dir / "comparisons").iterdir():
        path.unlink()
    row = tools["row"](True, 1, 0, 0) | {"rejected": None, "margin_text": None, "version_oldest": None}
    tools["write_rows"](run_dir, [row])
    text = page_of(run_dir).text.split("Microscope")[1].split("Settings and versions")[0]
    assert "Chosen score 1.00" in text and "media margin 0.05" in text
    assert "Rejected" not in text and "text margin" not in text and "None" not in text


def test_a_text_only_run_has_no_pictures(make_run: MakeRun) -> None:
    page = page_of(make_run(media=False))
    assert not page.all("img")
    assert "12 trained comparisons" in page.text and "media margin" not in page.text
    assert "not kept" not in page.text
    assert (
        "Not recorded in this run: Hallucination of sampled answers, Media margin / text margin" in page.text
    )


def test_lost_pictures_are_said(make_run: MakeRun) -> None:
    run_dir = make_run()
    for path in (run_dir / "media").iterdir():
        path.write_bytes(b"not a picture")
    page = page_of(run_dir)
    assert not page.all("img")
    assert "image not kept" in page.text and "damaged image not kept" in page.text


def test_a_digest_cannot_lead_out_of_the_run(
    make_run: MakeRun, tools: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = make_run()
    picture = next((run_dir / "media").iterdir())
    (tmp_path / "secret.png").write_bytes(picture.read_bytes())
    for path in (run_dir / "comparisons").iterdir():
        path.unlink()
    row = tools["row"](True, 1, 0, 0) | {"media_digest": "../../secret", "damaged_digest": None}
    tools["write_rows"](run_dir, [row])
    assert not page_of(run_dir).all("img")


def test_an_unevaluated_run_says_why_and_leads_with_reward(make_run: MakeRun) -> None:
    run_dir = make_run(evaluated=False)
    page = page_of(run_dir)
    assert (
        "The mean reward of sampled answers went from \N{MINUS SIGN}0.60 at step 1 to 1.40 at step 6."
        in page.text
    )
    assert "This run has no held-out comparison: there is no evaluation/before.jsonl." in page.text
    assert page.ids["pope"] == 0
    config = run_dir / "config.yaml"
    config.write_text(
        config.read_text().replace("{scenes: 200, questions: 100}", "{scenes: 0, questions: 0}")
    )
    assert "the settings ask for no held-out scenes" in page_of(run_dir).text
    config.write_text("data: {source: mine.jsonl}\n")
    assert "only the glyphs world has held-out items" in page_of(run_dir).text


def test_an_interrupted_run_says_so(make_run: MakeRun) -> None:
    run_dir = make_run(status="interrupted: SIGINT")
    (run_dir / "evaluation" / "after.jsonl").unlink()
    for step in (4, 20):
        (run_dir / "checkpoints" / f"step-{step}").mkdir(parents=True)
    text = page_of(run_dir).text
    assert "did not finish (interrupted: SIGINT). 6 learner steps are recorded" in text
    assert "the last checkpoint is checkpoints/step-20" in text
    assert "ended before it was evaluated a second time (there is no evaluation/after.jsonl)" in text


def test_a_killed_run_still_renders(make_run: MakeRun) -> None:
    """No summary, a torn last line, half a Parquet file: all of it is said, none of it is fatal."""
    run_dir = make_run(status=None, evaluated=False)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "rew')
    (run_dir / "comparisons" / "step-00007-rank-0.parquet").write_bytes(b"PAR1torn")
    text = page_of(run_dir).text
    assert "has no summary.json: it is still going on or was killed. 6 learner steps" in text
    assert "comparisons/step-00007-rank-0.parquet cannot be read" in text
    assert "No stage seconds were recorded." in text
    assert "the run wrote no summary" in text


def test_an_empty_run_renders(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: empty\n")
    text = page_of(tmp_path).text
    assert "0 learner steps were recorded." in text
    assert "No trained comparisons were recorded." in text


def test_no_run_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run lies here"):
        render(tmp_path)


def test_rolled_back_comparisons_are_not_shown(make_run: MakeRun, tools: dict[str, Any]) -> None:
    run_dir = make_run()
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "resumed", "attempt": 2, "step": 3}) + "\n")
    text = page_of(run_dir).text
    assert "Step 3 weight version" in text
    assert "Step 4 weight version" not in text


def test_invariants_and_alarms_are_shown_with_their_evidence(make_run: MakeRun) -> None:
    run_dir = make_run()
    text = page_of(run_dir).text
    assert "This run was not audited" in text
    assert "No alarm was raised." in text
    findings = [
        {"code": "I1", "name": "conservation", "status": "holds", "counted": "27 groups", "evidence": []},
        {"code": "I2", "name": "once", "status": "violated", "counted": "", "evidence": ["<b>g1</b>", "g2"]},
    ]
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"audit": {"findings": findings}}))
    alarm = {"monitor": "reward_drop", "value": 0.75, "threshold": 0.5, "step": 5, "advice": "lower the rate"}
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "alarm", **alarm}) + "\n")
    text = page_of(run_dir).text
    assert "I1 conservation holds 27 groups I2 once violated <b>g1</b>; g2" in text
    assert "5 reward drop 0.75 0.5 lower the rate" in text
