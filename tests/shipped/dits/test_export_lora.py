"""Students of video transformers as LoRA files."""

from __future__ import annotations

import diffusers
import pytest
import tiny_pipelines
import torch
from guidedcd_dits import lora_files
from guidedcd_dits.lora_files import Sampling

import guidedcd
from guidedcd.diffusion.sampler import multistep_timesteps
from guidedcd.errors import GuidedCDError

FIRST = {family: next(iter(sizes)) for family, sizes in tiny_pipelines.SIZES.items()}


def trained(one, folder, student: dict) -> guidedcd.Run:
    """A run of two steps with a tiny teacher; its folder."""
    run = guidedcd.Run.from_profile(
        "shapes",
        teacher={one.family: {"path": str(one.folder), **one.size}},
        energies={"x0-motion": {}},
        rewards=[],
        student=student,
        train={"steps": 2, "batch_size": 2, "optimizer": {"lr": 1e-2}},
        preprocess={"videos": 2, "draws_per_video": 1},
        device="cpu",
    )
    return guidedcd.distil(run, out=folder / "run", store=folder / "store", evaluation=False)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), [("wan", "lora"), ("ltx", "lora"), ("cogvideox", "lora"), ("wan", "full")])
def test_a_student_becomes_lora_files(family, kind, tiny, tmp_path):
    """diffusers loads the file and predicts as the student; ComfyUI's file has the same changes and the sampling."""
    one = tiny(family, FIRST[family])
    folder = trained(one, tmp_path, {"kind": kind, "rank": 2} if kind == "lora" else {})
    out = guidedcd.export(folder, tmp_path / "out", format="lora", rank=None if kind == "lora" else 8)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "predicts the same, largest relative error" in card and "load_lora_weights" in card
    network = one.teacher.teacher.network
    adapter = lora_files.read(out / "pytorch_lora_weights.safetensors", network)
    assert adapter.sampling is not None and adapter.sampling.steps >= 1 and adapter.sampling.guidance_scale == 1.0
    constant = [value for name, value in adapter.deltas.items() if name.endswith("linear_2.bias")]
    assert any(value.abs().max() > 0 for value in constant)  # the guidance
    if family == "cogvideox":
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "pytorch_lora_weights.safetensors"]
        return
    assert isinstance(adapter.sampling, Sampling) and adapter.sampling.scheduler == "FlowMatchLCMScheduler"
    native = lora_files.read(out / "comfyui.safetensors", network)
    assert native.sampling == adapter.sampling
    changes, others = adapter.changes(), native.changes()
    for name, change in changes.items():
        torch.testing.assert_close(change, others.get(name, torch.zeros_like(change)), rtol=1e-6, atol=1e-7)
    assert others.keys() <= changes.keys() and len(others) > 10


@pytest.mark.parametrize(("family", "name"), [("wan", "small"), ("wan", "wide"), ("ltx", "small"), ("ltx", "dynamic")])
def test_the_stated_shift_gives_the_noise_levels_of_the_student(tiny, tmp_path, family, name):
    """`FlowMatchLCMScheduler` with the shift of the metadata has the noise levels at which a student is sampled."""
    teacher = tiny(family, name).teacher.teacher
    layer = next(name for name, _ in teacher.network.named_modules() if name.endswith("attn1.to_q"))
    out, into = teacher.network.get_parameter(f"{layer}.weight").shape
    file, *_ = teacher.save_lora(tmp_path, {layer: (torch.zeros(out, 2), torch.zeros(2, into))}, {}, 4)
    sampling = lora_files.read(tmp_path / file, teacher.network).sampling
    scheduler = diffusers.FlowMatchLCMScheduler(shift=sampling.shift)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    expected = teacher.schedule.sigma[torch.tensor(multistep_timesteps(4))]
    torch.testing.assert_close(scheduler.sigmas[:4], expected, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_other_formats_are_refused(tiny, tmp_path):
    """The formats of UNets are one sentence that names the one for transformers."""
    folder = trained(tiny("wan", FIRST["wan"]), tmp_path, {"kind": "lora", "rank": 2})
    for format in ("diffusers", "t2v-turbo-v2"):
        with pytest.raises(GuidedCDError, match="is for UNets, not for WanTransformer3DModel"):
            guidedcd.export(folder, tmp_path / "out", format=format)
        assert not (tmp_path / "out").exists()
