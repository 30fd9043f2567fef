"""Metrics that are added to a finished evaluation, and students whose plugins are not installed any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from guidedcd.cli import main
from guidedcd.config.resolve import read_run, run_from_dict
from guidedcd.errors import GuidedCDError
from guidedcd.evaluation import protocol
from guidedcd.evaluation.evaluate import evaluate
from guidedcd.inference.metric import Metric
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.locks import locked
from guidedcd.plugins.registry import load_plugins


@pytest.fixture
def run(tmp_path, install):
    """A finished run with an energy, evaluated on 3 prompts with 2 steps."""
    install("tiny-components", tiny_run.PLUGIN)
    return tiny_run.run_folder(
        tmp_path / "run", energies={"calm": {"relative": 0.3}}, evaluate={"videos": 1, "teacher_steps": 2}
    )


@pytest.fixture
def sampling(monkeypatch) -> list[str]:
    """The batches that student and teacher sample, in their order."""
    batches: list[str] = []

    def counting(name: str, function: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            batches.append(name)
            return function(*args, **options)

        return wrapped

    monkeypatch.setattr(StudentPipeline, "__call__", counting("student", StudentPipeline.__call__))
    monkeypatch.setattr(protocol, "teacher_videos", counting("teacher", protocol.teacher_videos))
    return batches


def comparable(folder: Path) -> dict[str, Any]:
    """An evaluation without times, its rows and differences by name."""
    content = json.loads((folder / "evaluation.json").read_text())
    for row in content["rows"]:
        row.pop("seconds", None)
    content.pop("summary")
    differences = content.pop("differences")
    content["differences"] = sorted(differences, key=lambda one: (one["against"], one["split"], one["score"]))
    return content


def test_a_metric_is_added_without_sampling_again(run, tmp_path, sampling):
    """The stored videos are scored; the rest stays; the result equals that of one evaluation with all metrics."""
    other = shutil.copytree(run, tmp_path / "other")
    before = evaluate(run, quiet=True)
    sampling.clear()

    after = evaluate(run, quiet=True, metrics={"contrast": {"gain": 2.0}})

    assert sampling == []
    assert all(
        row["scores"][split][key] == score
        for row, earlier in zip(after["rows"], before["rows"], strict=True)
        for split, scores in earlier["scores"].items()
        for key, score in scores.items()
    )
    assert after["videos"] == before["videos"] and after["headline"] == "brightness"
    assert "contrast" in after["rows"][0]["scores"]["motion"]
    evaluate(other, quiet=True, metrics={"contrast": {"gain": 2.0}})
    assert comparable(run) == comparable(other)


@pytest.mark.slow
def test_missing_videos_are_sampled_again(run, tmp_path, sampling):
    """An evaluation without its videos gets the same scores of a metric, from videos of the same seeds."""
    evaluate(run, quiet=True)
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "evaluation_videos")
    evaluate(run, quiet=True, metrics=["contrast"])
    sampling.clear()

    evaluate(other, quiet=True, metrics=["contrast"])

    assert set(sampling) == {"student", "teacher"}
    assert comparable(run) == comparable(other)


@pytest.mark.slow
def test_a_new_evaluation_measures_added_metrics_too(run, sampling):
    """Other options sample new videos and delete the earlier ones; metrics that were added are measured again."""
    evaluate(run, quiet=True, metrics=["contrast"])
    files = set((run / "evaluation_videos").iterdir())
    sampling.clear()

    evaluation = evaluate(run, quiet=True, seeds=(7,))

    assert set(sampling) == {"student", "teacher"}
    assert "contrast" in evaluation["rows"][0]["scores"]["motion"]
    assert not files & set((run / "evaluation_videos").iterdir())


def test_a_score_of_another_metric_is_not_overwritten(run):
    """A metric whose score has the name of another one's is refused, and the evaluation stays as it is."""
    evaluate(run, quiet=True)
    before = (run / "evaluation.json").read_bytes()

    with pytest.raises(GuidedCDError, match="'impostor' returns the score 'brightness', which metric 'brightness' has"):
        evaluate(run, quiet=True, metrics="impostor")
    assert (run / "evaluation.json").read_bytes() == before


def test_the_command_adds_a_metric_of_a_file(run, tmp_path, monkeypatch, capsys):
    """`evaluate RUN --metrics NAME --plugin FILE.py` writes evaluation.json and the report again."""
    monkeypatch.setenv("GUIDEDCD_PLUGINS", "")
    (tmp_path / "redness_metric.py").write_text(
        "from guidedcd import MetricConfig, hookimpl\n\n"
        "@hookimpl\ndef register_metrics(register):\n"
        "    register('redness', 'redness_metric:redness', config=MetricConfig)\n\n"
        "def redness(config):\n    return lambda videos, prompts: {'redness': videos[:, :, 0].mean((1, 2, 3))}\n"
    )
    evaluate(run, quiet=True)
    argv = ["evaluate", str(run), "--plugin", str(tmp_path / "redness_metric.py"), "--metrics", "redness,contrast"]

    with pytest.raises(SystemExit) as exit_:
        main([*argv, "--metrics.contrast.gain", "3"])

    assert not exit_.value.code, capsys.readouterr().err
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert {"redness", "contrast"} <= set(evaluation["metrics"])
    assert evaluation["metric_settings"]["contrast"]["options"] == {"gain": 3.0}
    assert "redness" in (run / "report.html").read_text()


