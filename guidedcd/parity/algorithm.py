"""Parity of Algorithm 1: one guided step of the teacher, with its inversion, energies and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from guidedcd.diffusion.guidance import OFFICIAL, Rule, TeacherStep, guided_prediction, guided_step, noise_factor
from guidedcd.diffusion.seen import Seen
from guidedcd.energies.gradients import EnergyTerm, energy_gradients
from guidedcd.energies.inversion import invert
from guidedcd.models.teachers.latent import LatentTeacher
from guidedcd.parity.attention import SCALE, energies, printed_total, released_total, sorted_last
from guidedcd.parity.inputs import Tensors, TinyUNet

PTA = "temporal-attention:official"
_SETTINGS = (
    "N",
    "index",
    "fps",
    "omega",
    "motion_gs",
    "temp_loss_scale",
    "dtype",
    "lambda_paper_literal",
    "lambda_paper_small",
)
"""Settings of a run that its file of numbers repeats."""


@attrs.frozen
class Gradients:
    """Both attention energies of the latents z_t against the reference, and their gradients; all detached."""

    output: Tensor
    """The teacher's conditional prediction (B, C, F, h, w)."""
    maps: dict[str, Tensor]
    """Attention maps ((B h w) heads, F, F) of z_t by lvdm name."""
    means: dict[str, float]
    """The mean squared difference of each layer, as released."""
    sums: dict[str, float]
    """The sum of squared differences of each layer, as printed."""
    released: float
    printed: float
    released_gradient: Tensor
    """Of the released energy with respect to z_t, same shape."""
    printed_gradient: Tensor


class MapEnergy:
    """An energy of attention maps, over the whole batch; keeps the values of its last call, detached.

    Args:
        recorded: The maps of a forward pass by layer.
        compute: From these maps (the share of each layer, the energy), scalars.
    """

    needs = (PTA,)

    def __init__(
        self,
        recorded: Callable[[Seen], dict[str, Tensor]],
        compute: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], Tensor]],
    ) -> None:
        self.recorded, self.compute = recorded, compute
        self.maps: dict[str, Tensor] = {}
        self.layers: dict[str, float] = {}
        self.total = math.nan

    def __call__(self, seen: Seen, reference: None) -> Tensor:
        """The energy of the batch in the first row (B,), zero in the others: their sum is the energy."""
        maps = self.recorded(seen)
        layers, total = self.compute(maps)
        self.maps = {name: each.detach() for name, each in maps.items()}
        self.layers = {name: float(each.detach()) for name, each in layers.items()}
        self.total = float(total.detach())
        return torch.nn.functional.pad(total.reshape(1), (0, seen.z.shape[0] - 1))


