"""Runs with an evaluation, as the report reads them; nothing is trained or sampled."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_run
import torch

from guidedcd.data import media
from guidedcd.evaluation import tables

HOSTILE = 'a "red" circle & <script>alert(1)</script>'


def score(mean: float) -> dict:
    """A score with an interval."""
    return {"mean": mean, "low": mean - 0.111, "high": mean + 0.122, "n": 32, "values": [mean, mean]}


def evaluation(folder: Path) -> dict:
    """An evaluation of two prompts, with videos, as `guidedcd evaluate` writes it."""
    rows = []
    for name, label, mean, calls in (
        ("student", "student, 4 steps", 0.712, 4),
        ("teacher-4", "teacher, 4 steps", 0.534, 8),
    ):
        scores = {"motion": {"all": score(mean), "flow_px": score(1 + mean)}, "no-motion": {"flow_px": score(2 + mean)}}
        row = {"name": name, "label": label, "steps": 4, "evaluations": calls, "omega": 2.0, "solver": "ddim"}
        rows.append({**row, "scales": {}, "source": "measured", "seconds": 0.25, "scores": scores})
    card = {"motion": {"all": {"mean": 0.876, "low": None, "high": None, "n": None}}}
    more = {"steps": 50, "evaluations": 100, "omega": 2.0, "solver": "ddim", "scales": {}, "seconds": None}
    rows.append({"name": "card-50", "label": "teacher, 50 steps", "source": "model card", **more, "scores": card})
    differences = [
        {
            "row": "student",
            "against": "teacher-4",
            "split": s,
            "score": k,
            "mean": 0.178,
            "low": 0.033,
            "high": 0.295,
            "n": 32,
        }
        for s, k in (("motion", "all"), ("motion", "flow_px"), ("no-motion", "flow_px"))
    ]
    panes = []
    for name, label in (
        ("teacher-50", "teacher, 50 steps"),
        ("teacher-4", "teacher, 4 steps"),
        ("student", "student, 4 steps"),
    ):
        file = f"videos/{name}.mp4"
        media.write_video(folder / file, torch.rand(3, 3, 16, 16), fps=8, enlarge=4)
        panes.append({"row": name, "label": label, "file": file})
    content = {
        "guidedcd": "0.1.0",
        "run": "run",
        "machine": "abacus with 7 beads",
        "seeds": [0],
        "splits": {
            "motion": {"title": "prompts that name a motion", "prompts": [HOSTILE, "a blue star moving up"]},
            "no-motion": {"title": "prompts without motion words", "prompts": ["a green ring"]},
        },
        "choice": {
            "prompts": 8,
            "tried": [
                {
                    "label": "teacher, 4 steps",
                    "solver": "ddim",
                    "omega": 3.5,
                    "score": "all",
                    "steps": 4,
                    "chosen": True,
                    **score(0.4),
                }
            ],
        },
        "metrics": {"all": {"title": "all right", "better": "higher"}, "flow_px": {"title": "flow", "better": ""}},
        "headline": "all",
        "against": "teacher-4",
        "rows": rows,
        "differences": differences,
        "videos": [{"prompt": HOSTILE, "split": "motion", "seed": 0, "panes": panes}],
    }
    content["summary"] = tables.summary(content)
    return content


def a_run(folder: Path, name: str, *, above: float = 0.0, **changes: object) -> Path:
    """A run that was trained and evaluated on 12 prompts; its score is `above` that of other runs."""
    folder.mkdir(parents=True)
    run = {"name": name, "teacher": {"shapes": {}}, "rewards": {"hps": {"weight": 1.0}}, "train": {"steps": 20}}
    (folder / "run.json").write_text(json.dumps(run | changes))
    tiny_run.log(folder)
    values = [0.2 + above + 0.001 * i for i in range(12)]
    scores = {"motion": {"all": {"mean": 0.2055 + above, "low": 0.1, "high": 0.3, "n": 12, "values": values}}}
    rows = [
        {"name": name, "label": f"{name.split('-')[0]}, 4 steps", "steps": 4, "evaluations": 4, "scores": scores}
        for name in ("student", "teacher-4")
    ]
    evaluation = {
        "run": name,
        "seeds": [0],
        "steps": 4,
        "splits": {"motion": {"title": "prompts that name a motion", "prompts": ["a", "b"]}},
        "choice": {"prompts": 8, "tried": []},
        "metrics": {"all": {"title": "all right", "better": "higher"}},
        "headline": "all",
        "against": "teacher-4",
        "rows": rows,
        "differences": [],
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder
