"""Every published number about VideoCrafter2 and T2V-Turbo, through the parity command's own functions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from guidedcd.diffusion.embeddings import guidance_scale_embedding
from guidedcd.parity import reference_samplers
from guidedcd.parity import videocrafter2 as family


@pytest.mark.slow
def test_every_number_agrees(shared, tmp_path):
    """The command passes on the whole tree, each value within the tolerance of its description."""
    done = subprocess.run(
        [sys.executable, "-m", "guidedcd.parity", str(shared("videocrafter2")), "--out", str(tmp_path), "--compare"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for name in ("vc2_tiny", "vc2_realstruct", "t2v_turbo_v2_tiny", "t2v_turbo_v1_lora_tiny"):
        golden, ours = (load_file(folder / name / "io.safetensors") for folder in (shared("videocrafter2"), tmp_path))
        assert set(golden) <= set(ours)


def test_outputs_are_not_copied_from_the_goldens(shared, tmp_path):
    """With every golden output replaced by noise the results stay what they were."""
    import shutil

    from safetensors.torch import save_file

    source = shared("videocrafter2", "t2v_turbo_v2_tiny")
    shutil.copytree(source, tmp_path / "case", copy_function=shutil.copyfile)
    (tmp_path / "case").chmod(0o755)
    io = load_file(source / "io.safetensors")
    for path in (tmp_path / "case").iterdir():
        path.chmod(0o644)
    save_file(
        {k: torch.randn_like(v) if k.startswith("out.") else v for k, v in io.items()},
        tmp_path / "case" / "io.safetensors",
    )
    results = family.compute(tmp_path / "case")["io.safetensors"]

    torch.testing.assert_close(results["out.eps_motion_fps8"], io["out.eps_motion_fps8"], atol=2e-5, rtol=0)


def test_half_precision_embeds_something_else():
    """What the released pipeline feeds in bfloat16 is far from what was trained, except for zero."""
    w = torch.tensor([0.0, 0.05, 0.1])
    apart = (reference_samplers.half_embedding(w).float() - guidance_scale_embedding(w)).abs().amax(dim=1)

    assert apart[0] == 0
    assert (apart[1:] > 0.01).all()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    """No file, no result."""
    assert family.compute(tmp_path) == {}


@pytest.mark.parametrize("scaled", [True, False])
def test_the_publishers_sampler_inverts_a_perfect_network(scaled):
    """With the true noise as prediction, it returns the clean latents that the noise was added to."""
    alphas = torch.linspace(0.999, 0.01, 1000)
    tables = reference_samplers.Tables(alphas, 20, reference_samplers.scale_table() if scaled else None)
    x0, eps = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    last = tables.alphas[-1]
    z = last.sqrt() * tables.scale[-1] * x0 + (1 - last).sqrt() * eps
    latents = reference_samplers.sample(lambda z, t: eps, lambda z, t: eps, tables, z)
    first = tables.alphas_prev[0]

    torch.testing.assert_close(latents, first.sqrt() * tables.scale_prev[0] * x0 + (1 - first).sqrt() * eps)
