"""`guidedcd evaluate --suite`: tables of a benchmark, and what is wrong with some of them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import attrs
import pytest

from guidedcd.cli.errors import explain
from guidedcd.cli.evaluate_suite import SuiteFlags, evaluate_suite
from guidedcd.config.kinds import Chosen
from guidedcd.errors import GuidedCDError, on_command_line
from guidedcd.plugins.registry import Registry, load_plugins

GOLDEN = Path(__file__).parents[1] / "goldens" / "vbench"
ROWS = json.loads((GOLDEN / "published_rows.json").read_text())["rows"]
COMPLETE = {name: value / 100 for name, value in ROWS[2]["dimensions"].items()}
"""The dimensions of VideoCrafter2 in Table 11."""


@attrs.define
class Done:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def registry() -> Registry:
    """The installed plugins."""
    return load_plugins()


@pytest.fixture
def table(registry, capsys, tmp_path):
    """Evaluate tables of these contents as `evaluate --suite vbench --table` does, by default with --json."""

    def table(*contents: object, **flags: bool) -> Done:
        paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        chosen = Chosen("vbench", registry.get("suite", "vbench").config())
        flags = SuiteFlags(**{"json": True, **flags})
        with on_command_line():
            try:
                status = evaluate_suite(
                    [chosen], registry, flags, [*map(str, paths)], None, (), device=None, options={}
                )
            except GuidedCDError as error:
                status = explain(error, ["evaluate"], registry)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return table


@pytest.mark.parametrize("row", ROWS, ids=[f"table {row['table']} {row['id']}" for row in ROWS])
def test_published_rows_have_the_official_scores(table, row):
    """The scores of each published row are those of the official script, and those printed but for Kling's."""
    done = table({name: value / 100 for name, value in row["dimensions"].items()})

    scores = {name: 100 * value for name, value in json.loads(done.out)["scores"].items()}
    assert done.status == 0
    for name, expected in row["recomputed"].items():
        assert scores[name] == pytest.approx(expected, abs=6e-5)
        is_misprint = row["id"] == "kling" and name != "semantic"
        assert (abs(scores[name] - row["printed"][name]) > 0.014) == is_misprint


def test_names_with_spaces_and_official_lists_are_read(table):
    """Names with spaces, and values at the begin of the official lists, give the same scores."""
    official = {name.replace("_", " "): [value, [{"video_results": value}] * 500] for name, value in COMPLETE.items()}

    one, other = table(COMPLETE), table(official)

    assert json.loads(one.out)["scores"] == json.loads(other.out)["scores"]
    assert json.loads(other.out)["incomplete"] == {}


@pytest.mark.parametrize("name", COMPLETE)
def test_a_missing_dimension_is_named_and_not_zero(table, name):
    """Without one dimension, the scores that need it are absent, the others stay, and the exit code is 1."""
    whole = json.loads(table(COMPLETE).out)["scores"]
    done = table({other: value for other, value in COMPLETE.items() if other != name})

    content = json.loads(done.out)
    assert done.status == 1 and content["missing"] == [name] and content["dimensions"][name] is None
    assert content["scores"]["total"] is None
    for group in ("quality", "semantic"):
        absent = name in content["absent_scores"].get(group, [])
        assert content["scores"][group] == (None if absent else whole[group])
    assert [content["scores"]["quality"], content["scores"]["semantic"]].count(None) == 1
    assert f"missing  {name}" in table({k: v for k, v in COMPLETE.items() if k != name}, json=False).out


MISNAMED = {
    "subject_consistancy": "subject_consistency",
    "Dynamic_Degree": "dynamic_degree",
    "dynamicdegree": "dynamic_degree",
    "object-class": "object_class",
}


@pytest.mark.parametrize(("name", "right"), MISNAMED.items(), ids=MISNAMED)
def test_a_misnamed_dimension_is_named(table, name, right):
    """A name that is no dimension is an error that suggests one and names what is missing; no score counts it."""
    content = dict(COMPLETE)
    content[name] = content.pop(right)

    done = table(content)

    assert done.status == 2 and done.err.count("\n") == 1
    assert f"'{name}' in" in done.err and f"Did you mean '{right}'?" in done.err and f"Missing: {right}." in done.err
    assert json.loads(done.out)["scores"]["total"] is None and json.loads(done.out)["unknown"][0]["name"] == name


