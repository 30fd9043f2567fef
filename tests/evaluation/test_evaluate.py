"""Evaluations: paired prompts and noise, settings chosen on separate prompts, comparisons, and refused options."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from guidedcd_shapes import ShapesTeacherConfig
from guidedcd_shapes.teacher import ShapesTeacher

from guidedcd.cli import main
from guidedcd.data import prompts
from guidedcd.data.clips import Prompt
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import arms, model_card, protocol, tables
from guidedcd.evaluation.compare import compare
from guidedcd.evaluation.evaluate import evaluate
from guidedcd.evaluation.finished import BatchResult, FinishedBatches
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.plugins.registry import load_plugins
from guidedcd.plugins.sources import source_digest


@pytest.fixture
def run(tmp_path, install):
    """A finished run with an energy; prompts 3, steps 2, and two guidance strengths to choose from."""
    install("tiny-components", tiny_run.PLUGIN)
    energies = {"calm": {"relative": 0.3}}
    return tiny_run.run_folder(tmp_path / "run", energies=energies, evaluate={"teacher_omega": (1.0, 4.0)})


def test_prompts_for_choosing_are_not_measured():
    """No text is in both; two thirds of the measured ones name a motion."""
    splits, choosing = prompts.evaluation(object(), 24)
    measured = {prompt.text for split in splits.values() for prompt in split}

    assert [len(split) for split in splits.values()] == [16, 8]
    assert len(measured) == 24
    assert len(choosing) == 8
    assert not measured & {prompt.text for prompt in choosing}


def test_the_proving_ground_has_prompts_with_scenes():
    """Its prompts tell the oracle what must be seen; those without motion words do not name the motion."""
    splits, choosing = prompts.evaluation(ShapesTeacher(ShapesTeacherConfig()), 30)

    assert all(prompt.scene for prompt in [*splits["motion"], *splits["no-motion"], *choosing])
    assert all("motion" in prompt.named for prompt in splits["motion"])
    assert not any("motion" in prompt.named for prompt in splits["no-motion"])


def test_a_teachers_own_prompts_replace_the_general_ones():
    """A method `prompts(split, count)` replaces the general prompts."""

    class Own:
        def prompts(self, split: str, count: int) -> list[Prompt]:
            return [Prompt(text=f"{split} {i}") for i in range(count)]

    splits, choosing = prompts.evaluation(Own(), 6)

    assert [p.text for p in splits["no-motion"]] == ["no-motion 0", "no-motion 1"]
    assert choosing[0].text == "validation 0"


def test_an_evaluation_pairs_student_and_teacher(run, capsys):
    """Same prompts and seeds for every row; differences are the means of the differences prompt by prompt."""
    evaluation = evaluate(run, seeds=(0, 1))

    assert json.loads((run / "evaluation.json").read_text()) == evaluation
    assert [row["name"] for row in evaluation["rows"]] == ["student", "teacher-2", "teacher-1"]
    assert [row["evaluations"] for row in evaluation["rows"]] == [2, 4, 2]
    assert evaluation["rows"][0]["scales"] == {"calm": 0.3}
    ours, few = (row["scores"]["motion"]["brightness"]["values"] for row in evaluation["rows"][:2])
    apart = tables.difference(evaluation, "teacher-2", "motion", "brightness")
    assert apart["mean"] == pytest.approx(np.mean(np.subtract(ours, few)), abs=1e-5)
    assert apart["low"] is None and apart["high"] is None  # two prompts are too few for an interval
    printed = capsys.readouterr().out
    assert "prompts without motion words" in printed
    assert evaluation["summary"] in printed.replace("\n", " ")


def test_settings_are_chosen_on_other_prompts(run):
    """Both solvers and all strengths are tried on validation prompts; the row is the best of them there."""
    evaluation = evaluate(run, quiet=True)
    tried = [one for one in evaluation["choice"]["tried"] if one["steps"] == 2]

    assert {(one["solver"], one["omega"]) for one in tried} == set(itertools.product(("ddim", "dpm++"), (1.0, 4.0)))
    (chosen,) = [one for one in tried if one["chosen"]]
    assert chosen["mean"] == max(one["mean"] for one in tried)
    row = evaluation["rows"][1]
    assert (row["solver"], row["omega"]) == (chosen["solver"], chosen["omega"])


def test_the_same_evaluation_gives_the_same_figures(run):
    """Nothing but the time depends on when, or in which batches, it ran."""
    one, two = (evaluate(run, quiet=True, batch=b, videos=0, teacher_omega=(1.0,)) for b in (3, 64))
    for first, second in zip(one["rows"], two["rows"], strict=True):
        for split, scores in first["scores"].items():
            for key, score in scores.items():
                values = [math.nan if v is None else v for v in score["values"]]
                others = [math.nan if v is None else v for v in second["scores"][split][key]["values"]]
                assert values == pytest.approx(others, abs=2e-3, nan_ok=True), key


def test_the_report_gets_videos_of_every_way(run):
    """Each prompt in the report has videos of slow teacher, few-step teacher and student, with its seed."""
    evaluation = evaluate(run, quiet=True, videos=2)

    assert [[pane["row"] for pane in entry["panes"]] for entry in evaluation["videos"]] == [
        ["teacher-3", "teacher-2", "student"]
    ] * 2
    for entry in evaluation["videos"]:
        for pane in entry["panes"]:
            about = json.loads((run / pane["file"]).with_suffix(".json").read_text())
            assert (about["prompt"], about["seed"]) == (entry["prompt"], entry["seed"])


def test_an_interrupted_evaluation_continues(run, tmp_path, monkeypatch, capsys):
    """Batches that were finished are not sampled again, and results and videos are those of an undisturbed one."""

    def contents(folder: Path) -> tuple[dict, dict[str, bytes]]:
        evaluation = json.loads((folder / "evaluation.json").read_text())
        for row in evaluation["rows"]:
            row.pop("seconds")
        evaluation.pop("summary")  # it states a time
        return evaluation, {file.name: file.read_bytes() for file in sorted((folder / "videos").iterdir())}

    calls: list[int] = []
    sample = StudentPipeline.__call__
    teacher = protocol.teacher_videos

    def counting(function: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == limit:
                raise KeyboardInterrupt
            return function(*args, **options)

        return wrapped

    other = shutil.copytree(run, tmp_path / "other")
    monkeypatch.setattr(StudentPipeline, "__call__", counting(sample))
    monkeypatch.setattr(protocol, "teacher_videos", counting(teacher))
    options: dict[str, Any] = {"prompts": ["a red ball", "a blue box"], "batch": 1}
    limit = 0
    evaluate(run, **options)
    assert len(calls) == 2 * 3 + 1  # a student and two teachers on two prompts, and a video of the slow teacher
    limit, calls = 6, []
    with pytest.raises(KeyboardInterrupt):
        evaluate(other, **options)
    assert not (other / "evaluation.json").exists()
    limit, calls = 0, []
    evaluate(other, **options)

    assert len(calls) == 2
    assert "finished batches" in capsys.readouterr().out
    assert contents(other) == contents(run)
    assert not list(other.glob(".evaluation/*"))


def test_a_damaged_batch_is_sampled_again(tmp_path):
    """A file that is no safetensors file is treated as missing."""
    batches = FinishedBatches(tmp_path, {})
    result = BatchResult(
        seconds=1.5, scores={"m": {"b/c": [0.5, math.nan], "a": [1.0]}}, videos={3: torch.ones(2, 3, 4, 4)}
    )
    batches.write({"prompts": ["a"]}, result)
    read = batches.read({"prompts": ["a"]})

    assert read is not None and (read.seconds, list(read.scores["m"])) == (1.5, ["b/c", "a"])
    assert torch.equal(read.videos[3], result.videos[3])
    assert batches.read({"prompts": ["b"]}) is None
    (file,) = batches.folder.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert batches.read({"prompts": ["a"]}) is None


def test_finished_batches_are_those_of_the_same_scenes(tmp_path):
    """A batch of prompts with another ground truth is scored again; a metric without scores is no error."""

    def size(videos: torch.Tensor, prompts: list[Prompt]) -> dict[str, list[float]]:
        return {"size": [float((prompt.scene or {})["size"]) for prompt in prompts]}

    def make(texts: list[str], seeds: list[int]) -> torch.Tensor:
        sampled.append(texts)
        return torch.zeros(len(texts), 2, 3, 4, 4)

    def measured(size: int) -> float:
        prompts = [Prompt(text="a ball", scene={"size": size})]
        return arms.measure(arm, prompts, [0], metrics, split=0, batch=1, finished=batches).values["size"][0][0]

    sampled: list[list[str]] = []
    arm = arms.Arm(name="a", label="a", steps=1, evaluations=1, omega=0.0, solver="ddim", make=make)
    metrics = [arms.Metric("size", size), arms.Metric("none", lambda videos, prompts: {})]
    batches = FinishedBatches(tmp_path, {})

    assert [measured(1), measured(1), measured(2)] == [1.0, 1.0, 2.0] and len(sampled) == 2


def test_the_source_of_a_metric_is_among_its_settings():
    """Kept batches depend on the source of every metric, also where its version stays."""
    metrics = arms.build_metrics({}, load_plugins(), 8.0)

    assert [metric.settings["source"] for metric in metrics] == [source_digest("guidedcd_metrics.flicker:x")] * 2
    assert metrics[0].settings["source"]


def test_own_prompts_are_one_split(run):
    """Own texts are measured unchanged; without other prompts for choosing, the first setting is used."""
    evaluation = evaluate(run, prompts=["a red ball", "a blue box"], quiet=True, videos=0)

    assert list(evaluation["splits"]) == ["prompts"]
    assert evaluation["choice"] == {"prompts": 0, "tried": []}
    assert evaluation["videos"] == []


def test_a_metric_that_applies_to_no_prompt_is_left_out():
    """A metric whose `applies` is false for every prompt is left out."""

    class Oracle:
        def applies(self, prompt: Prompt) -> bool:
            return prompt.scene is not None

    metric = arms.Metric("oracle", Oracle())

    assert not metric.applies([Prompt(text="a dog")])
    assert metric.applies([Prompt(text="a dog"), Prompt(text="a circle", scene={"shape": 0})])


def test_the_embedded_teacher_has_a_card(monkeypatch):
    """Its figures at most steps and best guidance become a row; scores that are not measured here are left out."""
    steps = {
        "full ddim 50 steps g 3.0": {"all": 0.8, "color": 0.9, "misfit": 0.1},
        "full ddim 4 steps g 3.0": {"all": 0.95},
    }
    steps |= {
        "full ddim 50 steps g 1.0": {"all": 0.5},
        "no-motion ddim 50 steps g 3.0": {"all": 0.7, "all-unseen": None},
    }
    models = "guidedcd_shapes.models"
    teacher = ShapesTeacher(ShapesTeacherConfig())
    monkeypatch.setattr(f"{models}.meta", lambda folder: {"stages": {"evaluation": {"steps": steps}}})
    (row,) = model_card.rows(teacher, {"all", "color"})

    assert (row["label"], row["evaluations"], row["omega"], row["source"]) == (
        "teacher, 50 steps, published, other prompts",
        100,
        2.0,
        "model card",
    )
    assert {k: v["mean"] for k, v in row["scores"]["motion"].items()} == {"all": 0.8, "color": 0.9}
    assert row["scores"]["no-motion"]["all"] == {"mean": 0.7, "low": None, "high": None, "n": None}
    assert model_card.rows(object(), {"all"}) == []


def test_repeated_seeds_are_refused(run):
    """The same seed twice would count the same video twice."""
    with pytest.raises(GuidedCDError, match="`seeds`"):
        evaluate(run, seeds=(1, 1))


def test_runs_are_compared_in_one_table(run, tmp_path, capsys, monkeypatch):
    """Another run with the same teacher: paired with the first, the teacher measured once, evaluations used again."""
    other = tiny_run.run_folder(tmp_path / "other", evaluate={"teacher_omega": (1.0, 4.0)}, name="cd-only")
    measured = []
    real = arms.measure
    monkeypatch.setattr(
        "guidedcd.evaluation.protocol.measure", lambda arm, *a, **k: measured.append(arm.name) or real(arm, *a, **k)
    )
    first, second = compare([run, other])

    assert measured.count("student") == 4
    assert measured.count("teacher-2") == 2 + 4
    assert first["splits"] == second["splits"]
    printed = capsys.readouterr().out
    assert "cd-only" in printed
    assert "paired difference from run" in printed

    measured.clear()
    compare([run, other])
    assert measured == []


@pytest.mark.slow
def test_runs_that_differ_in_prompts_are_not_paired(run, tmp_path):
    """Runs evaluated on other prompts are an error that states how to measure both alike."""
    other = tiny_run.run_folder(tmp_path / "other", evaluate={"prompts": 4}, name="other")
    with pytest.raises(GuidedCDError, match=r"different splits.*`prompts`"):
        compare([run, other])


def test_the_summary_states_significant_differences_only():
    """Better or worse only where the interval excludes zero, on enough prompts, and the direction is known."""

    def evaluation(low: float, high: float, better: str = "higher", n: int = 32) -> dict:
        row = {"label": "student, 4 steps", "evaluations": 4, "seconds": 0.1, "omega": 1.0, "solver": ""}
        score = {"motion": {"all": {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 32}}}
        rows = [{**row, "name": "student", "scores": score}]
        rows.append({**row, "name": "teacher-4", "label": "teacher, 4 steps", "evaluations": 8, "scores": score})
        apart = {"row": "student", "against": "teacher-4", "split": "motion", "score": "all"}
        return {
            "rows": rows,
            "against": "teacher-4",
            "splits": {"motion": {"title": "t", "prompts": ["p"]}},
            "metrics": {"all": {"title": "all right", "better": better}},
            "headline": "all",
            "differences": [{**apart, "mean": (low + high) / 2, "low": low, "high": high, "n": n}],
        }

    assert "better (+0.200, 95 % interval +0.100 to +0.300)" in tables.summary(evaluation(0.1, 0.3))
    assert "worse" in tables.summary(evaluation(-0.3, -0.1))
    assert "no significant difference" in tables.summary(evaluation(-0.1, 0.3))
    assert "worse" in tables.summary(evaluation(0.1, 0.3, "lower"))
    assert "no significant difference" in tables.summary(evaluation(0.1, 0.3, n=4))


def test_the_summary_has_the_further_headlines():
    """A score that a metric lists besides has a sentence wherever it is defined, without a verdict if undirected."""

    def scores(mean: float) -> dict:
        split = {"all": {"mean": mean, "low": None, "high": None, "n": 4}, "speed": {"mean": 1.0, "n": 4}}
        whole = {"mean": 1.25 + mean, "low": None, "high": None, "n": 3}
        return {
            "motion": split | {"intact-speed": whole},
            "no-motion": {**split, "intact-speed": {"mean": None, "n": 0}},
        }

    rows = [
        {"name": name, "label": label, "evaluations": 4, "scores": scores(mean)}
        for name, label, mean in (("student", "student, 4 steps", 0.75), ("teacher-4", "teacher, 4 steps", 0.5))
    ]
    apart = {"row": "student", "against": "teacher-4", "mean": 0.25, "low": 0.1, "high": 0.4, "n": 12}
    evaluation = {
        "rows": rows,
        "against": "teacher-4",
        "splits": {name: {"title": f"{name} prompts", "prompts": list("abcd")} for name in ("motion", "no-motion")},
        "metrics": {
            "all": {"title": "all right", "better": "higher"},
            "intact-speed": {"title": "speed of whole ones"},
        },
        "headline": "all",
        "differences": [
            apart | {"split": split, "score": key}
            for split in ("motion", "no-motion")
            for key in ("all", "speed", "intact-speed")
        ],
    }
    summary = tables.summary(evaluation | {"headlines": ["intact-speed"]})

    assert summary.startswith("All right (4 prompts): 0.750 for the student")
    assert summary.endswith(
        "Speed of whole ones (3 of 4 motion prompts): 2.000 for the student (4 steps, 4 network calls), 1.750 for the "
        "teacher (4 steps, 4 network calls) (+0.250, 95 % interval +0.100 to +0.400)."
    )
    assert "Where the prompt names no motion" in tables.summary(evaluation)
    assert tables.scores_of(evaluation | {"headlines": ["intact-speed"]}, "motion") == ["all", "intact-speed", "speed"]


def test_the_command_evaluates_and_compares(run, tmp_path, capsys):
    """`guidedcd evaluate RUN` writes figures and report; with more runs it prints one table."""
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(run), "--prompts", "3", "--seeds", "2", "--teacher-omega", "1,2", "--videos", "0"])

    assert not done.value.code
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert (evaluation["seeds"], len(evaluation["choice"]["tried"])) == ([0, 1], 8)
    assert (run / "report.html").is_file()

    other = tiny_run.run_folder(tmp_path / "other", name="other")
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(run), str(other), "--prompts", "3", "--seeds", "2", "--teacher-omega", "1,2"])
    assert not done.value.code
    assert "paired difference from run" in capsys.readouterr().out

    for wrong in (["--teacher-omega", "a"], ["--seeds", "0"], ["--prompts", "0"], ["--prompts", "none.txt"]):
        with pytest.raises(SystemExit) as done:
            main(["evaluate", str(run), *wrong])
        assert (done.value.code, capsys.readouterr().err.count("\n")) == (2, 1), wrong


def test_an_evaluation_of_a_checkpoint_leaves_the_runs_own(run):
    """It goes into a folder of its own, so that the finished student's evaluation is never another's."""
    evaluate(run, quiet=True, prompts=1, videos=0)
    own = (run / "evaluation.json").read_bytes()
    shutil.copytree(run / "student", run / "checkpoints" / "step-000002")
    evaluate(run / "checkpoints" / "step-000002", quiet=True, prompts=1, videos=0)

    assert (run / "evaluation.json").read_bytes() == own
    assert (run / "evaluations" / "step-000002" / "evaluation.json").is_file()


@pytest.mark.parametrize(
    "options",
    [{"teacher_omega": (math.nan,)}, {"teacher_omega": (math.inf,)}, {"omega": -1.0}, {"steps": 1000}, {"batch": 0}],
)
def test_numbers_that_mean_nothing_are_refused(run, options):
    """Guidance strengths are finite, and a student has at most 50 steps."""
    (name,) = options
    with pytest.raises(GuidedCDError, match=f"^`{name}` is .*; it must be"):
        evaluate(run, quiet=True, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("rows"), "rows is missing"),
        (lambda v: v.update(against="nobody"), "has no row 'nobody'"),
        (lambda v: v["rows"][0].update(omega="<script>"), r"rows\[0\]\.omega is '<script>'; it must be a number"),
        (lambda v: v.update(seeds=3), "seeds is 3; it must be a list"),
    ],
)
def test_an_evaluation_of_another_form_is_one_sentence(run, change, words):
    """A file without keys, or with values of other types, is named in the error."""
    evaluate(run, quiet=True, prompts=1, videos=0)
    value = json.loads((run / "evaluation.json").read_text())
    tables.read(run / "evaluation.json")
    change(value)
    (run / "evaluation.json").write_text(json.dumps(value))

    with pytest.raises(GuidedCDError, match=rf"evaluation\.json.*{words}"):
        tables.read(run / "evaluation.json")
