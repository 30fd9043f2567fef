"""An exported student where guidedcd is not installed: another virtual environment, with diffusers and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clean_environment import clean_environment
from safetensors.torch import load_file, save_file

from guidedcd.cli import main
from guidedcd.diffusion.guidance import lambda_input
from guidedcd.diffusion.sampler import sample
from guidedcd.inference import pipeline

TEXTS = ["a red circle moves left", "a big blue square moves up, fast"]
STEPS = 4

SAMPLE = """
import importlib.util, json, sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

assert not any(importlib.util.find_spec(name) for name in ("guidedcd", "guidedcd_pta", "guidedcd_shapes"))
folder, given, result, texts = sys.argv[1], load_file(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
latents = pipe(texts, **given, output_type="latent").frames
video = pipe(texts, **given, output_type="pt").frames
assert not any(name.startswith("guidedcd") for name in sys.modules)
save_file({"latents": latents, "video": video.contiguous()}, result)
"""


@pytest.fixture(scope="module")
def python(package_folders, tmp_path_factory) -> Path:
    """The Python of an environment where guidedcd is not installed."""
    return clean_environment(tmp_path_factory.mktemp("environment"), package_folders)


@pytest.mark.slow
def test_an_exported_student_samples_the_same_where_guidedcd_is_not_installed(python, tmp_path, monkeypatch):
    """Trained on the proving ground, exported, loaded by `DiffusionPipeline` elsewhere: the same latents and pixels."""
    monkeypatch.chdir(tmp_path)
    small = "--preprocess.videos 2 --preprocess.draws-per-video 2 --solver.steps 5 --train.steps 2 --train.batch-size 2"
    short = "--evaluate.prompts 1 --evaluate.videos 0 --evaluate.teacher-omega 2 --train.optimizer.lr 1e-3"
    for words in (f"train --energy pta --out run --device cpu {small} {short}", "export run out"):
        with pytest.raises(SystemExit) as done:
            main(words.split())
        assert not done.value.code, words

    student = pipeline.StudentPipeline.from_run(tmp_path / "run", device="cpu")
    latents = pipeline.initial(student.teacher, [0, 1])
    noises = torch.stack([pipeline.initial(student.teacher, [0, 1], 1 + step) for step in range(STEPS)])
    scales, config = pipeline.strengths(student), student.run.energies["pta"]
    told = lambda_input(torch.tensor([scales["pta"]]), relative=config.relative is not None)
    cond, omega = student.teacher.embed(TEXTS), student.run.evaluate.omega
    z = sample(student.student, student.teacher, cond, latents, STEPS, omega, told, config.fraction, noises=noises)
    with torch.no_grad():
        pixels = student.teacher.decode(z).permute(0, 1, 3, 4, 2)

    save_file({"latents": latents, "noises": noises}, tmp_path / "given.safetensors")
    places = [tmp_path / name for name in ("out", "given.safetensors", "theirs.safetensors")]
    # -I: neither this folder nor PYTHONPATH leads to the package.
    command = [python, "-I", "-c", SAMPLE, *map(str, places), json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"})

    assert done.returncode == 0, done.stderr[-3000:]
    exported = load_file(tmp_path / "theirs.safetensors")
    assert (exported["latents"] - z).abs().max() < 1e-4 * z.abs().max()
    assert (exported["video"] - pixels).abs().max() < 1e-3


@pytest.mark.slow
def test_the_other_environment_has_no_guidedcd(python):
    """What the test above rests on: there the import fails, and here it does not."""
    there = subprocess.run([python, "-I", "-c", "import guidedcd"], capture_output=True, text=True)
    here = subprocess.run([sys.executable, "-c", "import guidedcd"], capture_output=True, text=True)

    assert "No module named 'guidedcd'" in there.stderr
    assert here.returncode == 0, here.stderr
