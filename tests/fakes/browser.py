"""Headless Chromium, where it is installed: what a page looks like to it, by its command line alone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
IS_REQUIRED = os.environ.get("GUIDEDCD_BROWSER") == "required"
"""Whether a missing browser is an error, as in continuous integration."""
SECONDS = 120

MEASURE = """
const frame = document.querySelector("iframe");
const measure = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll("body *")].filter((one) => !one.closest("pre, .scroll"));
  const wide = boxes.filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1);
  const texts = [...page.querySelectorAll("p, td, th, li, figcaption, small")].filter((one) => one.textContent.trim());
  document.body.textContent = JSON.stringify({
    width: root.clientWidth,
    scrolls: root.scrollWidth,
    wide: wide.slice(0, 5).map((one) => one.outerHTML.slice(0, 200)),
    scrolled: [...page.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth + 1).length,
    smallest: Math.min(...texts.map((one) => parseFloat(frame.contentWindow.getComputedStyle(one).fontSize))),
    player: page.querySelector(".player") !== null && !page.querySelector(".player").hidden,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name)
      .filter((name) => !name.startsWith("data:")),
  });
};
frame.addEventListener("load", () => setTimeout(measure, 200));
frame.srcdoc = PAGE;
"""


def measured(page: Path, width: int) -> dict[str, Any]:
    """What a window of `width` CSS pixels shows: widths, elements beyond the edge, the smallest text, requests.

    The page is in a frame, because a window has a smallest width.
    """
    content = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/").replace("<!--", "<\\!--")
    around = page.with_name(f"{page.stem}-in-a-frame.html")
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0"></iframe>'
    around.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body>{frame}<script>{MEASURE.replace("PAGE", content)}</script></body>',
        encoding="utf-8",
    )
    shown = _chromium("--virtual-time-budget=5000", "--dump-dom", around.as_uri())
    match = re.search(r"<body>(\{.*\})</body>", shown, re.DOTALL)
    assert match, shown[-1000:]
    measurements: dict[str, Any] = json.loads(html.unescape(match[1]))
    return measurements


def printed(page: Path) -> bytes:
    """The page as a PDF."""
    target = page.with_suffix(".pdf")
    _chromium("--no-pdf-header-footer", f"--print-to-pdf={target}", page.as_uri())
    return target.read_bytes()


def screenshot(page: Path, *, width: int, height: int) -> bytes:
    """The beginning of the page as a PNG."""
    target = page.with_suffix(".png")
    _chromium(f"--screenshot={target}", f"--window-size={width},{height}", "--hide-scrollbars", page.as_uri())
    return target.read_bytes()


def _chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
