"""What the page must never do: run what others wrote, keep what it may not, or tell a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

from fastapi import FastAPI
from starlette.responses import HTMLResponse

from serving import page
from serving.wire import Refusal

HOSTILE = (
    "<script>window.owned=1</script><img src=x onerror=window.owned=2>"
    "<svg onload=window.owned=3></svg><a href='javascript:window.owned=4'>x</a>"
)

Serve = Callable[..., Any]


def test_what_a_model_or_the_server_says_is_text(serve: Serve, tab: Any) -> None:
    site = serve(canary=True)
    site.stable.says = site.canary.says = HOSTILE
    site.backend.told = [
        {
            "act": HOSTILE,
            "at": HOSTILE,
            "by": HOSTILE,
            "version": HOSTILE,
            "why": HOSTILE,
            "previous": HOSTILE,
        }
    ]
    tab.open(site.url)
    tab.ask("#chat", HOSTILE)
    tab.answered()
    assert tab.text(".answer .text") == HOSTILE
    tab.click(".fix")
    assert tab.run("document.querySelector('.correction textarea').value") == HOSTILE
    tab.run("location.hash = 'compare'")
    tab.ask("#compare", HOSTILE)
    tab.wait("document.querySelector('.vote:enabled')")
    tab.run("location.hash = 'history'")
    tab.wait("document.querySelector('.decision')")
    assert tab.text(".decision .reason") == HOSTILE
    site.stable.refuse = site.canary.refuse = Refusal(status=400, code="no", message=HOSTILE)
    tab.run("location.hash = 'chat'")
    tab.ask("#chat", "again")
    tab.wait("document.querySelector('#chat .problem')")
    assert HOSTILE in tab.text("#chat .problem")
    assert tab.run("window.owned") is None
    assert (
        tab.run("document.querySelectorAll('main script, main img[src=x], main svg[onload], main a').length")
        == 0
    )


def test_the_policy_stops_inline_scripts_and_handlers(listen: Callable[[Any], str], tab: Any) -> None:
    app = FastAPI()

    @app.get("/")
    async def slip() -> HTMLResponse:
        return HTMLResponse(
            f"<body style='color: red'>{HOSTILE}<style>b{{}}</style></body>", headers=page.HEADERS
        )

    tab.send("Page.navigate", url=listen(app))
    tab.wait("document.readyState === 'complete' && document.querySelector('svg')")
    assert tab.run("window.owned") is None
    assert tab.run("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    assert sum("Content Security Policy" in line for line in tab.console) >= 4


def test_the_policy_stops_a_slip_of_the_page_itself(serve: Serve, tab: Any) -> None:
    tab.open(serve().url)
    refused = (
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (e) { return e.name } })()"
    )
    assert tab.run(refused) == "TypeError"  # trusted types
    elsewhere = "fetch('https://example.invalid/').then(() => 'sent', () => 'stopped')"
    assert tab.run(elsewhere) == "stopped"
    assert any("connect-src 'self'" in line for line in tab.console)


def test_nothing_may_be_kept_before_somebody_says_so(serve: Serve, tab: Any) -> None:
    site = serve(canary=True)
    site.kept.refuse = Refusal(status=404, code="answer_not_found", message="no such answer")
    tab.open(site.url)
    tab.ask("#chat", "what is here?")
    tab.answered()
    tab.click(".up")
    tab.wait("document.querySelector('.said').textContent.includes('May be kept')")
    tab.click("#chat .consent input")
    tab.ask("#chat", "what is here?")
    tab.wait("document.querySelectorAll('#chat-log footer:not([hidden])').length === 2")
    tab.run("location.hash = 'compare'")
    tab.ask("#compare", "what is here?")
    tab.click("[data-vote=left]")
    tab.wait(
        "document.querySelectorAll('.revealed:not([hidden])').length === 2"
    )  # a second vote would not help
    assert "Not kept." in tab.text(".outcome")
    assert site.kept.consents == [False, True, True, True]


def test_a_key_is_asked_for_and_kept_for_the_tab_only(serve: Serve, tab: Any) -> None:
    site = serve(key="sesame")
    tab.open(site.url)
    assert "Request id" in tab.text("#notice")
    for key, said, opens in (
        ("wrong", "An API key is needed.", "#notice button"),
        ("sesame", "The API key is not known here.", "#key"),
    ):
        tab.wait(f"document.querySelector('#notice').textContent.includes('{said}')")
        tab.click(opens)
        tab.wait("document.querySelector('#key-dialog').open")
        tab.type("#key-value", key)
        tab.key("Enter", 13, "\r")
        tab.wait(f"sessionStorage.getItem('plumbline.key') === '{key}'")
    tab.wait("document.querySelector('#model').value === 'glyphs'")
    assert tab.text("#notice") == ""
    tab.ask("#chat", "what is here?")
    tab.answered()
    assert tab.run("Object.keys(localStorage).length + document.cookie.length") == 0
    everything = "document.documentElement.outerHTML + document.querySelector('#key-value').value"
    assert "sesame" not in tab.run(everything)


def test_the_page_needs_no_key_and_its_files_carry_the_policy(serve: Serve) -> None:
    site = serve(key="right")
    for path in ("", "page/page.js", "page/page.css", "page/icon.svg"):
        with urlopen(site.url + path) as answer:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_loads_only_what_it_brings(serve: Serve, tab: Any) -> None:
    site = serve()
    tab.open(site.url)
    loaded = tab.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded and all(address.startswith(site.url) for address in loaded)
    assert tab.console == []
