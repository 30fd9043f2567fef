"""Parity of everything that runs the small UNet: forward passes, Algorithm 1, the training step, sampling."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.conditioning import set_fps
from guidedcd.distil import distance
from guidedcd.errors import GuidedCDError
from guidedcd.guidance import guided_prediction, guided_step, noise_factor, window
from guidedcd.parity.attention import SCALE, energies, sorted_last, total
from guidedcd.parity.inputs import Tensors, TinyUNet
from guidedcd.references import invert
from guidedcd.sample import sample_steps
from guidedcd.student import Student, guidance_scale_embedding
from guidedcd.teachers.protocol import LatentTeacher

PTA = "temporal-attention:official"


def forward(file: Tensors) -> dict[str, Tensor]:
    """Teacher and student outputs, on every conditioning path."""
    names = ("x", "timesteps", "context", "w", "motion_gs")
    found = {name: file[name] for name in names if name in file}
    x, t, cond = found["x"], found["timesteps"], {"prompt_embeds": found["context"]}
    unet = TinyUNet.find(file.path.parent)
    asked = {m for key in file.keys if (m := re.fullmatch(r"teacher_out_fps(\d+)(_f64)?", key))}
    rates = {(int(m[1]), bool(m[2])) for m in asked} or {(8, False), (16, False), (8, True)}
    for double in sorted({double for _, double in rates}):
        dtype = torch.float64 if double else torch.float32
        teacher = unet.teacher(dtype, 8, x.shape)
        for fps in sorted(fps for fps, d in rates if d is double):
            set_fps(teacher.network, fps)
            with torch.no_grad():
                found[f"teacher_out_fps{fps}{'_f64' * double}"] = teacher.net(x.to(dtype), t, cond)
    if unet.extra and "w" in found:
        student = unet.student(unet.teacher(torch.float32, 8, x.shape))
        w, lambdas = found["w"], found["motion_gs"][:, None]
        found |= {"w_emb": guidance_scale_embedding(w), "motion_emb": guidance_scale_embedding(lambdas[:, 0])}
        with torch.no_grad():
            found["student_out_w_motion"] = student(x, t, cond, w, lambdas)
            found["student_out_w_only"] = student(x, t, cond, w)
            found["student_out_nocond"] = student(x, t, cond)
    return found


class Algorithm1:
    """One guided teacher step with DDIM inversion, as released and as printed, in one precision."""

    def __init__(self, inputs: Tensors, options: dict[str, Any], dtype: torch.dtype) -> None:
        """Read the inputs; `options` are the settings of the run."""
        self.options, self.dtype = options, dtype
        self.z0, self.noise, c, u = (
            inputs[key].to(dtype) for key in ("latents", "noise", "prompt_embeds", "uncond_prompt_embeds")
        )
        self.unet = TinyUNet.find(inputs.path.parent)
        self.cond, self.null = {"prompt_embeds": c}, {"prompt_embeds": u}
        self.teacher = self.unet.teacher(dtype, int(options.get("fps", 8)), self.z0.shape)
        self.schedule = self.teacher.schedule
        self.names = _module_names(self.unet, self.teacher)

    def maps(self, z: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's output and, by lvdm name, the attention maps ((B h w) heads, F, F)."""
        seen = self.teacher.seen(z, t, self.cond, (PTA,))
        return seen.output, {self.names[name]: maps.flatten(0, 1) for name, maps in seen.records[PTA].items()}

    def energy(self, z: Tensor, t: Tensor, reference: dict[str, Tensor]) -> float:
        """The released energy of `z` at `t`."""
        with torch.no_grad():
            masks = {name: sorted_last(maps) for name, maps in reference.items()}
            return float(total(energies(self.maps(z, t)[1], reference, masks)[0]))

    def run(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """(tensors, numbers, attention maps)."""
        option = self.options.get
        steps, index = int(option("N", 20)), int(option("index", 10))
        batch, schedule = self.z0.shape[0], self.schedule
        t = schedule.grid(steps)[index].expand(batch)
        t_next = schedule.previous(t, steps)
        omega = torch.full((batch,), float(option("omega", 7.5)), dtype=self.dtype)
        motion_gs = torch.full((batch,), float(option("motion_gs", 0.05)), dtype=self.dtype)
        squared = float(option("temp_loss_scale", SCALE)) / SCALE  # 1 unless a fixture says otherwise

        z = schedule.add_noise(self.z0, self.noise, t)
        path = [latents for _, latents in invert(self.teacher, self.z0, self.cond, steps, index)]
        z_ref, z_ref_prev = path[-1], path[-2] if index else self.z0
        with torch.no_grad():
            o_u = self.teacher.net(z, t, self.null)
            reference = self.maps(z_ref, t)[1]
        leaf = z.clone().requires_grad_(True)
        output, maps = self.maps(leaf, t)
        masks = {name: sorted_last(r) for name, r in reference.items()}
        ties = {name: r >= r.amax(dim=-1, keepdim=True) for name, r in reference.items()}
        means, _ = energies(maps, reference, masks)
        _, sums = energies(maps, reference, ties)
        energy, paper_energy = total(means) * squared, sum(sums.values())
        (score,) = torch.autograd.grad(energy, leaf, retain_graph=True)
        (paper,) = torch.autograd.grad(paper_energy, leaf)
        o_c, maps = output.detach(), {name: v.detach() for name, v in maps.items()}
        means, sums = ({name: float(v.detach()) for name, v in each.items()} for each in (means, sums))

        step = (schedule, z, o_c, o_u, omega, t, t_next)
        x0, eps = guided_prediction(*step[:-1])
        cfg = guided_step(*step)

        def printed(strength: float) -> Tensor:
            return guided_step(*step, [(paper, torch.full_like(omega, strength))], "paper-literal")

        official = guided_step(*step, [(score, motion_gs)])
        # Equation 2 with the released coefficient and no noise factor, as the fixture defines it.
        plain = motion_gs / noise_factor(schedule, t, "official", z).flatten()
        eq2 = guided_step(*step, [(score, plain)], "eps")
        large, small = float(option("lambda_paper_literal", 500.0)), float(option("lambda_paper_small", 0.01))
        tensors = {
            "index": torch.full((batch,), index),
            "start_timestep": t,
            "end_timestep": t_next,
            "z_t": z,
            "inversion_trajectory": torch.stack(path),
            "z_ref": z_ref,
            "z_ref_prev": z_ref_prev,
            "cond_teacher_out": o_c,
            "uncond_teacher_out": o_u,
            "score_official": score,
            "grad_paper_energy": paper,
            "pred_x0_cfg": x0,
            "pred_noise_cfg": eps,
            "zhat_cfg": cfg,
            "zhat_official": official,
            "zhat_paper_plus_lambda_literal": printed(large),
            "zhat_paper_plus_lambda_small": printed(small),
            "zhat_paper_minus_lambda_small": printed(-small),
            "zhat_eq2_full_plus_official_score": eq2,
        }
        abar = schedule.alphas_cumprod.double()
        numbers = {
            **{key: self.options[key] for key in self.options if key in _SETTINGS},
            "start_timestep": int(t[0]),
            "end_timestep": int(t_next[0]),
            "skip_timesteps": len(schedule) // steps,
            "official_energy": float(energy.detach()),
            "official_mse_per_layer": means,
            "paper_energy_sum": float(paper_energy.detach()),
            "paper_energy_per_layer": sums,
            "score_l2": float(score.norm()),
            "grad_paper_l2": float(paper.norm()),
            "official_minus_cfg_l2": float((official - cfg).norm()),
            "effective_coefficient_on_score_in_zhat": -float(motion_gs[0])
            * math.sqrt(1 - abar[t_next[0]])
            * math.sqrt(1 - math.sqrt(abar[t[0]])),
        }
        with torch.no_grad():
            reference_next = self.maps(z_ref_prev, t_next)[1]
        unguided = squared * self.energy(cfg, t_next, reference_next)
        numbers["sign_test"] = {}
        for name in self.options.get("sign_test") or ("motion_gs_x1", "motion_gs_x0.01", "motion_gs_x1e-4"):
            scale = float(name.rpartition("_x")[2])
            d, d2 = scale * (official - cfg), scale * (eq2 - cfg)
            moved = {"official_minus": cfg + d, "eq8_plus_same_size": cfg - d, "eq2_full_plus": cfg + d2}
            shifted = {"z_t": z, "official_direction": z + d, "opposite": z - d, "eq2_full_plus_direction": z + d2}
            at_next = {key: squared * self.energy(v, t_next, reference_next) for key, v in moved.items()}
            numbers["sign_test"][name] = {
                "at_tn": {"unguided": unguided, **at_next},
                "at_t": {key: squared * self.energy(v, t, reference) for key, v in shifted.items()},
                "first_order_prediction_at_t": float((score * d).sum()),
                "first_order_eq2_full": float((score * d2).sum()),
            }
        attention = {f"attn_ref.{name}": v for name, v in reference.items()}
        attention |= {f"attn_gen.{name}": v for name, v in maps.items()}
        return tensors, numbers, attention


_SETTINGS = ("N", "index", "fps", "omega", "motion_gs", "temp_loss_scale", "dtype")
_SETTINGS += ("lambda_paper_literal", "lambda_paper_small")


def algorithm1(folder: Path, inputs: Tensors, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every run "golden_f32", "golden_f64" by its settings."""
    found: dict[str, Any] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, options in runs.items():
        short = "f64" if "64" in str(options.get("dtype", name)) else "f32"
        dtype = {"f64": torch.float64, "f32": torch.float32}[short]
        tensors[name], numbers, attention = Algorithm1(inputs, options, dtype).run()
        found |= {f"{name}.safetensors": tensors[name], f"{name}.json": numbers}
        recorded = f"attention_{short}run.safetensors"
        if short == "f64" or (folder / recorded).exists():
            found[recorded] = {key: value.float() for key, value in attention.items()}
    both = {name.replace("64", "32"): name for name in runs if "64" in name and name.replace("64", "32") in runs}
    for single, double in both.items():
        floats = (key for key, value in tensors[double].items() if value.is_floating_point())
        found[f"{double}.json"]["max_abs_f32_minus_f64"] = {
            key: float((tensors[single][key].double() - tensors[double][key]).abs().max()) for key in floats
        }
    return found


def cd_step(file: Tensors, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """One training step on stored samples: (tensors, numbers, gradient norms by loss)."""
    option = options.get
    found = {key: file[key] for key in file.keys if key.startswith("batch.") or key == "u01"}
    batch = {key.removeprefix("batch."): v.float() if v.is_floating_point() else v for key, v in found.items()}
    numbered = re.search(r"_(\d+)$", file.path.stem)
    steps = int(option("N", numbered[1] if numbered else 200))
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
    step = (schedule, z, batch["cond_teacher_out"], batch["uncond_teacher_out"], omega, t)
    terms = [(batch["score"], motion_gs)] if "score" in batch else []
    x0_cfg, eps_cfg = guided_prediction(*step)
    z_next = guided_step(*step, schedule.previous(t, steps), terms)
    skip_start, out_start = schedule.boundary(t)
    skip, out = schedule.boundary(t_next)
    found |= {
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
        found["motion_embedding"] = guidance_scale_embedding(motion_gs)
    numbers: dict[str, Any] = {key: options[key] for key in options if not isinstance(options[key], dict)}
    norms: dict[str, Any] = {}
    # The optimiser moves the weights after the Huber loss, so that one comes last.
    for loss in ("l2", "huber"):
        student = unet.student(teacher)
        said: list[Tensor] = []

        def speak(*args: Any, student: Student = student, said: list[Tensor] = said) -> Tensor:
            said.append(student(*args))
            return said[-1]

        value, f = distance(
            speak,
            schedule,
            z,
            t,
            z_next,
            t_next,
            cond,
            omega,
            lambdas,
            loss=loss,
            huber_c=float(option("huber_c", 1e-3)),
        )
        value.backward()
        found |= {"noise_pred": said[0].detach(), "model_pred": f.detach(), "target_noise_pred": said[1]}
        found["target"] = schedule.consistency(z_next, said[1], t_next)
        names = unet.originals(student)
        # Clipping scales gradients in place, so they are copied.
        grads = {names[n]: p.grad.clone() for n, p in student.network.named_parameters() if p.grad is not None}
        norms[loss] = {key: float(grads[key].double().norm()) for key in names.values() if key in grads}
        numbers[loss] = _norms(value.detach(), norms[loss], [key for key in names.values() if key not in grads])
        found |= _chosen(file, f"grad_{loss}.", {k: g.reshape(unet.all[k].shape) for k, g in grads.items()})
    after = _after_step(student, {names[n]: p for n, p in student.network.named_parameters()}, options)
    found |= _chosen(file, "param_after_adamw_step.", {k: p.reshape(unet.all[k].shape) for k, p in after.items()})
    return found, numbers, norms


def sampling(file: Tensors, options: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The few-step sampler end to end."""
    found = {key: file[key] for key in ("latents", "prompt_embeds", "noises") if key in file}
    latents, option = found["latents"], options.get
    numbered = re.match(r"steps(\d+)", file.path.stem)
    steps = int(option("steps", numbered[1] if numbered else 4))
    unet = TinyUNet.find(file.path.parent)
    teacher = unet.teacher(torch.float32, int(option("fps", 8)), latents.shape)
    student = unet.student(teacher)
    told: list[float | None] = []

    def say(z: Tensor, t: Tensor, cond: dict[str, Tensor], omega: Tensor, lambdas: Tensor | None) -> Tensor:
        told.append(None if lambdas is None else float(lambdas.abs().max()))
        return student(z, t, cond, omega, lambdas)

    done = list(
        sample_steps(
            say,
            teacher,
            {"prompt_embeds": found["prompt_embeds"]},
            latents,
            steps,
            float(option("w", 7.5)),
            [float(option("motion_gs", 0.05))] if option("use_motion_cond", True) else None,
            float(option("percentage", 0.5)),
            noises=found.get("noises"),
            origin=int(option("origin", 200)),
        )
    )
    found |= {
        "model_outputs": torch.stack([step.output for step in done]),
        "denoised": torch.stack([step.denoised for step in done]),
        "x_after_step": torch.stack([step.z for step in done]),
        "result": done[-1].denoised,
    }
    numbers = {key: value for key, value in options.items() if not isinstance(value, list)}
    numbers |= {
        "timesteps": [step.t for step in done],
        "motion_lambda_nonzero": [None if value is None else value != 0 for value in told],
        "n_noise_draws": steps if steps > 1 else 0,
    }
    return found, numbers


def _module_names(unet: TinyUNet, teacher: LatentTeacher) -> dict[str, str]:
    """From diffusers module names of attentions to the lvdm ones."""
    from guidedcd.checkpoints.videocrafter2 import lvdm_name

    suffix = ".to_q.weight"
    names = lvdm_name(unet.config)
    return {n.removesuffix(suffix): key.removesuffix(suffix) for n, key in names.items() if n.endswith(suffix)}


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
    """Whether the released optimiser puts an lvdm key into its group of temporal transformers (not the middle one)."""
    parts = key.split(".")
    return parts[0] == "init_attn" or (parts[0] in ("input_blocks", "output_blocks") and parts[2] == "2")


def _chosen(file: Tensors, prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values that the file names under `prefix`, or all of them when it names none."""
    asked = [key.removeprefix(prefix) for key in file.keys if key.startswith(prefix)]
    missing = [key for key in asked if key not in values]
    if missing:
        raise GuidedCDError(f"{file.path}: no gradient or weight called {', '.join(missing)}.")
    return {prefix + key: values[key].detach() for key in asked or values}


def _after_step(student: Student, parameters: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """The weights after clipping and one AdamW step, by lvdm key."""
    torch.nn.utils.clip_grad_norm_(student.trainable, float(options.get("max_grad_norm", 1.0)))
    rate = float(options.get("lr", 1e-5))
    torch.optim.AdamW(student.trainable, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0).step()
    return parameters
