"""The tutorial about energies, command by command."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from clean_environment import clean_environment

FOLDER = Path(__file__).parents[2] / "docs" / "tutorial"
SMALLER = {
    "--preprocess.videos 4": "--preprocess.videos 1",
    "--preprocess.draws-per-video 4": "--preprocess.draws-per-video 2",
    "--train.steps 20": "--train.steps 2",
    ".relative 0.3": ".relative 0.3 --steps 2",
}
"""What makes the run of the tutorial as short as a test must be."""


@pytest.mark.slow
def test_the_tutorial_runs_from_the_idea_to_the_wheel(wheel, package_folders, tmp_path, monkeypatch):
    """Every command of the page succeeds in an empty folder, and `try` prints the numbers that the page shows."""
    monkeypatch.syspath_prepend(FOLDER)
    tutorial = importlib.import_module("run_tutorial")
    python = clean_environment(tmp_path / "venv", package_folders)
    pip = [sys.executable, "-m", "pip", "--python", python]
    offline = ["-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "install", *offline, wheel], check=True, capture_output=True)
    folder = tmp_path / "idea"
    folder.mkdir()

    done = tutorial.run(folder, python, pip, offline=True, smaller=SMALLER)

    page = tutorial.PAGE.read_text(encoding="utf-8")
    rows = [line.split() for line in page.splitlines() if line.startswith("   ") and line.endswith(("%", "guided"))]
    (tried,) = [command.output for command in done if "try energy loop --energies.loop.relative 0.1" in command.command]
    printed = [line.split() for line in tried.splitlines() if line[:4].strip().isdigit()]
    assert len(rows) == len(printed) == 8
    for shown, row in zip(rows, printed, strict=True):
        assert [float(value) for value in row[1:4]] == pytest.approx([float(value) for value in shown[1:4]], rel=0.02)
    assert list((folder / "dist").glob("guidedcd_loop-*.whl"))
    assert list((folder / "runs").glob("*-loop/student/model.safetensors"))
    assert (folder / "trials" / "loop-strong" / "contact_sheet.png").is_file()


def test_the_tutorial_has_few_lines_of_code():
    """The reader writes at most 30 lines."""
    text = (FOLDER / "first-energy.md").read_text(encoding="utf-8")
    code = "".join(block.split("```")[0] for block in text.split("```python\n")[1:])

    assert 0 < len([line for line in code.splitlines() if line.strip()]) <= 30
