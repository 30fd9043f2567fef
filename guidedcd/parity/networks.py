"""Parity of everything that runs the small UNet: forward passes, the training step, sampling."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.consistency import distance
from guidedcd.diffusion.embeddings import guidance_scale_embedding
from guidedcd.diffusion.guidance import TeacherStep, guided_prediction, guided_step, window
from guidedcd.diffusion.sampler import sample_steps
from guidedcd.errors import GuidedCDError
from guidedcd.models.guidance_inputs import set_fps
from guidedcd.models.student import Student
from guidedcd.parity.inputs import Tensors, TinyUNet


def forward(file: Tensors) -> dict[str, Tensor]:
    """Outputs (B, C, F, h, w) of teacher and student on every path of conditioning, and the inputs."""
    names = ("x", "timesteps", "context", "w", "motion_gs")
    results = {name: file[name] for name in names if name in file}
    x, t, cond = results["x"], results["timesteps"], {"prompt_embeds": results["context"]}
    unet = TinyUNet.find(file.path.parent)
    matches = {m for key in file.keys if (m := re.fullmatch(r"teacher_out_fps(\d+)(_f64)?", key))}
    rates = {(int(m[1]), bool(m[2])) for m in matches} or {(8, False), (16, False), (8, True)}
    for double in sorted({double for _, double in rates}):
        dtype = torch.float64 if double else torch.float32
        teacher = unet.teacher(dtype, 8, x.shape)
        for fps in sorted(fps for fps, d in rates if d is double):
            set_fps(teacher.network, fps)
            with torch.no_grad():
                results[f"teacher_out_fps{fps}{'_f64' * double}"] = teacher.net(x.to(dtype), t, cond)
    if unet.extra and "w" in results:
        student = unet.student(unet.teacher(torch.float32, 8, x.shape))
        w, lambdas = results["w"], results["motion_gs"][:, None]
        results |= {"w_emb": guidance_scale_embedding(w), "motion_emb": guidance_scale_embedding(lambdas[:, 0])}
        with torch.no_grad():
            results["student_out_w_motion"] = student(x, t, cond, w, lambdas)
            results["student_out_w_only"] = student(x, t, cond, w)
            results["student_out_nocond"] = student(x, t, cond)
    return results


def cd_step(file: Tensors, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """One training step on stored samples: (tensors, numbers, gradient norms by loss)."""
    option = options.get
    results = {key: file[key] for key in file.keys if key.startswith("batch.") or key == "u01"}
    batch = {key.removeprefix("batch."): v.float() if v.is_floating_point() else v for key, v in results.items()}
    steps = int(option("N", _number(r"_(\d+)$", file.path.stem, 200)))
    index, z = batch["index"], batch["z_t"]
    cond = {"prompt_embeds": batch["prompt_emb"]}
    flags = batch.get("use_motion_guide", torch.ones_like(index)).bool()
    low, high = float(option("w_min", 5.0)), float(option("w_max", 15.0))

    unet = TinyUNet.find(file.path.parent)
    teacher = unet.teacher(torch.float32, int(option("fps", 8)), z.shape)
    schedule = teacher.schedule
    t = schedule.grid(steps)[index]
    t_next = (t - int(option("topk", len(schedule) // steps))).clamp(min=0)
    omega = (high - low) * batch["u01"] + low
    guided = window(index, steps, float(option("percentage", 0.5))) & flags
    motion_gs = float(option("motion_gs", 0.05)) * guided.float()
    step = (schedule, TeacherStep(z, t, batch["cond_teacher_out"], batch["uncond_teacher_out"], omega))
    terms = [(batch["score"], motion_gs)] if "score" in batch else []
    x0_cfg, eps_cfg = guided_prediction(*step)
    z_next = guided_step(*step, schedule.previous(t, steps), terms)
    skip_start, out_start = schedule.boundary_conditions(t)
    skip, out = schedule.boundary_conditions(t_next)
    results |= {
        "w": omega,
        "w_embedding": guidance_scale_embedding(omega),
        "motion_gs": motion_gs,
        "start_timesteps": t,
        "timesteps": t_next,
        "c_skip_start": skip_start,
        "c_out_start": out_start,
        "c_skip": skip,
        "c_out": out,
        "pred_x0_cfg": x0_cfg,
        "pred_noise_cfg": eps_cfg,
        "pred_noise_guided": guided_prediction(*step, terms)[1],
        "x_prev": z_next,
    }
    lambdas = None
    if option("use_motion_cond", True) and "motion_cond_proj.weight" in unet.extra:
        lambdas = motion_gs[:, None]
        results["motion_embedding"] = guidance_scale_embedding(motion_gs)
    numbers: dict[str, Any] = {key: options[key] for key in options if not isinstance(options[key], dict)}
    norms: dict[str, Any] = {}
    # The optimiser moves the weights after the Huber loss, so that one comes last.
    for loss in ("l2", "huber"):
        student = unet.student(teacher)
        outputs: list[Tensor] = []

        def predict(*args: Any, student: Student = student, outputs: list[Tensor] = outputs) -> Tensor:
            outputs.append(student(*args))
            return outputs[-1]

        points = (z, t, z_next, t_next, cond, omega, lambdas)
        value, f = distance(predict, schedule, *points, loss=loss, huber_c=float(option("huber_c", 1e-3)))
        value.backward()
        results |= {"noise_pred": outputs[0].detach(), "model_pred": f.detach(), "target_noise_pred": outputs[1]}
        results["target"] = schedule.consistency(z_next, outputs[1], t_next)
        names = unet.originals(student)
        # Clipping scales gradients in place, so they are copied.
        grads = {names[n]: p.grad.clone() for n, p in student.network.named_parameters() if p.grad is not None}
        norms[loss] = {key: float(grads[key].double().norm()) for key in names.values() if key in grads}
        numbers[loss] = _norms(value.detach(), norms[loss], [key for key in names.values() if key not in grads])
        results |= _recorded(file, f"grad_{loss}.", {k: g.reshape(unet.all[k].shape) for k, g in grads.items()})
    after = _after_step(student, {names[n]: p for n, p in student.network.named_parameters()}, options)
    results |= _recorded(file, "param_after_adamw_step.", {k: p.reshape(unet.all[k].shape) for k, p in after.items()})
    return results, numbers, norms


def sampling(file: Tensors, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The few-step sampler from noise to clean latents: (tensors, numbers)."""
    results = {key: file[key] for key in ("latents", "prompt_embeds", "noises") if key in file}
    latents, option = results["latents"], options.get
    steps = int(option("steps", _number(r"^steps(\d+)", file.path.stem, 4)))
    unet = TinyUNet.find(file.path.parent)
    teacher = unet.teacher(torch.float32, int(option("fps", 8)), latents.shape)
    student = unet.student(teacher)
    strengths: list[float | None] = []

    def predict(z: Tensor, t: Tensor, cond: dict[str, Tensor], omega: Tensor, lambdas: Tensor | None) -> Tensor:
        strengths.append(None if lambdas is None else float(lambdas.abs().max()))
        return student(z, t, cond, omega, lambdas)

    done = list(
        sample_steps(
            predict,
            teacher,
            {"prompt_embeds": results["prompt_embeds"]},
            latents,
            steps,
            float(option("w", 7.5)),
            [float(option("motion_gs", 0.05))] if option("use_motion_cond", True) else None,
            float(option("percentage", 0.5)),
            noises=results.get("noises"),
            origin=int(option("origin", 200)),
        )
    )
    results |= {
        "model_outputs": torch.stack([step.output for step in done]),
        "denoised": torch.stack([step.denoised for step in done]),
        "x_after_step": torch.stack([step.z for step in done]),
        "result": done[-1].denoised,
    }
    numbers = {key: value for key, value in options.items() if not isinstance(value, list)}
    numbers |= {
        "timesteps": [step.t for step in done],
        "motion_lambda_nonzero": [None if value is None else value != 0 for value in strengths],
        "n_noise_draws": steps if steps > 1 else 0,
    }
    return results, numbers


