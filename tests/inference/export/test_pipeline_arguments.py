"""The exported pipeline takes the argument names of diffusers' video pipelines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from guidedcd_unets import VideoCrafter2Config
from tiny_checkpoint import write

from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.config.sections import EvaluateConfig
from guidedcd.data.clips import Prompt
from guidedcd.inference.export import diffusers_folder, peft_lora, t2v_turbo
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.student import Student
from guidedcd.plugins.configs import DatasetConfig

FRAMES, SIZE = 2, 8


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A tiny student without energies, whose every trainable weight has moved, of a run evaluated at omega 2."""
    path, config = write(tmp_path_factory.mktemp("published"))
    size = {"frames": FRAMES, "height": SIZE, "width": SIZE}
    chosen = Chosen("videocrafter2", VideoCrafter2Config(path=str(path), arch=str(config), **size))
    evaluate = EvaluateConfig(steps=3, omega=2.0)
    teacher, run = chosen.build(), Run(teacher=chosen, data=(Chosen("any", DatasetConfig()),), evaluate=evaluate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = Student(teacher, run.student, ()).eval()
        for parameter in student.trainable:  # guidance inputs begin at zero
            parameter.data += 0.05 * torch.randn_like(parameter)
    return StudentPipeline(run=run, teacher=teacher, student=student, folder=path.parent, weights=path.parent)


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory):
    """The diffusers folder of the student."""
    out = tmp_path_factory.mktemp("exported")
    diffusers_folder.write_folder(student, out)
    return out


@pytest.fixture(scope="module")
def example(student, folder):
    """What the example of the model card defines."""
    names: dict = {}
    exec(diffusers_folder.usage(student).replace("FOLDER", str(folder)), names)
    names["pipe"].set_progress_bar_config(disable=True)
    return names


def generators(*seeds: int) -> list[torch.Generator]:
    """One generator per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_example_of_the_card_runs(example):
    """Executed as it stands, it gives one video with values in [0, 1]."""
    video = example["video"]

    assert video.shape == (FRAMES, SIZE, SIZE, 3)
    assert 0 <= video.min() <= video.max() <= 1


def test_the_code_of_the_how_to_guide_runs(folder, tmp_path, monkeypatch):
    """The page about sampling loads an exported folder with diffusers alone, and writes a gif."""
    page = Path(__file__).parents[3] / "docs" / "how-to" / "sample.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"out/"', repr(str(folder))), {})

    assert (tmp_path / "circle.gif").stat().st_size > 0


def test_the_example_samples_as_the_run_was_evaluated(student, monkeypatch):
    """Steps, guidance scale (omega + 1) and prompt are those of the run and its teacher."""
    words = 'a "big" red circle'
    monkeypatch.setattr(student.teacher, "prompts", lambda split, count: [Prompt(text=words)], raising=False)
    call = next(line for line in diffusers_folder.usage(student).splitlines() if line.startswith("video = "))

    assert call == r'video = pipe("a \"big\" red circle", num_inference_steps=3, guidance_scale=3.0).frames[0]'
    for usage in (t2v_turbo.usage(student), peft_lora.usage(student)):
        assert json.dumps(words) in usage
        assert not re.search("PROMPT|STEPS|SCALE", usage)


def test_guidance_scale_is_omega_plus_one(example):
    """The default omega of the run and the guidance scale one above it give the same video."""
    pipe = example["pipe"]
    options = {"num_inference_steps": 2, "output_type": "latent"}
    default = pipe("a cat", generator=generators(0)[0], **options).frames
    explicit = pipe("a cat", generator=generators(0)[0], guidance_scale=pipe.config.omega + 1, **options).frames
    other = pipe("a cat", generator=generators(0)[0], guidance_scale=1.0, **options).frames

    assert torch.equal(default, explicit)
    assert not torch.equal(default, other)


def test_a_list_of_generators_samples_each_video_alone(example):
    """Two videos of one prompt with two generators equal those made one by one."""
    pipe = example["pipe"]
    options = {"num_inference_steps": 2, "output_type": "latent"}
    both = pipe("a cat", num_videos_per_prompt=2, generator=generators(3, 4), **options).frames
    second = pipe("a cat", generator=generators(4), **options).frames

    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=1e-4)  # batches round differently
    with pytest.raises(ValueError, match="1 generators for 2 videos"):
        pipe(["a cat", "a dog"], generator=generators(3), **options)


def test_every_output_type_has_the_same_pixels(example):
    """Arrays, tensors and lists of images agree; another type is refused before anything is computed."""
    pipe = example["pipe"]
    array, tensor, images = (
        pipe("a cat", num_inference_steps=1, num_frames=3, generator=generators(0), output_type=kind).frames
        for kind in ("np", "pt", "pil")
    )

    assert array.shape == (1, 3, SIZE, SIZE, 3)
    assert np.array_equal(array, tensor.numpy())
    assert np.array_equal(np.asarray(images[0][2]), np.rint(array[0, 2] * 255).astype("uint8"))
    with pytest.raises(ValueError, match="output_type must be np, pt, pil, latent: 'mp4'"):
        pipe("a cat", output_type="mp4")


def test_a_callback_receives_and_replaces_the_latents(example):
    """The callback gets the tensors of its list after every step, and its return value replaces them."""
    pipe, steps = example["pipe"], []

    def zero_at_the_end(pipe, step, timestep, tensors):
        steps.append((step, timestep, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    frames = pipe("a cat", num_inference_steps=2, callback_on_step_end=zero_at_the_end, output_type="latent").frames

    assert steps == [(0, pipe.timesteps(2)[0], ["latents"]), (1, pipe.timesteps(2)[1], ["latents"])]
    assert not frames.any()
    with pytest.raises(ValueError, match="latents, prompt_embeds"):
        pipe("a cat", callback_on_step_end=zero_at_the_end, callback_on_step_end_tensor_inputs=["mask"])
