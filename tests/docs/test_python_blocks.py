"""The Python code of README and docs runs."""

from __future__ import annotations
import __future__

import linecache
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import guidedcd

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]
TRAINS = [param for param in BLOCKS if re.search(r"distil\(|load_teacher\(", param.values[0])]
LOADS = [param for param in BLOCKS if "from_pretrained" in param.values[0]]
"""Run by tests/inference/export/test_pipeline_arguments.py, which has an exported folder."""
OTHERS = [param for param in BLOCKS if param not in TRAINS + LOADS]
SMALL: dict[str, Any] = {
    "train": {"steps": 2, "batch_size": 2},
    "preprocess": {"videos": 2, "draws_per_video": 1},
    "solver": {"steps": 4},
    "evaluate": {"prompts": 1, "videos": 0, "steps": 1, "teacher_omega": [2.0]},
}


def my_energy(seen: guidedcd.Seen, reference: guidedcd.Seen) -> torch.Tensor:
    """Stands for the reader's own energy."""
    return (seen.x0 - reference.x0).square().flatten(1).mean(dim=1)


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names that a block defines; annotations may name what a page only mentions."""
    names["__name__"] = __name__
    linecache.cache["block.py"] = (len(code), None, code.splitlines(keepends=True), "block.py")  # for inspect.getsource
    exec(compile(code, "block.py", "exec", flags=__future__.annotations.compiler_flag), names)
    return names


@pytest.mark.parametrize("code", OTHERS)
def test_blocks_run(code):
    """Each block of code runs as it stands; one that defines an energy computes a finite value of each sample."""
    class_of_the_page = re.sub(r"checks\(\"energy\", \"jerk\"\)", 'checks("energy", "pta")', code)
    names = run(class_of_the_page, {"guidedcd": guidedcd, "my_energy": my_energy, "JerkConfig": guidedcd.EnergyConfig})

    if "Jerk" in names:
        z = torch.randn(2, 4, 5, 3, 3)
        levels = {"t": torch.tensor([500, 600]), "alpha": torch.full((2,), 0.8), "sigma": torch.full((2,), 0.6)}
        seen = guidedcd.Seen(z=z, output=torch.randn_like(z), prediction="eps", **levels)
        energy = names["Jerk"](guidedcd.EnergyConfig())(seen, seen.rows(0, 2))
        assert energy.shape == (2,) and energy.isfinite().all()


def test_every_block_is_run_by_a_test():
    """No page has code that these tests pass over."""
    assert len(TRAINS) >= 2 and len(LOADS) == 1
    assert all(param.id.startswith("docs/how-to/sample.md") for param in LOADS)


@pytest.mark.slow
@pytest.mark.parametrize("code", TRAINS)
def test_blocks_that_train_run(code, tmp_path, monkeypatch):
    """The examples of README and reference run to their end, with a shorter run and fewer steps of the teacher."""
    described = guidedcd.Run.from_profile
    monkeypatch.setattr(
        guidedcd.Run, "from_profile", lambda profile, **options: described(profile, **{**options, **SMALL})
    )
    monkeypatch.chdir(tmp_path)
    options = {"relative": 0.1, "reference": "clean"}
    names = {"guidedcd": guidedcd, "my_energy": my_energy, "options": options, "clip": torch.rand(1, 8, 3, 48, 48)}
    run(code.replace("steps=50", "steps=3").replace('"clip.mp4"', "clip"), names)

    assert names["videos"].shape[0] == 1
