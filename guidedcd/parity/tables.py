"""Parity of the schedule, the solver grids, the samplers' timesteps and the DDIM steps."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.embeddings import guidance_scale_embedding
from guidedcd.diffusion.guidance import guided_from
from guidedcd.diffusion.sampler import lambda_applies, multistep_consistency_sampling, multistep_timesteps
from guidedcd.diffusion.schedule import SIGMA_DATA, TIMESTEP_SCALING, NoiseSchedule, to_x0_eps
from guidedcd.energies.inversion import inverse_step
from guidedcd.errors import GuidedCDError
from guidedcd.parity.inputs import Tensors

GRIDS, WIDTHS = (20, 25, 50, 100, 200), (7, 64, 256, 512)
"""Grids and embedding widths of a file of tables that names none."""


def tables(file: Tensors) -> dict[str, Tensor]:
    """Noise levels, grids, boundary scalings and guidance embeddings."""
    length = next((file.shape(key)[0] for key in file.keys if key.startswith(("alphas_cumprod", "betas"))), 1000)
    schedule = NoiseSchedule.scaled_linear(length)
    abar = schedule.alphas_cumprod
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, length, dtype=torch.float64) ** 2
    results: dict[str, Tensor] = {
        "alphas_cumprod_official_f32": abar,
        "alphas_cumprod_f64_ref": torch.cumprod(1 - betas, 0),
        "betas_official_f32": torch.linspace(0.00085**0.5, 0.012**0.5, length) ** 2,
    }
    for steps in _numbers(file, r"ddim(\d+)\.") or GRIDS:
        grid = schedule.grid(steps)
        results[f"ddim{steps}.timesteps"] = grid
        results[f"ddim{steps}.alphas_cumprod"] = abar[grid]
        results[f"ddim{steps}.alphas_cumprod_prev"] = abar[schedule.previous(grid, steps)].double()
    if "scalings.t" in file:
        t = results["scalings.t"] = file["scalings.t"]
        c_skip, c_out = schedule.boundary_conditions(t)
        scaled = t.double() * TIMESTEP_SCALING
        total = scaled**2 + SIGMA_DATA**2
        exact = {"c_skip": SIGMA_DATA**2 / total, "c_out": scaled / total.sqrt()}
        for name, value in (("c_skip", c_skip), ("c_out", c_out)):
            results[f"scalings.{name}_train_f32"] = results[f"scalings.{name}_sched_f32"] = value
            results[f"scalings.{name}_f64_ref"] = exact[name]
    if "emb.w" in file:
        w = results["emb.w"] = file["emb.w"]
        for dim in _numbers(file, r"emb\.dim(\d+)") or WIDTHS:
            results[f"emb.dim{dim}"] = guidance_scale_embedding(w, dim)
            results[f"emb.dim{dim}_f64_ref"] = guidance_scale_embedding(w, dim, torch.float64)
    return results


def trajectory(file: Tensors) -> dict[str, Tensor]:
    """The few-step sampler, with network outputs and noises from the file."""
    inputs = {key: file[key] for key in ("x_init", "model_outputs", "noises") if key in file}
    outputs = inputs["model_outputs"]
    named = re.search(r"steps(\d+)_origin(\d+)", file.name)
    if named:
        times = multistep_timesteps(int(named[1]), int(named[2]))
    elif "timesteps" in file:
        times = file["timesteps"].tolist()
    else:
        times = multistep_timesteps(len(outputs))
    predictions = iter(outputs)
    steps = list(
        multistep_consistency_sampling(
            lambda z, t: next(predictions),
            NoiseSchedule.scaled_linear(),
            inputs["x_init"],
            times,
            lambda i: inputs["noises"][i],
        )
    )
    return {
        **inputs,
        "timesteps": torch.tensor(times),
        "x_after_step": torch.stack([step.z for step in steps]),
        "denoised": torch.stack([step.denoised for step in steps]),
    }


def few_step_timesteps(golden: dict[str, Any]) -> dict[str, list[int]]:
    """The sampler's timesteps for every key "originO.stepsS"."""
    timesteps = {}
    for key in golden:
        origin, steps = (int(n) for n in _groups(r"origin(\d+)\.steps(\d+)", key))
        timesteps[key] = multistep_timesteps(steps, origin)
    return timesteps


def windows(golden: dict[str, Any]) -> dict[str, Any]:
    """Which steps are guided, by sampling step ("stepsS.pP") and by solver grid ("NN.pP")."""
    results: dict[str, Any] = {}
    if "inference" in golden:
        results["inference"] = {}
        for key in golden["inference"]:
            origin, steps, p = _groups(r"(?:origin(\d+)\.)?steps(\d+)\.p([-+.\de]+)", key)
            times = multistep_timesteps(int(steps), int(origin or 200))
            results["inference"][key] = [lambda_applies(t, float(p)) for t in times]
    if "thresholds" in golden:
        results["thresholds"] = {}
        for key in golden["thresholds"]:
            n, p = _groups(r"N(\d+)\.p([-+.\de]+)", key)
            steps, fraction = int(n), float(p)
            results["thresholds"][key] = {
                "train_first_guided_index": guided_from(fraction, steps),
                "preprocess_min_index": int(steps * (1 - fraction)),
                "sample_script_first_guided": next((i for i in range(steps) if i > steps - fraction * steps), steps),
            }
    return results


def ddim(file: Tensors) -> dict[str, Tensor]:
    """DDIM steps, inversion steps, noising and v-prediction, for every grid "NN" in the file."""
    schedule = NoiseSchedule.scaled_linear()
    results: dict[str, Tensor] = {}
    for steps in _numbers(file, r"N(\d+)\."):
        z, eps, index = (file[f"N{steps}.{key}"] for key in ("z_t", "eps", "index"))
        t = schedule.grid(steps)[index]
        before = schedule.previous(t, steps)
        x0, _ = schedule.to_x0_eps(z, eps, t)
        x0_v, eps_v = to_x0_eps(z, eps, *schedule.alpha_sigma(t), "v")
        values = {
            "z_t": z,
            "eps": eps,
            "index": index,
            "timesteps": t,
            "pred_x0": x0,
            "ddim_step": schedule.ddim_step(x0, eps, before),
            "ddim_reverse_step": inverse_step(schedule, z, eps, t, before),
            "add_noise": schedule.add_noise(z, eps, t),
            "pred_x0_v": x0_v,
            "pred_eps_v": eps_v,
        }
        results |= {f"N{steps}.{key}": value for key, value in values.items()}
    return results


def _groups(pattern: str, key: str) -> tuple[str | Any, ...]:
    """The groups of `pattern` in a key of a fixture, as `re.Match.groups` returns them.

    Raises:
        GuidedCDError: The key has another form.
    """
    match = re.fullmatch(pattern, key)
    if match is None:
        raise GuidedCDError(f"The key '{key}' does not have the form {pattern}.")
    return match.groups()


def _numbers(file: Tensors, pattern: str) -> list[int]:
    """The distinct numbers that follow a prefix in the file's keys."""
    return sorted({int(m[1]) for key in file.keys if (m := re.match(pattern, key))})
