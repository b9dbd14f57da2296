"""What must hold of the report's page in a browser: nothing in it runs or is fetched, and it can be read anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest

from pageferry.page import render
from support.chromium import Browser, browser
from support.history_rows import HOSTILE, row

pytestmark = pytest.mark.long  # and its browser is a large package

TITLE = "pageferry: job 4711"
LONG = "/" + "x" * 119
"""As long as a name of a backing gets, and nowhere to break it."""

CONTRAST = """(() => {
  const number = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = number(colour).map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (number(colour)[3] !== 0) return colour;
    }
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element), text = element instanceof SVGTextElement;
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || (element instanceof SVGElement && !text)) continue;
    const [a, b] = [light(text ? style.fill : style.color), light(ground(element))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), element.outerHTML.slice(0, 80)]);
  }
  return found;
})()"""
"""Of each element with text of its own: the ratio by which WCAG 2 measures contrast, and the element."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def chromium(running: Browser) -> Browser:
    """A browser that has nothing left to say of what it showed before."""
    running.show("about:blank")
    running.complaints()
    return running


class Server(ThreadingHTTPServer):
    """A web server that has nothing, and knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        cast(Server, self.server).asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def address(folder: Path, text: str) -> str:
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def hostile(server: Server) -> str:
    """Return what would run, and load from a server of ours, if any of it were markup."""
    at = server.address
    loads = f"<img src={at}/1><link rel=stylesheet href={at}/2><style>@import '{at}/3'</style>"
    loads += f"<iframe src={at}/4></iframe>"
    return f"<script>document.title='ran'</script><svg onload=\"document.title='ran'\">{loads}{HOSTILE}"


def page(words: str) -> str:
    rows = [row(20, words=words), row(18), row(17)]
    rows[0]["ledger"]["backings"][1]["what"] = LONG
    return render.page(rows, words)


def test_hostile_words_are_shown_and_neither_run_nor_fetched(chromium: Browser, tmp_path: Path, server: Server) -> None:
    words = hostile(server)
    chromium.show(address(tmp_path, page(words)))
    assert chromium.value("document.title") == TITLE
    assert chromium.value("document.querySelectorAll('script, img, link, iframe, [onload], [onerror]').length") == 0
    assert chromium.complaints() == [], "nothing was there that the policy had to stop"
    assert server.asked == []
    shown = chromium.value("document.querySelector('h1').textContent")
    assert "<script>document.title='ran'</script>" in shown
    assert r"\u202egnp.exe" in shown


def test_the_policy_stops_what_an_escape_that_was_forgotten_would_let_through(
    chromium: Browser, tmp_path: Path, server: Server
) -> None:
    text = page("")
    forgotten = text.replace("<main>", f"<main>{hostile(server)}")
    chromium.show(address(tmp_path, forgotten))
    assert chromium.value("document.title") == TITLE
    assert server.asked == []
    assert len([line for line in chromium.complaints() if "Content Security Policy" in line]) >= 4
    # The same without a policy does what it says, so that what was seen above is the policy's doing.
    open_to_all = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", forgotten)
    chromium.show(address(tmp_path, open_to_all))
    assert chromium.value("document.title") == "ran"
    assert {"/1", "/2", "/4"} <= set(server.asked)


@pytest.mark.parametrize("width", [320, 360, 768, 1600])
def test_it_is_no_wider_than_the_screen_it_is_read_on(chromium: Browser, tmp_path: Path, width: int) -> None:
    """Also with a name that has no place to break, and with every picture's text inside the page."""
    chromium.show(address(tmp_path, page("x" * 300)), width)
    assert chromium.value("innerWidth") == width
    assert chromium.value("document.documentElement.scrollWidth") == width
    texts = "[...document.querySelectorAll('svg text, .count, .on, td, th')].map(e => e.getBoundingClientRect().right)"
    assert max(chromium.value(texts)) <= width


def test_pictures_are_drawn_and_the_style_sheet_is_let_in(chromium: Browser, tmp_path: Path) -> None:
    chromium.show(address(tmp_path, page("")))
    assert chromium.complaints() == []
    assert chromium.value("getComputedStyle(document.querySelector('article')).borderTopWidth") == "1px"
    assert chromium.value("Math.round(document.querySelector('rect.n2').getBoundingClientRect().height)") > 0
    colours: list[str] = chromium.value(
        "[0, 1, 2, 3].map(n => getComputedStyle(document.querySelector(`rect.n${n}`)).fill)"
    )
    assert len(set(colours)) == 4


def test_light_and_dark_are_different_and_paper_is_always_white(chromium: Browser, tmp_path: Path) -> None:
    at = address(tmp_path, page(""))
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    pictures: dict[str, bytes] = {}
    grounds: dict[tuple[str, str], Any] = {}
    for media in ("screen", "print"):
        for theme in ("light", "dark"):
            chromium.show(at, theme=theme, media=media)
            grounds[media, theme] = chromium.value(ground)
            if media == "screen":
                pictures[theme] = chromium.picture()
    assert grounds["screen", "light"] != grounds["screen", "dark"]
    assert pictures["light"] != pictures["dark"]
    assert grounds["print", "light"] == grounds["print", "dark"] == "rgb(255, 255, 255)"


@pytest.mark.parametrize(("theme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
def test_all_text_has_contrast_enough_to_be_read(chromium: Browser, tmp_path: Path, theme: str, media: str) -> None:
    chromium.show(address(tmp_path, page("a word")), theme=theme, media=media)
    found: list[tuple[float, str]] = chromium.value(CONTRAST)
    assert len(found) > 100
    assert [(round(ratio, 2), element) for ratio, element in found if ratio < 4.5] == []


def test_it_prints_with_each_migration_on_a_page_of_its_own(chromium: Browser, tmp_path: Path) -> None:
    chromium.show(address(tmp_path, page("")))
    printed = chromium.printed()
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 3
