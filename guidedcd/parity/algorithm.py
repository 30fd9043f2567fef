"""Parity of Algorithm 1: one guided step of the teacher, with its inversion, energies and gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.guidance import Rule, TeacherStep, guided_prediction, guided_step, noise_factor
from guidedcd.energies.inversion import invert
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.parity.attention import SCALE, energies, sorted_last, total
from guidedcd.parity.inputs import Tensors, TinyUNet

PTA = "temporal-attention:official"


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

        step = (schedule, TeacherStep(z, t, o_c, o_u, omega), t_next)
        x0, eps = guided_prediction(*step[:-1])
        cfg = guided_step(*step)

        def printed(strength: float) -> Tensor:
            return guided_step(*step, [(paper, torch.full_like(omega, strength))], Rule("paper-literal"))

        official = guided_step(*step, [(score, motion_gs)])
        # Equation 2 with the released coefficient and no noise factor, as the fixture defines it.
        plain = motion_gs / noise_factor(schedule, t, "official", z).flatten()
        eq2 = guided_step(*step, [(score, plain)], Rule("eps"))
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


def _module_names(unet: TinyUNet, teacher: LatentTeacher) -> dict[str, str]:
    """From diffusers module names of attentions to the lvdm ones."""
    from guidedcd.models.checkpoints.unet import lvdm_name

    suffix = ".to_q.weight"
    names = lvdm_name(unet.config)
    return {n.removesuffix(suffix): key.removesuffix(suffix) for n, key in names.items() if n.endswith(suffix)}
