"""The separate package examples/guidedcd-jerk works like the shipped plugins, and the engine never names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guidedcd.plugins.scaffold.render import render


@pytest.fixture(scope="module")
def example(repository) -> Path:
    """The package's folder."""
    return repository / "examples" / "guidedcd-jerk"


@pytest.fixture(scope="module")
def installed(wheel, example, package_folders, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Run `guidedcd` in a new environment that has both wheels, and our dependencies through a .pth file."""
    folder = tmp_path_factory.mktemp("environment")
    wheels = folder / "wheels"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # A path from a .pth file is searched last, and .pth files there (an editable install's) are not read.
    Path(site.stdout.strip(), "dependencies.pth").write_text("\n".join(map(str, package_folders)) + "\n")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, example],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [
            *pip,
            "--python",
            python,
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--force-reinstall",
            wheel,
            *wheels.glob("*.whl"),
        ],
        check=True,
        capture_output=True,
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def guidedcd(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [folder / "venv" / "bin" / "guidedcd", *argv], capture_output=True, text=True, cwd=folder, env=environment
        )

    guidedcd.folder = folder
    return guidedcd


def test_the_example_is_the_template_with_the_body_filled_in(example):
    """`guidedcd plugins new energy jerk` writes these files; only the energy itself and its summary are by hand."""
    files = render("energy", "jerk")

    files_there = {
        str(file.relative_to(example))
        for file in example.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files_there == set(files)
    for path, text in files.items():
        if path != "guidedcd_jerk/energy.py":
            different = set(text.splitlines()) ^ set((example / path).read_text().splitlines())
            assert all("summary=" in line for line in different), path


def test_both_packages_are_listed(installed):
    """In an environment of its own, the example stands beside the shipped plugins, which come from the wheel."""
    done = installed("plugins", "list")

    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert ["energy", "jerk"] in [line[:2] for line in lines]
    assert ["energy", "pta"] in [line[:2] for line in lines]
    assert "did not load" not in done.stdout


def test_the_engine_does_not_name_the_example(repository):
    """No module of the engine contains the example's name, apart from the docstring of the conformance checks."""
    modules = [path for path in (repository / "guidedcd").rglob("*.py") if "testing" not in path.parts]
    assert len(modules) > 100
    assert [path for path in modules if "jerk" in path.read_text(encoding="utf-8")] == []


@pytest.mark.slow
def test_the_example_keeps_the_rules(installed):
    """The conformance checks pass on the installed package."""
    done = installed("plugins", "doctor", "jerk")

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_student_trains_with_the_example(installed):
    """Two steps with `--energy jerk`, from videos to a student, an evaluation and a report."""
    done = installed(
        "train", "--energies", "jerk", "--energies.jerk.relative", "0.1", "--out", "run", "--device", "cpu",
        "--preprocess.videos", "2", "--preprocess.draws-per-video", "2", "--solver.steps", "6",
        "--train.steps", "2", "--train.batch-size", "2", "--train.log-every", "1",
        "--evaluate.prompts", "2", "--evaluate.videos", "1", "--evaluate.steps", "2", "--evaluate.teacher-steps", "2",
    )  # fmt: skip

    run = installed.folder / "run"
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(json.loads((run / "run.json").read_text())["energies"]) == ["jerk"]
    assert (run / "student" / "model.safetensors").stat().st_size > 0
    assert (run / "report.html").exists()
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