class Algorithm1:
    """One guided teacher step with DDIM inversion, as released and as printed, in one precision.

    Args:
        inputs: Clean latents, noise (B, C, F, h, w) and the embeddings of both prompts (B, L, D).
        options: Settings of the run; the released ones where it has none.
        dtype: Of the network, the latents and all results.
    """

    def __init__(self, inputs: Tensors, options: dict[str, Any], dtype: torch.dtype) -> None:
        self.options = options
        self.z0, self.noise, cond, uncond = (
            inputs[key].to(dtype) for key in ("latents", "noise", "prompt_embeds", "uncond_prompt_embeds")
        )
        self.unet = TinyUNet.find(inputs.path.parent)
        self.cond, self.uncond = {"prompt_embeds": cond}, {"prompt_embeds": uncond}
        self.teacher = self.unet.teacher(dtype, int(options.get("fps", 8)), self.z0.shape)
        self.schedule = self.teacher.schedule
        self.names = _module_names(self.unet, self.teacher)

        batch = self.z0.shape[0]
        self.steps, self.index = int(options.get("N", 20)), int(options.get("index", 10))
        self.t = self.schedule.grid(self.steps)[self.index].expand(batch)
        self.t_next = self.schedule.previous(self.t, self.steps)
        self.omega = torch.full((batch,), float(options.get("omega", 7.5)), dtype=dtype)
        self.motion_gs = torch.full((batch,), float(options.get("motion_gs", 0.05)), dtype=dtype)
        self.scale = float(options.get("temp_loss_scale", SCALE)) / SCALE  # 1 unless a fixture has another one

    def maps(self, z: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's output and, by lvdm name, the attention maps ((B h w) heads, F, F)."""
        seen = self.teacher.seen(z, t, self.cond, (PTA,))
        return seen.output, self.recorded(seen)

    def recorded(self, seen: Seen) -> dict[str, Tensor]:
        """By lvdm name, the attention maps ((B h w) heads, F, F) of a forward pass."""
        return {self.names[name]: maps.flatten(0, 1) for name, maps in seen.records[PTA].items()}

    def energy(self, z: Tensor, t: Tensor, reference: dict[str, Tensor]) -> float:
        """The released energy of `z` at `t`."""
        with torch.no_grad():
            masks = {name: sorted_last(maps) for name, maps in reference.items()}
            return self.scale * float(released_total(energies(self.maps(z, t)[1], reference, masks)[0]))

    def run(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
        """(tensors, numbers, attention maps)."""
        z = self.schedule.add_noise(self.z0, self.noise, self.t)
        trajectory = [latents for _, latents in invert(self.teacher, self.z0, self.cond, self.steps, self.index)]
        z_ref, z_ref_prev = trajectory[-1], trajectory[-2] if self.index else self.z0
        with torch.no_grad():
            o_u = self.teacher.net(z, self.t, self.uncond)
            reference = self.maps(z_ref, self.t)[1]
            reference_next = self.maps(z_ref_prev, self.t_next)[1]
        gradients = self.gradients(z, reference)
        steps = self.guided_steps(TeacherStep(z, self.t, gradients.output, o_u, self.omega), gradients)
        tensors = {
            "index": torch.full((len(z),), self.index),
            "start_timestep": self.t,
            "end_timestep": self.t_next,
            "z_t": z,
            "inversion_trajectory": torch.stack(trajectory),
            "z_ref": z_ref,
            "z_ref_prev": z_ref_prev,
            "cond_teacher_out": gradients.output,
            "uncond_teacher_out": o_u,
            "score_official": gradients.released_gradient,
            "grad_paper_energy": gradients.printed_gradient,
            **steps,
        }
        numbers = self.numbers(gradients, steps)
        numbers["sign_test"] = self.sign_test(z, gradients.released_gradient, steps, reference, reference_next)
        attention = {f"attn_ref.{name}": maps for name, maps in reference.items()}
        attention |= {f"attn_gen.{name}": maps for name, maps in gradients.maps.items()}
        return tensors, numbers, attention

    def gradients(self, z: Tensor, reference: dict[str, Tensor]) -> Gradients:
        """The energies of `z` at the start of the step, and their gradients through the teacher."""

        def released(maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
            largest = {name: sorted_last(r) for name, r in reference.items()}
            means, _ = energies(maps, reference, largest)
            return means, released_total(means) * self.scale

        def printed(maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
            ties = {name: r >= r.amax(dim=-1, keepdim=True) for name, r in reference.items()}
            _, sums = energies(maps, reference, ties)
            return sums, printed_total(sums)

        means, sums = MapEnergy(self.recorded, released), MapEnergy(self.recorded, printed)
        terms = [
            EnergyTerm(name="released", energy=means, reference=None),
            EnergyTerm(name="printed", energy=sums, reference=None),
        ]
        output, (released_gradient, printed_gradient) = energy_gradients(self.teacher, z, self.t, self.cond, terms)
        return Gradients(
            output=output,
            maps=means.maps,
            means=means.layers,
            sums=sums.layers,
            released=means.total,
            printed=sums.total,
            released_gradient=released_gradient,
            printed_gradient=printed_gradient,
        )

    def guided_steps(self, step: TeacherStep, gradients: Gradients) -> dict[str, Tensor]:
        """The prediction without energy, and the latents after the step by every rule for the energy."""

        def after(gradient: Tensor, strength: Tensor, rule: Rule) -> Tensor:
            return guided_step(self.schedule, step, self.t_next, [(gradient, strength)], rule)

        def literal(strength: float) -> Tensor:
            return after(gradients.printed_gradient, torch.full_like(self.omega, strength), Rule("paper-literal"))

        x0, eps = guided_prediction(self.schedule, step)
        large = float(self.options.get("lambda_paper_literal", 500.0))
        small = float(self.options.get("lambda_paper_small", 0.01))
        # Equation 2 with the released coefficient and no noise factor, as the fixture defines it.
        plain = self.motion_gs / noise_factor(self.schedule, self.t, "official", step.z).flatten()
        return {
            "pred_x0_cfg": x0,
            "pred_noise_cfg": eps,
            "zhat_cfg": guided_step(self.schedule, step, self.t_next),
            "zhat_official": after(gradients.released_gradient, self.motion_gs, OFFICIAL),
            "zhat_paper_plus_lambda_literal": literal(large),
            "zhat_paper_plus_lambda_small": literal(small),
            "zhat_paper_minus_lambda_small": literal(-small),
            "zhat_eq2_full_plus_official_score": after(gradients.released_gradient, plain, Rule("eps")),
        }

    def numbers(self, gradients: Gradients, steps: dict[str, Tensor]) -> dict[str, Any]:
        """Settings, timesteps, energies and norms."""
        abar, start, end = self.schedule.alphas_cumprod.double(), int(self.t[0]), int(self.t_next[0])
        return {
            **{key: self.options[key] for key in self.options if key in _SETTINGS},
            "start_timestep": start,
            "end_timestep": end,
            "skip_timesteps": len(self.schedule) // self.steps,
            "official_energy": gradients.released,
            "official_mse_per_layer": gradients.means,
            "paper_energy_sum": gradients.printed,
            "paper_energy_per_layer": gradients.sums,
            "score_l2": float(gradients.released_gradient.norm()),
            "grad_paper_l2": float(gradients.printed_gradient.norm()),
            "official_minus_cfg_l2": float((steps["zhat_official"] - steps["zhat_cfg"]).norm()),
            "effective_coefficient_on_score_in_zhat": -float(self.motion_gs[0])
            * math.sqrt(1 - abar[end])
            * math.sqrt(1 - math.sqrt(abar[start])),
        }

    def sign_test(
        self,
        z: Tensor,
        score: Tensor,
        steps: dict[str, Tensor],
        reference: dict[str, Tensor],
        reference_next: dict[str, Tensor],
    ) -> dict[str, Any]:
        """Energies after moves along the released direction, against it, and along that of equation 2.

        Each move is tried at several sizes, before the step (at t) and after it (at t_next).
        """
        cfg = steps["zhat_cfg"]
        released, eq2 = steps["zhat_official"] - cfg, steps["zhat_eq2_full_plus_official_score"] - cfg
        unguided = self.energy(cfg, self.t_next, reference_next)
        results: dict[str, Any] = {}
        for name in self.options.get("sign_test") or ("motion_gs_x1", "motion_gs_x0.01", "motion_gs_x1e-4"):
            size = float(name.rpartition("_x")[2])
            d, d2 = size * released, size * eq2
            after = {"official_minus": cfg + d, "eq8_plus_same_size": cfg - d, "eq2_full_plus": cfg + d2}
            before = {"z_t": z, "official_direction": z + d, "opposite": z - d, "eq2_full_plus_direction": z + d2}
            at_next = {key: self.energy(latents, self.t_next, reference_next) for key, latents in after.items()}
            results[name] = {
                "at_tn": {"unguided": unguided, **at_next},
                "at_t": {key: self.energy(latents, self.t, reference) for key, latents in before.items()},
                "first_order_prediction_at_t": float((score * d).sum()),
                "first_order_eq2_full": float((score * d2).sum()),
            }
        return results


def algorithm1(folder: Path, inputs: Tensors, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of all runs by file name.

    Args:
        folder: Holds an `attention_f32run.safetensors` where the maps in single precision are compared too.
        inputs: See `Algorithm1`.
        runs: Settings by name, e.g. "golden_f32" and "golden_f64".
    """
    results: dict[str, Any] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, options in runs.items():
        short = "f64" if "64" in str(options.get("dtype", name)) else "f32"
        dtype = {"f64": torch.float64, "f32": torch.float32}[short]
        tensors[name], numbers, attention = Algorithm1(inputs, options, dtype).run()
        results |= {f"{name}.safetensors": tensors[name], f"{name}.json": numbers}
        recorded = f"attention_{short}run.safetensors"
        if short == "f64" or (folder / recorded).exists():
            results[recorded] = {key: value.float() for key, value in attention.items()}
    both = {name.replace("64", "32"): name for name in runs if "64" in name and name.replace("64", "32") in runs}
    for single, double in both.items():
        floats = (key for key, value in tensors[double].items() if value.is_floating_point())
        results[f"{double}.json"]["max_abs_f32_minus_f64"] = {
            key: float((tensors[single][key].double() - tensors[double][key]).abs().max()) for key in floats
        }
    return results


def _module_names(unet: TinyUNet, teacher: LatentTeacher) -> dict[str, str]:
    """The lvdm names of the attentions by their diffusers module names."""
    from guidedcd.models.checkpoints.unet import lvdm_name

    suffix = ".to_q.weight"
    names = lvdm_name(unet.config)
    return {n.removesuffix(suffix): key.removesuffix(suffix) for n, key in names.items() if n.endswith(suffix)}