def _number(pattern: str, name: str, default: int) -> int:
    """The number that `pattern` matches in the name of a fixture, `default` where it does not match."""
    match = re.search(pattern, name)
    return int(match[1]) if match else default


def _norms(loss: Tensor, norms: dict[str, float], without: list[str]) -> dict[str, Any]:
    groups = {"temporal": 0.0, "other": 0.0}
    for key, value in norms.items():
        groups["temporal" if is_temporal(key) else "other"] += value**2
    return {
        "loss": float(loss),
        "total_grad_norm": math.sqrt(sum(value**2 for value in norms.values())),
        "group_norm": {name: math.sqrt(value) for name, value in groups.items()},
        "params_without_grad": without,
    }


def is_temporal(key: str) -> bool:
    """Whether the released optimiser counts an lvdm key as temporal; it excludes the middle block's transformer."""
    parts = key.split(".")
    return parts[0] == "init_attn" or (parts[0] in ("input_blocks", "output_blocks") and parts[2] == "2")


def _recorded(file: Tensors, prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values that the file has under `prefix`, or all of them where it has none."""
    names = [key.removeprefix(prefix) for key in file.keys if key.startswith(prefix)]
    missing = [key for key in names if key not in values]
    if missing:
        raise GuidedCDError(f"{file.path}: no gradient or weight is called {', '.join(missing)}.")
    return {prefix + key: values[key].detach() for key in names or values}


def _after_step(student: Student, parameters: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """The weights by lvdm key, after clipping of the gradients and one step of AdamW."""
    torch.nn.utils.clip_grad_norm_(student.trainable, float(options.get("max_grad_norm", 1.0)))
    rate = float(options.get("lr", 1e-5))
    torch.optim.AdamW(student.trainable, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()
    return parameters
