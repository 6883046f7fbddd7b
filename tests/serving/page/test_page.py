"""The page in a real browser, before a real gateway with stub replicas."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.wire import Refusal

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

Serve = Callable[..., Any]


def attach(tab: Any, view: str, file: Path) -> None:
    tab.attach(f"{view} input[type=file]", file)
    tab.wait(f"document.querySelector('{view} .thumbnail img')?.naturalWidth > 0")


def test_a_chat_streams_its_answer_and_names_its_version(serve: Serve, tab: Any) -> None:
    site = serve()
    site.stable.says = "a red square left of a blue circle"
    site.stable.delay_s = 0.15
    tab.open(site.url)
    tab.run(
        "window.seen = [];"
        "new MutationObserver(() => seen.push(document.querySelector('.answer .text').textContent))"
        ".observe(document.querySelector('#chat-log'), {subtree: true, childList: true, characterData: true})"
    )
    tab.ask("#chat", "what is here?")
    tab.answered()
    assert tab.text(".answer .text") == site.stable.says
    assert "v-ssssssssssss" in tab.text(".answer footer")
    partial = [text for text in tab.run("seen") if text and text != site.stable.says]
    assert len(set(partial)) >= 3
    assert all(site.stable.says.startswith(text) for text in partial)

    tab.ask("#chat", "and now?")
    tab.wait("document.querySelectorAll('#chat-log footer:not([hidden])').length === 2")
    assert [message["role"] for message in site.asked[-1]["messages"]] == ["user", "assistant", "user"]
    assert site.asked[-1]["messages"][1]["content"] == site.stable.says
    assert tab.console == []


def test_a_chosen_picture_arrives_as_a_data_url(serve: Serve, tab: Any, tmp_path: Path) -> None:
    site, file = serve(), tmp_path / "dot.png"
    file.write_bytes(PNG)
    tab.open(site.url)
    attach(tab, "#chat", file)
    tab.ask("#chat", "describe the image .")
    tab.answered()
    [message] = site.asked[-1]["messages"]
    image, text = message["content"]
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert text == {"type": "text", "text": "describe the image ."}


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_pictures_can_be_pasted_and_dropped_and_other_files_are_refused(
    serve: Serve, tab: Any, way: str
) -> None:
    site = serve()
    tab.open(site.url)
    event = (
        "new ClipboardEvent('paste', {clipboardData: given, bubbles: true, cancelable: true})"
        if way == "paste"
        else "new DragEvent('drop', {dataTransfer: given, bubbles: true, cancelable: true})"
    )
    give = (
        (
            "(type, name) => {{ const given = new DataTransfer();"
            f"given.items.add(new File([Uint8Array.from(atob('{base64.b64encode(PNG).decode()}'),"
            "c => c.charCodeAt(0))], name, {{type}}));"
            f"return document.querySelector('#chat textarea').dispatchEvent({event}) }}}}"
        )
        .replace("{{", "{")
        .replace("}}", "}")
    )
    assert tab.run(f"({give})('image/png', 'dot.png')") is False  # taken: the browser does nothing by itself
    tab.wait("document.querySelector('#chat .thumbnail img')?.naturalWidth === 1")
    tab.run(f"({give})('text/html', 'page.html')")
    tab.wait("!document.querySelector('#chat .refused').hidden")
    assert "page.html: not a PNG" in tab.text("#chat .refused")
    tab.click("#chat .send")
    tab.answered()
    [part] = site.asked[-1]["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/png;base64,")


def test_ratings_and_corrections_are_sent(serve: Serve, tab: Any) -> None:
    site = serve()
    tab.open(site.url)
    tab.ask("#chat", "what is here?")
    tab.answered()
    tab.click(".down")
    tab.wait("document.querySelector('.down').ariaPressed === 'true'")
    tab.click(".fix")
    tab.run("document.querySelector('.correction textarea').value = 'a green star'")
    tab.click(".correction .primary")
    tab.wait("!document.querySelector('.correction')")
    [rating, correction] = site.kept.rated
    [answer] = site.kept.answers
    assert rating == {"kind": "rating", "id": answer, "rating": -1}
    assert correction == {"kind": "correction", "id": answer, "correction": "a green star"}
    assert "Correction kept" in tab.text(".answer footer")


def test_feedback_that_is_not_kept_says_so(serve: Serve, tab: Any) -> None:
    tab.open(serve(feedback=False).url)
    tab.ask("#chat", "what is here?")
    tab.answered()
    tab.click(".up")
    tab.wait("document.querySelector('.said').textContent.includes('keeps no feedback')")
    assert tab.run("document.querySelector('.up').ariaPressed") == "false"


@pytest.mark.parametrize("vote", ["left", "right", "tie", "bad"])
def test_a_comparison_is_blind_until_the_vote(serve: Serve, tab: Any, vote: str) -> None:
    site = serve(canary=True)
    site.stable.says, site.canary.says = "from the stable one", "from the other one"
    site.stable.delay_s = 0.02
    tab.open(site.url + "#compare")
    tab.ask("#compare", "what is here?")
    tab.wait("document.querySelector('.vote:enabled')")
    shown = tab.run("document.documentElement.outerHTML")
    assert all(version not in shown for version in site.kept.answers.values())
    assert site.kept.rated == []
    sides = tab.run("[...document.querySelectorAll('.side .text')].map(e => e.textContent)")
    assert sorted(sides) == sorted([site.stable.says, site.canary.says])

    tab.click(f"[data-vote={vote}]")
    tab.wait("document.querySelectorAll('.revealed:not([hidden])').length === 2")
    by_version = {version: answer for answer, version in site.kept.answers.items()}
    truth = {"from the stable one": "v-ssssssssssss", "from the other one": "v-cccccccccccc"}
    left, right = (by_version[truth[text]] for text in sides)
    expected = {
        "left": [{"kind": "choice", "chosen": left, "rejected": right}],
        "right": [{"kind": "choice", "chosen": right, "rejected": left}],
        "tie": [{"kind": "rating", "id": one, "rating": 1} for one in (left, right)],
        "bad": [{"kind": "rating", "id": one, "rating": -1} for one in (left, right)],
    }
    assert site.kept.rated == expected[vote]
    revealed = tab.run("[...document.querySelectorAll('.revealed code')].map(e => e.textContent)")
    assert revealed == [truth[text] for text in sides]


def test_the_order_of_a_comparison_is_drawn_anew(serve: Serve, tab: Any) -> None:
    site = serve(canary=True)
    site.stable.says, site.canary.says = "stable", "canary"
    tab.open(site.url + "#compare")
    seen = set()
    for draw in ("0", "1"):
        tab.run(f"crypto.getRandomValues = (into) => into.fill({draw}) && into")
        tab.ask("#compare", "what is here?")
        tab.wait("document.querySelector('.vote:enabled')")
        seen.add(tab.text(".side .text").strip())
        tab.click("[data-vote=tie]")
        tab.click(".again")
    assert seen == {"stable", "canary"}


def test_a_vote_that_was_not_kept_reveals_nothing_and_can_be_given_again(serve: Serve, tab: Any) -> None:
    site = serve(canary=True)
    site.kept.refuse = Refusal(status=503, code="full", message="the disk is full", retry_after_s=5)
    tab.open(site.url + "#compare")
    tab.ask("#compare", "what is here?")
    tab.click("[data-vote=left]")
    tab.wait("document.querySelector('.outcome').textContent.includes('Vote again')")
    assert "The disk is full." in tab.text(".outcome")
    assert tab.run("document.querySelectorAll('.revealed:not([hidden])').length") == 0
    site.kept.refuse = None
    tab.click("[data-vote=left]")
    tab.wait("document.querySelectorAll('.revealed:not([hidden])').length === 2")
    assert len(site.kept.rated) == 1


def test_without_a_canary_a_comparison_says_what_it_needs(serve: Serve, tab: Any) -> None:
    tab.open(serve().url + "#compare")
    tab.wait("document.querySelector('#compare .empty')")
    assert "needs a canary beside the stable version" in tab.text("#compare")


def test_the_history_shows_routing_and_decisions(serve: Serve, tab: Any) -> None:
    site = serve(canary=True)
    check = {"name": "win rate", "value": 0.62, "low": 0.55, "high": 0.69, "at_least": 0.5, "at_most": None}
    none = {"name": "length", "value": None, "low": None, "high": None, "at_least": 0.8, "at_most": 1.25}
    common = {"at": "2026-03-04T05:06:07.008+00:00", "by": "ada@lab", "version": "v-0123456789ab"}
    entry = {"run": "glyphs", "recipe": "online_dpo", "weight_version": 60}
    site.backend.told = [
        {**common, "seq": 1, "act": "registered", "entry": entry},
        {
            **common,
            "seq": 2,
            "act": "refused",
            "why": "answers got too long",
            "previous": "v-ba9876543210",
            "decision": {"level": 0.95, "checks": [check | {"holds": True}, none | {"holds": False}]},
        },
    ]
    tab.open(site.url + "#history")
    tab.wait("document.querySelector('.decision')")
    routing = tab.text(".route")
    assert "v-ssssssssssss" in routing and "75% of clients" in routing
    assert "v-cccccccccccc" in routing and "25% of clients" in routing
    newest, oldest = tab.run("[...document.querySelectorAll('.decision')].map(e => e.innerText)")
    assert newest.startswith("Not promoted") and "v-ba9876543210 stays" in newest
    assert "by ada@lab" in newest and "answers got too long" in newest
    assert "run glyphs, online_dpo, weights 60" in oldest
    charts = tab.run("[...document.querySelectorAll('.interval')].map(e => e.getAttribute('aria-label'))")
    assert charts == ["value 0.62, interval 0.55 to 0.69, limit 0.5", "value \u2013, limit 0.8, limit 1.25"]
    assert "95% interval" in newest
    assert "≥ 0.5 holds" in newest and "0.8 to 1.25 not measured" in newest
    # Marks in order: 0.5 (limit) < 0.55 < 0.62 < 0.69, from 8 to 152 of 160.
    low, high, limit, value = tab.run(
        "(e => [e.querySelector('.range').x1, e.querySelector('.range').x2, e.querySelector('.limit').x1,"
        "e.querySelector('.value').cx].map(l => l.baseVal.value))(document.querySelector('.interval'))"
    )
    assert [limit, high] == pytest.approx([8, 152], abs=0.1)
    assert value == pytest.approx(8 + 144 * 0.12 / 0.19, abs=0.1)
    assert low == pytest.approx(8 + 144 * 0.05 / 0.19, abs=0.1)


def test_an_error_has_words_a_request_id_and_another_try(serve: Serve, tab: Any) -> None:
    site = serve()
    site.stable.refuse = Refusal(status=400, code="too_long", message="the prompt is too long; shorten it")
    tab.open(site.url)
    tab.ask("#chat", "what is here?")
    tab.wait("document.querySelector('#chat .problem')")
    said = tab.text("#chat .problem")
    assert "The request was refused. The prompt is too long; shorten it." in said
    assert "Request id" in said
    site.stable.refuse = None
    tab.click("#chat .problem button")
    tab.answered()
    assert len(site.asked[-1]["messages"]) == 1
    assert tab.run("document.querySelectorAll('#chat .problem').length") == 0


def test_an_answer_that_breaks_off_is_an_error_and_one_that_is_stopped_is_not(serve: Serve, tab: Any) -> None:
    site = serve()
    site.stable.break_after = 2
    tab.open(site.url)
    tab.ask("#chat", "what is here?")
    tab.wait("document.querySelector('#chat .problem')")
    assert "The answer is not whole." in tab.text("#chat .problem")
    site.stable.break_after, site.stable.delay_s, site.stable.says = None, 0.3, "word " * 3
    tab.click("#chat .problem button")
    tab.wait("document.querySelector('.answer .text')?.textContent.startsWith('word')")
    tab.click("#chat .stop")
    tab.answered()
    assert "stopped" in tab.text(".answer footer")
    assert tab.run("document.querySelectorAll('.rating').length") == 0


def test_it_fits_a_narrow_screen_and_every_control_has_a_name(serve: Serve, tab: Any) -> None:
    site = serve(canary=True)
    site.stable.says = "w" * 400
    tab.send("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    for view in ("chat", "compare", "history"):
        tab.open(f"{site.url}?{view}#{view}")
        if view != "history":
            tab.ask(f"#{view}", "q" * 300)
            tab.wait(
                "document.querySelector('.vote:enabled, #chat-log .answer:last-child footer:not([hidden])')"
            )
        assert tab.run("document.documentElement.scrollWidth") <= 360
        nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "link", "textbox", "combobox", "image"}
        nameless = [
            node
            for node in nodes
            if not node.get("ignored")
            and node.get("role", {}).get("value") in roles
            and not node["name"]["value"]
        ]
        assert [node["role"] for node in nameless] == [], nameless
