"""Parity of the released schedules and samplers: tables, timestep grids, and trajectories on recorded outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.embeddings import guidance_scale_embedding
from guidedcd.diffusion.sampler import multistep_consistency_sampling, multistep_timesteps
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.guidance_inputs import FpsEmbedding
from guidedcd.parity import reference_samplers
from guidedcd.parity.inputs import Tensors

START, END, STEPS = 0.00085, 0.012, 1000


def schedules(file: Tensors) -> dict[str, Tensor]:
    """Every tensor of a `schedules.safetensors`, inputs included."""
    schedule = NoiseSchedule.scaled_linear(STEPS, START, END)
    exact = torch.linspace(START**0.5, END**0.5, STEPS, dtype=torch.float64) ** 2
    cumprod = torch.cumprod(1 - exact, dim=0)
    scale = reference_samplers.scale_table()
    results = {
        "lvdm.betas_f64": exact,
        "lvdm.alphas_cumprod_f64": cumprod,
        "lvdm.alphas_cumprod_f32": cumprod.float(),
        "lvdm.scale_arr_f32": scale,
        "turbo.betas_f32": torch.linspace(START**0.5, END**0.5, STEPS) ** 2,
        "turbo.alphas_cumprod_f32": schedule.alphas_cumprod,
    }
    if "guidance_embedding.w" in file:
        w = results["guidance_embedding.w"] = file["guidance_embedding.w"]
        for width in _numbers(file, r"guidance_embedding\.dim(\d+)") or [256]:
            results[f"guidance_embedding.dim{width}"] = guidance_scale_embedding(w, width)
    if "sinusoid.t" in file:
        t = results["sinusoid.t"] = file["sinusoid.t"]
        for width in _numbers(file, r"sinusoid\.dim(\d+)") or [320]:
            results[f"sinusoid.dim{width}"] = FpsEmbedding(width, 1).time_proj(t)
    for name in _names(file, r"turbo\.step\d+_\d+"):
        results |= _trajectory(file, name, schedule)
    for name in _names(file, r"solver\d+"):
        results |= _solver(file, name, schedule)
    for name in _names(file, r"vc2_ddim\d+_(?:no)?scale"):
        results |= _ddim(file, name, cumprod.float(), scale)
    return results


def schedules_json(golden: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a `schedules.json` for the grids and timesteps that its keys name."""
    schedule = NoiseSchedule.scaled_linear(STEPS, START, END)
    exact = torch.cumprod(1 - torch.linspace(START**0.5, END**0.5, STEPS, dtype=torch.float64) ** 2, dim=0).float()
    grids = {
        key: multistep_timesteps(*(int(n) for n in re.findall(r"\d+", key)))
        for key in golden.get("turbo_timesteps", {})
    }
    boundary = {}
    for key in golden.get("boundary_scalings_ts10", {}):
        c_skip, c_out = schedule.boundary_conditions(torch.tensor([int(key)]))
        boundary[key] = [float(c_skip), float(c_out)]
    ddim = {
        key: reference_samplers.Tables(schedule.alphas_cumprod, int(key)).timesteps.tolist()
        for key in golden.get("vc2_ddim_timesteps", {})
    }
    return {
        "turbo_minus_lvdm_alphas_cumprod_maxabs": float((schedule.alphas_cumprod - exact).abs().max()),
        "alphas_cumprod_samples": {
            key: float(schedule.alphas_cumprod[int(key)]) for key in golden.get("alphas_cumprod_samples", {})
        },
        "turbo_timesteps": grids,
        "boundary_scalings_ts10": boundary,
        "vc2_ddim_timesteps": ddim,
    }


def _trajectory(file: Tensors, name: str, schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The few-step sampler, with network outputs and noises from the file."""
    steps, origin = (int(n) for n in re.findall(r"\d+", name))
    timesteps = multistep_timesteps(steps, origin)
    predictions = {i: file[f"{name}.{i}.model_output"] for i in range(steps)}
    outputs = iter(predictions.values())
    noises = {i: file[f"{name}.{i}.noise"] for i in range(steps) if f"{name}.{i}.noise" in file}
    results = {f"{name}.x_init": file[f"{name}.x_init"]}
    results |= {f"{name}.{i}.model_output": value for i, value in predictions.items()}
    results |= {f"{name}.{i}.noise": value for i, value in noises.items()}
    run = multistep_consistency_sampling(
        lambda z, t: next(outputs), schedule, results[f"{name}.x_init"], timesteps, noises.__getitem__
    )
    for i, step in enumerate(run):
        results[f"{name}.{i}.denoised"], results[f"{name}.{i}.prev_sample"] = step.denoised, step.z
    return results


def _solver(file: Tensors, name: str, schedule: NoiseSchedule) -> dict[str, Tensor]:
    """Tables of the training solver "solverN", and one of its steps."""
    steps = int(name.removeprefix("solver"))
    grid = schedule.grid(steps)
    before = schedule.previous(grid, steps)
    results = {
        f"{name}.timesteps": grid,
        f"{name}.alphas_cumprod": schedule.alphas_cumprod[grid],
        f"{name}.alphas_cumprod_prev": schedule.alphas_cumprod[before].double(),
    }
    if f"{name}.step.x0" in file:
        inputs = {key: file[f"{name}.step.{key}"] for key in ("x0", "eps", "index")}
        results |= {f"{name}.step.{key}": value for key, value in inputs.items()}
        results[f"{name}.step.x_prev"] = schedule.ddim_step(inputs["x0"], inputs["eps"], before[inputs["index"]])
    return results


def _ddim(file: Tensors, name: str, alphas_cumprod: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """VideoCrafter's sampler on eps(x, t, c) = 0.6 x + c cos(t / 100), c = 0.3 and -0.1, guidance scale 12."""
    steps, suffix = name.removeprefix("vc2_ddim").split("_")
    scaled = suffix == "scale"
    tables = reference_samplers.Tables(alphas_cumprod, int(steps), scale if scaled else None)
    start = file[f"{name}.x_T"]

    def network(c: float) -> Callable[[Tensor, int], Tensor]:
        return lambda z, t: 0.6 * z + c * math.cos(t / 100)

    results = {
        f"{name}.x_T": start,
        f"{name}.alphas": tables.alphas,
        f"{name}.alphas_prev": tables.alphas_prev,
        f"{name}.sample": reference_samplers.sample(network(0.3), network(-0.1), tables, start).float(),
    }
    if scaled:
        results |= {f"{name}.scale": tables.scale, f"{name}.scale_prev": tables.scale_prev}
    return results


def _numbers(file: Tensors, pattern: str) -> list[int]:
    return sorted({int(m[1]) for key in file.keys if (m := re.fullmatch(pattern, key))})


def _names(file: Tensors, pattern: str) -> list[str]:
    return sorted({m[0] for key in file.keys if (m := re.match(pattern, key))})
