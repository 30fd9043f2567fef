"""T2V-Turbo's student files, read and written."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import unet_state, write

from guidedcd.diffusion.embeddings import guidance_embedding
from guidedcd.errors import GuidedCDError
from guidedcd.inference.published import is_published, load_student
from guidedcd.models.checkpoints import t2v_turbo as turbo
from guidedcd.models.checkpoints import videocrafter2 as vc2
from guidedcd.models.teachers.videocrafter2 import load_videocrafter2
from guidedcd.testing.tiny_networks import LVDM_UNET


@pytest.mark.parametrize("fps", [8, 16])
def test_the_four_conditioning_paths_are_the_reference_ones(shared, fps):
    """With and without omega and lambda, folded, in single precision."""
    folder = shared("videocrafter2", "t2v_turbo_v2_tiny")
    io, config = load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text())
    network = vc2.load_unet(config, turbo.read_student(folder / "unet.safetensors", config), fps=fps)
    omega = io["omega_embedding"]
    paths = {
        "motion": torch.cat([omega, io["lambda_embedding"]], dim=1),
        "motion_zero": torch.cat([omega, io["lambda_zero_embedding"]], dim=1),
        "no_motion_arg": omega,
        "teacher_path": None,
    }

    for name, cond in paths.items():
        if (key := f"out.eps_{name}_fps{fps}") in io:
            with torch.no_grad():
                output = network(io["x"], io["t"], io["context"], timestep_cond=cond).sample
            torch.testing.assert_close(output, io[key], atol=2e-5, rtol=0, msg=key)


def test_a_low_rank_file_is_merged_as_the_reference_merges_it(shared):
    """Every merged weight has the reference's sums, and the output is the reference's."""
    folder = shared("videocrafter2", "t2v_turbo_v1_lora_tiny")
    io, config = load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text())
    stored = load_file(shared("videocrafter2", "vc2_tiny") / "model.safetensors")
    prefix = vc2.PREFIXES["unet"]
    base = {k.removeprefix(prefix): v.float() for k, v in stored.items() if k.startswith(prefix)}
    base[turbo.OMEGA] = io[turbo.OMEGA]
    merged = turbo.read_student(folder / "unet_lora.pt", config, base)
    network = vc2.load_unet(config, merged, fps=config["fps_used"])

    for key, sums in config["merged_state_dict_checksums"].items():
        assert float(merged[key].double().sum()) == pytest.approx(sums["sum"], abs=1e-4), key
        changed = float((merged[key].double() - base[key].double()).abs().sum())
        assert changed == pytest.approx(sums["delta_abs_sum"], rel=1e-5), key
    with torch.no_grad():
        output = network(io["x"], io["t"], io["context"], timestep_cond=io["omega_embedding"]).sample
    torch.testing.assert_close(output, io["out.eps_merged"], atol=5e-5, rtol=0)


def test_the_low_rank_order_is_the_published_one(shared):
    """Names of the 575 layers of the full-size file, in its order."""
    path = shared().parent / "facts" / "manifests"
    expected = json.loads((path / "t2v_turbo_v1_lora_manifest.json").read_text())["modules_in_order"]
    keys = json.loads((path / "t2v_turbo_v2_student_manifest.json").read_text())["unet"]
    state = {k: torch.empty(s, device="meta") for k, s in keys.items()}

    assert turbo.targets(vc2.PUBLISHED, state) == [f"{entry['module']}.weight" for entry in expected]


@pytest.fixture(scope="module")
def base():
    """A base without guidance inputs."""
    return unet_state()


def test_a_list_of_full_rank_gives_the_student_back(base, tmp_path):
    """Written and merged again: every layer weight of a student that only changed those."""
    student = unet_state(student=0)
    for key in turbo.targets(LVDM_UNET, base):
        if key in base:
            student[key] = base[key] + 0.1 * student[key]
    student |= {k: v for k, v in base.items() if k not in turbo.targets(LVDM_UNET, base)}
    factors, lost = turbo.lora_list(LVDM_UNET, base, student, rank=1000)
    torch.save(factors, tmp_path / "unet_lora.pt")
    with pytest.warns(UserWarning, match="zero is used"):
        merged = turbo.read_student(tmp_path / "unet_lora.pt", LVDM_UNET, base)
    changed = [
        key
        for key in turbo.targets(LVDM_UNET, base)
        if min(student[key].shape[:2]) >= min(student[key].shape[0], student[key][0].numel())
    ]

    assert lost < 0.9  # convolution layers are clamped by channels, as the format demands
    for key in changed:
        torch.testing.assert_close(merged[key], student[key], atol=1e-5, rtol=0, msg=key)


def test_a_low_rank_list_needs_its_base_and_its_size(base, tmp_path):
    """The message states that the base is missing, or has another size."""
    factors, _ = turbo.lora_list(LVDM_UNET, base, {**base, turbo.OMEGA: torch.zeros(32, 256)}, rank=2)
    torch.save(factors, tmp_path / "unet_lora.pt")

    with pytest.raises(GuidedCDError, match='`teacher="videocrafter2'):
        turbo.read_student(tmp_path / "unet_lora.pt", LVDM_UNET)
    other = {**LVDM_UNET, "num_res_blocks": 2}
    with pytest.raises(GuidedCDError, match="another architecture"):
        turbo.merge(factors, other, unet_state(other))
    wide = {**LVDM_UNET, "context_dim": 24}
    with pytest.raises(GuidedCDError, match="does not fit"):
        turbo.merge(factors, wide, unet_state(wide))


def test_a_lambda_input_cannot_be_written_as_version_1(base):
    """Version 1 has the input omega only."""
    with pytest.raises(GuidedCDError, match="no place for motion_cond_proj"):
        turbo.lora_list(LVDM_UNET, base, unet_state(student=1), rank=2)


@pytest.mark.parametrize("energies", [0, 1, 2])
def test_published_students_sample_like_ours(tmp_path, energies):
    """Guidance inputs are detected by their keys; every combination of inputs runs and omega matters."""
    path, config = write(tmp_path)
    torch.save(unet_state(student=energies), tmp_path / "unet_mg.pt")
    teacher = load_videocrafter2(path, arch=config, frames=2, height=4, width=8)
    student = load_student(tmp_path / "unet_mg.pt", teacher)
    z, t, cond = torch.randn(1, *teacher.geometry.latent_shape), torch.tensor([500]), teacher.embed(["a cat"])
    with torch.no_grad():
        plain, told = student(z, t, cond), student(z, t, cond, torch.tensor([7.5]))

    assert student.energies == (("pta",) if energies else ())
    assert not torch.equal(plain, told)
    if energies:
        width = guidance_embedding(torch.tensor([7.5]), torch.zeros(1, energies)).shape[1]
        assert student.network.time_embedding.cond_proj.lambda_width + 256 == width


def test_other_files_are_no_students(tmp_path):
    """A teacher's UNet, and a teacher of another family."""
    path, config = write(tmp_path)
    torch.save(unet_state(), tmp_path / "unet.pt")
    teacher = load_videocrafter2(path, arch=config, frames=2, height=4, width=8)

    assert is_published(tmp_path / "unet.pt")
    assert not is_published(tmp_path)
    with pytest.raises(GuidedCDError, match="no student"):
        load_student(tmp_path / "unet.pt", teacher)
    with pytest.raises(GuidedCDError, match="belong to VideoCrafter2"):
        load_student(tmp_path / "unet.pt", object())
    with warnings.catch_warnings(), pytest.raises(GuidedCDError, match="hf download"):
        load_student(tmp_path / "nothing.pt", teacher)
