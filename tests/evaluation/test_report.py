"""The report: one valid page that loads nothing from elsewhere and holds every prompt and figure."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny_run
from evaluated_runs import HOSTILE, evaluation

from guidedcd.errors import GuidedCDError
from guidedcd.evaluation.report.charts import line_chart, ticks
from guidedcd.evaluation.report.page import write_report
from guidedcd.training.log import read_log

EMPTY = {"meta", "link", "img", "br", "hr", "input", "source", "line", "polyline", "circle", "path"}


class Page(HTMLParser):
    """Reads a page, and fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes), f"attribute given twice in {tag}"
        self.tags.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def folder(tmp_path):
    """A run folder with everything that a report can show."""
    run = {"name": "run", "guidedcd": "0.0.9", "seed": 3, "teacher": {"shapes": {}}, "data": [{"shapes": {}}]}
    run |= {"energy": {"pta": {"relative": 0.3}}, "rewards": {"hps": {"weight": 1.0}}, "routes": {}}
    run |= {"command": ["guidedcd", "train", "--energy", "pta", "--name", "two words"]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    tiny_run.log(tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation(tmp_path)))
    return tmp_path


def read(folder: Path) -> tuple[str, Page]:
    """The report's source, and the page."""
    text = write_report(folder).read_text()
    return text, Page(text)


def test_the_page_is_valid_and_complete(folder):
    """Tags nest, names are unique, language and title are there, and every section."""
    text, page = read(folder)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]

    assert text.startswith("<!DOCTYPE html>")
    assert page.of("html") == [{"lang": "en"}]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for a in page.of("section")} <= set(ids)
    assert "energies pta (30 % of the prediction)" in page.text
    for title in ("Videos", "Evaluation", "Training", "Model card of the teacher", "Configuration", "Environment"):
        assert title in page.text


def test_the_page_loads_no_other_file(folder):
    """No address of another file or server: every source is inside."""
    text, page = read(folder)

    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    for _, attributes in page.tags:
        for name in ("src", "href", "poster", "data", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_every_prompt_and_figure_is_there(folder):
    """Prompts, means, intervals, differences, what was tried and the model card's figures are in the text."""
    _, page = read(folder)

    for prompt in (HOSTILE, "a blue star moving up", "a green ring"):
        assert prompt in page.text
    for figure in ("0.712", "0.601 to 0.834", "0.534", "+0.178", "+0.033 to +0.295", "0.400", "omega 3.5", "0.876"):
        assert figure in page.text
    assert "better (+0.178, 95 % interval +0.033 to +0.295)" in page.text
    assert "abacus with 7 beads" in page.text


def test_what_was_typed_is_shown_as_text(folder):
    """Prompts cannot put tags on the page, and the command is quoted so that it can be pasted."""
    text, page = read(folder)

    assert "<script>alert" not in text
    assert len(page.of("script")) == 1
    assert "guidedcd train --energy pta --name 'two words'" in page.text


def test_without_a_command_there_is_an_equivalent(folder):
    """The command of a run from Python reads its run.json."""
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({k: v for k, v in run.items() if k != "command"}))
    _, page = read(folder)

    assert f"guidedcd train --config {folder}/run.json --new" in page.text


def test_videos_are_inside_and_named(folder):
    """Every way's video is an mp4 in the page, can be played without the script, and has a label."""
    _, page = read(folder)
    videos = page.of("video")

    assert [v["aria-label"] for v in videos] == [
        f"{label}: {HOSTILE}" for label in ("teacher, 50 steps", "teacher, 4 steps", "student, 4 steps")
    ]
    for video in videos:
        assert "controls" in video
        assert base64.b64decode(video["src"].partition("base64,")[2])[4:8] == b"ftyp"
    (player,) = [a for a in page.of("div") if a.get("class") == "player"]
    assert (player["data-frames"], player["data-fps"]) == ("3", "8")
    assert "hidden" in player