WRONG = {
    "percent": ({n: 100 * v for n, v in COMPLETE.items()}, "0.json: the values are percent (subject_consistency is "),
    "one percentage": (COMPLETE | {"imaging_quality": 67.22}, "imaging_quality is 67.22, outside of its range of 0 to"),
    "above": (COMPLETE | {"motion_smoothness": 120.0}, "motion_smoothness is 120, outside of its range of 0 to 1."),
    "below": (COMPLETE | {"scene": -0.01}, "scene is -0.01, outside of its range of 0 to 1."),
    "not a number": (COMPLETE | {"color": float("nan")}, "0.json: color is NaN: no video was scored."),
    "official nan": (COMPLETE | {"color": [float("nan"), []]}, "0.json: color is NaN: no video was scored."),
    "infinite": (COMPLETE | {"color": float("inf")}, "0.json: color is infinite"),
    "text": (COMPLETE | {"color": "0.9"}, "0.json: color is '0.9' and no number."),
    "null": (COMPLETE | {"color": None}, "0.json: color is None and no number."),
    "true": (COMPLETE | {"color": True}, "0.json: color is True and no number."),
    "empty list": (COMPLETE | {"color": []}, "0.json: color is None and no number."),
    "twice": (COMPLETE | {"human action": 0.9}, "has 'human_action' and 'human action', which are the same"),
    "a list": ([1, 2], "0.json contains no object of dimensions."),
    "no JSON": ("{", "0.json is damaged and cannot be read as JSON"),
    "empty": ({}, "contains no value of a dimension of VBench."),
    "version 2": ({"Human_Anatomy": 0.9, "Thermotics": 0.5}, "It is a dimension of VBench-2.0."),
    "image to video": (COMPLETE | {"i2v_subject": 0.9}, "'i2v_subject' in "),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_tables_are_one_sentence(table, content, message):
    """Each wrong table is one sentence, and exit code 2."""
    done = table(content)

    assert done.status == 2 and message in done.err and done.err.count("\n") == 1
    assert "Traceback" not in done.err


def test_percentages_give_the_scores_of_fractions(table):
    """With --percent, percentages give the same scores as fractions."""
    fractions = json.loads(table(COMPLETE).out)
    percent = json.loads(table({n: 100 * v for n, v in COMPLETE.items()}, percent=True).out)

    assert percent["scores"] == pytest.approx(fractions["scores"], abs=1e-12)


def test_a_later_file_overwrites(table, command, tmp_path):
    """Of two files, folders or members of a zip archive, the later one has the value of a dimension."""
    older, newer = COMPLETE | {"color": 0.1}, {"color": 0.9}
    assert json.loads(table(older, newer).out)["dimensions"]["color"] == 0.9
    assert json.loads(table(newer, older).out)["dimensions"]["color"] == 0.1

    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "results_2026-01-01_eval_results.json").write_text(json.dumps(older))
    (folder / "results_2026-01-02_eval_results.json").write_text(json.dumps(newer))
    (folder / "results_2026-01-02_full_info.json").write_text("[]")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"mine/{file.name}")
        archive.writestr("__MACOSX/._x.json", "\x00")
    for place in (folder, tmp_path / "all.zip"):
        done = command("evaluate", "--suite", "vbench", "--table", str(place), "--json")
        content = json.loads(done.out)
        assert done.status == 0 and content["dimensions"]["color"] == 0.9 and len(content["sources"]) == 2


def test_a_file_of_one_dimension_names_the_missing_ones(command):
    """A file of the official program with one dimension has its value, and names the fifteen that are missing."""
    done = command("evaluate", "--suite", "vbench", "--table", str(GOLDEN / "example_eval_results.json"))

    assert done.status == 1 and "1 of 16 dimensions" in done.out
    assert done.out.count("missing  ") == 15 and "72.67" in done.out


def test_an_incomplete_run_is_named(table):
    """A dimension of which the official program scored too few videos keeps its value, with a remark."""
    content = COMPLETE | {"subject_consistency": [0.9, [{"video_results": 0.9}] * 350]}

    done = table(content)

    assert done.status == 0
    assert json.loads(done.out)["incomplete"] == {"subject_consistency": {"videos": 350, "of": 360}}
    assert "subject_consistency: 350 of 360 videos were scored" in table(content, json=False).out


def test_the_terminal_shows_published_rows_beside_the_scores(table):
    """The terminal has the paper's columns, published rows with marked misprints, and scores with twelve digits."""
    done = table(COMPLETE, json=False)

    heads = [line.split() for line in done.out.splitlines() if line.startswith("percent ")]
    assert heads[0][1:4] == ["Total", "Quality", "Subject"] and heads[1][1:3] == ["Semantic", "Object"]
    assert "0.804413519731" in done.out and "46.94*" in done.out and "* Table 11, Kling: " in done.out
    published = {row["table"] + row["id"]: row for row in json.loads(table(COMPLETE).out)["published"]}
    assert published["Table 11kling"]["computed"]["quality"] == pytest.approx(83.39, abs=0.014)
    assert published["Table 2vcm_ov"]["corrected"] == {"total": 79.28}


def test_a_stated_score_that_differs_is_named(table):
    """A total in the file is computed again; a wrong one is named."""
    fine, wrong = table(COMPLETE | {"total_score": 0.8044}), table(COMPLETE | {"total score": 0.8513}, json=False)

    assert json.loads(fine.out)["stated"]["total"]["agrees"] is True
    assert "differs  total is stated as 0.8513, but the dimensions give 0.804414" in wrong.out


LINES = {
    "no results": (["--suite", "vbench"], "--suite vbench needs"),
    "no suite": (["--table", "x.json"], "--table belongs to a benchmark: name it, such as --suite "),
    "nothing": ([], "nothing to evaluate: give a run's folder, or --suite NAME with --table FILE."),
    "unknown": (["--suite", "vbensh", "--table", "x"], "no suite named 'vbensh'. Did you mean 'vbench'?"),
    "missing file": (["--suite", "vbench", "--table", "x.json"], "there is no file or folder of results x.json."),
    "not a zip": (["--suite", "vbench", "--table", "y.zip"], "y.zip cannot be read as a zip archive"),
    "empty folder": (["--suite", "vbench", "--table", "folder"], "the folder folder contains no results of VBench"),
    "a run too": (["run", "--suite", "vbench", "--table", "x"], "--table needs no run, but run is given."),
}


@pytest.mark.parametrize(("words", "message"), LINES.values(), ids=LINES)
def test_wrong_command_lines_are_one_sentence(command, tmp_path, words, message):
    """Each wrong command line is one sentence, and exit code 2."""
    (tmp_path / "y.zip").write_text("no archive")
    (tmp_path / "folder").mkdir()

    done = command("evaluate", *words)

    assert done.status == 2 and message in done.err and done.err.count("\n") == 1