CALM = """
import attrs
from guidedcd import EnergyConfig, hookimpl

@attrs.frozen(kw_only=True)
class CalmConfig(EnergyConfig):
    softness: int = 1

@hookimpl
def register_energies(register):
    register("calm", "calm_components:nothing", config=CalmConfig)
"""


def test_a_student_without_its_plugins_is_sampled_and_evaluated(tmp_path, install, capsys):
    """Of a run whose energy, reward, route, dataset and metric are uninstalled, only the teacher is needed."""
    install("tiny-components", tiny_run.PLUGIN.replace('register("calm", ', 'register("other", '))
    install("calm-components", CALM)
    options = {"videos": 0, "teacher_steps": 2}
    run = tiny_run.run_folder(tmp_path / "run", energies={"calm": {"relative": 0.3}}, evaluate=options)
    described = json.loads((run / "run.json").read_text())
    described["energies"]["calm"]["softness"] = 3
    (run / "run.json").write_text(json.dumps(described))
    videos = StudentPipeline.from_run(run)(["a circle"], steps=2)
    before = evaluate(run, quiet=True)
    described["rewards"] = {"gone": {"weight": 2.0, "path": "x"}, "wrap:x": {"of": "x"}}
    described["routes"], described["data"] = {"gone": {"least": 1}}, [{"gone": {"path": "clips"}}]
    described["metrics"]["gone"] = {}
    (run / "run.json").write_text(json.dumps(described))
    shutil.rmtree(next(tmp_path.rglob("calm_components-*.dist-info")))
    assert "calm" not in load_plugins().of_kind("energy")

    student = StudentPipeline.from_run(run)
    again = evaluate(run, quiet=True, metrics="contrast")

    assert (student(["a circle"], steps=2) == videos).all()
    assert (student.run.energies["calm"].relative, student.run.energies["calm"].softness) == (0.3, 3)
    assert list(student.run.rewards) == ["gone", "wrap:x"]
    assert again["rows"][0]["scores"]["motion"]["brightness"] == before["rows"][0]["scores"]["motion"]["brightness"]
    evaluate(run, quiet=True, prompts=1)
    assert "warning  metric 'gone' is not installed" in capsys.readouterr().out
    with pytest.raises(GuidedCDError, match="no dataset named 'gone'"):
        read_run(run / "run.json")
    with pytest.raises(GuidedCDError, match="no energy named 'calm'"):
        run_from_dict(described, for_sampling=True).build("energy")


def test_a_run_without_a_student_states_whether_it_is_still_training(run, capsys):
    """One sentence names the process, or the command that continues the run, and the newest checkpoint."""
    shutil.rmtree(run / "student")
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({"command": "guidedcd train --name a"} | described))
    (run / "checkpoints" / "step-000050").mkdir(parents=True)

    with pytest.raises(
        GuidedCDError, match="run is unfinished .* `guidedcd train --name a` continues it, or .*step-000050"
    ):
        evaluate(run)
    with (
        locked(run, "the run"),
        pytest.raises(GuidedCDError, match=r"is still training \(pid \d+\).*Wait for it, or give"),
    ):
        evaluate(run)
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(run), "--metrics", "contrast"])
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_diversity_over_seeds(run, tmp_path, sampling):
    """Videos of one prompt are compared over seeds, the same from the start and added; one seed has no value."""
    other = shutil.copytree(run, tmp_path / "other")
    evaluate(run, quiet=True, seeds=3)
    sampling.clear()

    added = evaluate(run, quiet=True, metrics=["diversity"], seeds=3)
    whole = evaluate(other, quiet=True, metrics=["diversity"], seeds=3)

    for one in (added, whole):
        score = one["rows"][0]["scores"]["motion"]["diversity"]
        assert len(score["values"]) == score["n"] == 2 and 0 < score["mean"] < 1
    assert added["rows"][0]["scores"]["motion"]["diversity"] == whole["rows"][0]["scores"]["motion"]["diversity"]
    alone = evaluate(other, quiet=True, metrics=["diversity"], seeds=1)
    assert alone["rows"][0]["scores"]["motion"]["diversity"]["mean"] is None


WRONG_FEATURES = {
    "shape": ("features", "return videos", "returned features of shape"),
    "not finite": ("features", "return videos.flatten(1) / 0", "returned features that are not finite"),
    "values": ("across", "return {'x': features}", "returned 'x' of shape"),
}


@pytest.mark.parametrize(("member", "body", "message"), WRONG_FEATURES.values(), ids=WRONG_FEATURES)
def test_wrong_features_name_the_metric(member, body, message):
    """Features and comparisons of a wrong shape are one error that names the metric."""
    namespace: dict[str, Any] = {}
    exec(f"def {member}(self, {'videos' if member == 'features' else 'features'}): {body}", namespace)
    metric = Metric("odd", type("Odd", (), {"features": None, "across": None, member: namespace[member]})())

    with pytest.raises(GuidedCDError, match=f"^metric 'odd' {message}"):
        getattr(metric, member)(torch.rand(2, 3, 3, 4, 4) if member == "features" else torch.rand(2, 3, 4))