def test_charts_contain_first_and_last_values(folder):
    """Loss, each reward, gradient norm and routed shares have a chart whose text contains its first and last value."""
    _, page = read(folder)
    labels = [a["aria-label"] for a in page.of("svg")]

    assert any(label.startswith("Loss: total: 0.8 at step 1, -0.15 at step 20") for label in labels)
    assert any(label.startswith("Reward hps") and "0.21 at step 1, 0.4 at step 20" in label for label in labels)
    assert any(label.startswith("Reward clip") and "0.3 at step 1, 0.3 at step 19" in label for label in labels)
    assert any(label.startswith("Norm of the gradient") for label in labels)
    assert any(label.startswith("Energy's guided term relative to the prediction: 0.3 at") for label in labels)
    assert any(label.startswith("Share of samples") and "hps: 0.75" in label for label in labels)


def test_a_run_that_was_not_evaluated_has_a_report(folder):
    """Without evaluation and log the page states so, and the command to run."""
    (folder / "evaluation.json").unlink()
    (folder / "log.jsonl").unlink()
    _, page = read(folder)

    assert "has not been evaluated yet" in page.text
    assert f"guidedcd evaluate {folder}" in page.text
    assert "no training log" in page.text
    assert page.of("video") == []


def test_a_missing_video_is_left_out(folder):
    """A video that was deleted leaves its place, not the report."""
    (folder / "videos" / "teacher-4.mp4").unlink()

    assert len(read(folder)[1].of("video")) == 2


def test_another_folder_is_refused(tmp_path):
    """A folder without run.json is no run."""
    with pytest.raises(GuidedCDError, match=r"no run\.json"):
        write_report(tmp_path)


def test_a_half_written_log_is_read(tmp_path):
    """The last line of a killed process, and numbers that are none, are left out."""
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": NaN, "lr": 1}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')

    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "lr": 1}, {"step": 2, "loss": 0.5}]


def test_ticks_are_round_and_cover():
    """Ticks are multiples of 1, 2 or 5, and enclose the values, also of a constant."""
    assert ticks(0.13, 0.87, 4) == pytest.approx([0.0, 0.5, 1.0])
    assert ticks(0, 100, 5, whole=True) == [0, 50, 100]
    low, *_, high = ticks(0.3, 0.3, 4)
    assert low < 0.3 < high


def test_ticks_have_different_labels():
    """The ticks of a curve that hardly changes have different labels."""
    chart = line_chart("x", {"a": [(1, 1.6), (2, 1.600001)]})

    assert chart is not None
    texts = [label.text for label in chart.labels if label.anchor == "end"]
    assert len(texts) == len(set(texts)) > 2


def test_a_curve_without_finite_points_has_no_chart():
    """A curve without finite points has no chart."""
    assert line_chart("x", {"a": [(1, float("nan"))]}) is None


def test_a_single_point_is_a_dot(folder):
    """A log of one step is drawn with a circle a curve, and without lines."""
    tiny_run.log(folder, steps=1)
    _, page = read(folder)

    assert len(page.of("circle")) > 2
    assert page.of("polyline") == []


@pytest.mark.parametrize("where", ["choice", "machine", "step", "package", "name", "title", "label"])
def test_no_value_is_taken_for_html(folder, where):
    """Every value of run.json, evaluation.json and the log is text on the page, also where a number is expected."""
    run, result = (json.loads((folder / name).read_text()) for name in ("run.json", "evaluation.json"))
    if where == "step":
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": HOSTILE, "seconds": 3}) + "\n")
    elif where == "choice":
        result["choice"]["prompts"] = HOSTILE
    elif where == "machine":
        result["machine"] = HOSTILE
    elif where == "package":
        run["guidedcd"] = HOSTILE
    elif where == "name":
        run["name"] = HOSTILE
    elif where == "title":
        result["metrics"]["all"]["title"] = HOSTILE
    else:
        result["videos"][0]["panes"][0]["label"] = HOSTILE
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "evaluation.json").write_text(json.dumps(result))
    text, page = read(folder)

    assert "<script>alert" not in text
    assert HOSTILE in page.text
