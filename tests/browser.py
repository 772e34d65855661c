"""Pages as a real browser shows them: headless Chromium, without a network.

In: HTML files. Out: for each its DOM, the figures that it draws, script errors, requests that it
made, and how far it is wider than its window. One start of the browser looks at all pages: a page
of our own holds each of them in frames of several widths, and measures them from outside. Requests
are taken from the browser's own log of its network; those that no page asked for are the browser's.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHONE, DESKTOP = 360, 1200
NO_CHROMIUM = "chromium is not installed"
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --disable-default-apps "
    "--disable-background-networking --disable-component-update --disable-extensions "
    "--hide-scrollbars"
).split()
_NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"
_CONSOLE = re.compile(r'CONSOLE[:(]\d+\)?\] "(.*?)", source: (\S*)', re.DOTALL)
_NOT_A_PAGE = "not an origin"
_MEASURE = """
<!doctype html><meta charset="utf-8"><body><pre id="seen"></pre><script>
const pages = PAGES, widths = WIDTHS;
const figure = svg => ({
  title: svg.closest('figure')?.querySelector('figcaption')?.textContent ?? null,
  label: svg.getAttribute('aria-label'),
  drawn: [...svg.querySelectorAll('rect, polyline, circle')].filter(mark => {
    const box = mark.getBoundingClientRect(); return box.width > 0 || box.height > 0; }).length,
});
const look = frame => {
  const own = frame.contentDocument, root = own.documentElement;
  return {
    beyond: Math.max(root.scrollWidth, own.body.scrollWidth) - root.clientWidth,
    dom: root.outerHTML,
    figures: [...own.querySelectorAll('svg')].map(figure),
    resources: frame.contentWindow.performance.getEntriesByType('resource').map(e => e.name),
  };
};
const loaded = pages.flatMap(page => widths.map(width => new Promise(done => {
  const frame = document.createElement('iframe');
  frame.width = width; frame.height = 800; frame.style.border = 0; frame.src = page;
  frame.onload = () => done([page, width, look(frame)]);
  document.body.append(frame);
})));
Promise.all(loaded).then(all => {
  document.getElementById('seen').textContent = JSON.stringify(all);
});
</script>
"""


@dataclass(frozen=True)
class Figure:
    """A drawing: its caption, its name for screen readers, and marks that can be seen."""

    title: str | None
    label: str | None
    drawn: int


@dataclass(frozen=True)
class Seen:
    """A page as it was shown.

    ``beyond``: pixels that it is wider than its window, by the window's width.
    """

    dom: str
    figures: tuple[Figure, ...]
    errors: frozenset[str]
    requests: frozenset[str]
    beyond: dict[int, int]


def can_browse() -> bool:
    """Whether Chromium is there."""
    return shutil.which("chromium") is not None


def look(
    pages: Sequence[Path], folder: Path, widths: Sequence[int] = (PHONE, DESKTOP)
) -> dict[Path, Seen]:
    """Show pages at several widths.

    Args:
        pages: HTML files.
        folder: an empty one, for the browser's own files.
        widths: of the window, in pixels.
    """
    uris = [page.resolve().as_uri() for page in pages]
    around = folder / "around.html"
    around.write_text(
        _MEASURE.replace("PAGES", json.dumps(uris)).replace("WIDTHS", json.dumps(list(widths)))
    )
    log = folder / "network.json"
    further = ("--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom")
    done = _chromium(folder, *further, f"--log-net-log={log}", around.as_uri())
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], f"the browser showed nothing: {done.stderr[-2000:]}"
    shown = json.loads(html.unescape(found[1]))
    outside = _outside(json.loads(log.read_text()))
    return {
        page: _seen(uri, [one for one in shown if one[0] == uri], done.stderr, outside)
        for page, uri in zip(pages, uris, strict=True)
    }


def print_page(page: Path, pdf: Path, folder: Path) -> bytes:
    """A page as it is printed: the bytes of a PDF."""
    _chromium(folder, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", page.resolve().as_uri())
    return pdf.read_bytes()


def _chromium(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    profile = f"--user-data-dir={folder / 'profile'}"
    command = ["chromium", *_FLAGS, _NO_NETWORK, profile, "--enable-logging=stderr", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def _seen(uri: str, shown: list[Any], console: str, outside: frozenset[str]) -> Seen:
    first = shown[0][2]
    own = {url for _, _, one in shown for url in one["resources"]}
    return Seen(
        dom=first["dom"],
        figures=tuple(Figure(**figure) for figure in first["figures"]),
        errors=frozenset(text for text, source in _CONSOLE.findall(console) if source == uri),
        requests=frozenset(own) | outside,
        beyond={width: one["beyond"] for _, width, one in shown},
    )


def _outside(log: Any) -> frozenset[str]:
    """URLs that any page asked for, its own files apart; the log does not say which page it was."""
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    told = [event.get("params", {}) for event in log["events"] if event["type"] == start]
    asked = [params for params in told if "url" in params]  # the event has a beginning and an end
    return frozenset(
        one["url"]
        for one in asked
        if one.get("initiator") != _NOT_A_PAGE and not one["url"].startswith("file:")
    )
