"""The reports in headless Chromium: on a desktop, on a phone and on paper.

Without a browser these tests are skipped; with GUIDEDCD_BROWSER=required they fail.
"""

from __future__ import annotations

import io

import browser
import numpy as np
import pytest
import tiny_run
from evaluated_runs import a_run, evaluation
from PIL import Image

from guidedcd.evaluation.report.page import write_report
from guidedcd.evaluation.report.side_by_side import write_comparison
from guidedcd.files import write_json

LONG = "a_very_long_name_without_a_single_space_in_it_" * 3


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _needs_a_browser():
    if browser.CHROMIUM is None:
        assert not browser.IS_REQUIRED, f"none of {', '.join(browser.NAMES)} is installed"
        pytest.skip("no Chromium is installed")


@pytest.fixture(params=["report", "comparison"])
def page(tmp_path, request):
    """A page with everything, and with names that have no place to break."""
    if request.param == "comparison":
        folders = [a_run(tmp_path / name, name) for name in ("first", "second", LONG)]
        return write_comparison(folders, out=tmp_path / "page.html")
    run = {
        "name": LONG,
        "profile": "shapes",
        "teacher": {"shapes": {}},
        "rewards": {"hps": {"weight": 1.0}},
        "command": f"guidedcd {LONG}",
    }
    write_json(tmp_path / "run.json", run)
    tiny_run.log(tmp_path)
    write_json(tmp_path / "evaluation.json", evaluation(tmp_path) | {"machine": LONG})
    return write_report(tmp_path)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window(page, width):
    """On a phone and on a desktop nothing reaches beyond the edge, no text is tiny, and nothing is requested."""
    measures = browser.measured(page, width)

    assert measures["scrolls"] <= measures["width"] <= width
    assert measures["wide"] == []
    assert measures["scrolled"] == 0 or width > 600  # a wide table scrolls by itself, but not on a phone
    assert measures["smallest"] >= 11
    assert measures["requests"] == []
    assert measures["player"] == (page.name == "report.html")


def test_the_page_has_a_picture_and_a_print(page):
    """The screenshot is not blank, and the PDF has pages."""
    pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot(page, width=900, height=700))).convert("L"))
    pdf = browser.printed(page)

    assert pixels.std() > 5
    assert pdf.startswith(b"%PDF") and 1 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page>") <= 20
