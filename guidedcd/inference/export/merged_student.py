"""The student as one merged network, its default settings, and a short reference sample; used by every format.

Legend: B batch, C channels, F frames, h/w latent size, S steps, E energies.
"""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from guidedcd.data import prompts
from guidedcd.diffusion.embeddings import EMBEDDING
from guidedcd.diffusion.randomness import noise
from guidedcd.diffusion.sampler import sample
from guidedcd.errors import GuidedCDError
from guidedcd.inference.pipeline import StudentPipeline, lambda_inputs, strengths
from guidedcd.models.guidance_inputs import GuidanceProjection

if TYPE_CHECKING:
    from diffusers import ModelMixin

TEXTS = ("a red ball rolls to the right", "")
STEPS = 4
SMALL = 2**15
"""Number of latent values that a laptop samples in seconds."""


@attrs.frozen(kw_only=True, eq=False)
class Sample:
    """A short sample with all its inputs, so that another process can compute it as well."""

    prompt_embeds: Tensor
    """(B, L, D)"""
    latents: Tensor
    """Initial noise (B, C, F, h, w)."""
    noises: Tensor
    """(S, B, C, F, h, w)"""
    result: Tensor
    """The student's clean latents, like `latents`."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The tensors without the result, by name."""
        return {"prompt_embeds": self.prompt_embeds, "latents": self.latents, "noises": self.noises}


def merged_network(student: Any) -> ModelMixin:
    """A copy of the student's network on the CPU in float32 with its adapters merged, in eval mode."""
    network = copy.deepcopy(student.network).cpu().float()
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, module.get_base_layer())
    return network.eval().requires_grad_(False)


def projection(network: ModelMixin) -> GuidanceProjection:
    """The network's projection of its guidance inputs.

    Raises:
        GuidedCDError: It has none, or has a frame-rate input, which no format supports.
    """
    cond_proj = network.time_embedding.cond_proj
    if not isinstance(cond_proj, GuidanceProjection):
        raise GuidedCDError("this student has no guidance inputs, so it cannot be exported")
    if network.time_embedding.post_act is not None:
        raise GuidedCDError("this student's frame rate is an input; only one with a fixed frame rate can be exported")
    return cond_proj


def composite(cond_proj: GuidanceProjection) -> Tensor:
    """The matrix (channels, 256 (1 + E)) that equals the projections where every lambda is an input."""
    omega = cond_proj.time_cond_proj.weight.double()
    if not cond_proj.lambda_width:
        return omega.float()
    first, second = cond_proj.combine_proj.weight.double().split(omega.shape[0], dim=1)
    return torch.cat([first @ omega, second @ cond_proj.motion_cond_proj.weight.double()], dim=1).float()


def stock(network: ModelMixin, weight: Tensor) -> ModelMixin:
    """A network of the plain diffusers class; one linear layer with `weight` projects its guidance inputs."""
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    plain = type(network)(**{**config, "time_cond_proj_dim": weight.shape[1]})
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("time_embedding.cond_proj.")}
    plain.load_state_dict({**state, "time_embedding.cond_proj.weight": weight})
    return plain.eval().requires_grad_(False)


def defaults(trained: StudentPipeline) -> dict[str, Any]:
    """The settings of the student's training, as arguments of `few_step_pipeline.FewStepPipeline`."""
    run, teacher = trained.run, trained.teacher
    energies = list(trained.student.energies)
    scales = strengths(trained)
    configs = [run.energies[name] for name in energies]
    geometry = teacher.geometry
    return {
        "energies": energies,
        "strengths": [float(scales[name]) for name in energies],
        "strength_scale": [1 / 6 if config.is_relative else 1e-4 for config in configs],
        "fractions": [float(config.fraction) for config in configs],
        "omega": float(run.evaluate.omega),
        "steps": int(run.evaluate.steps),
        "frames": geometry.frames,
        "height": geometry.height,
        "width": geometry.width,
        "fps": float(geometry.fps),
        "repeat_text": type(trained.student.network).__name__ == "UNetMotionModel",
    }


def as_evaluated(usage: str, trained: StudentPipeline) -> str:
    """Code of a model card in which PROMPT, STEPS and SCALE are replaced by those of the run's evaluation."""
    evaluate = trained.run.evaluate
    prompt = json.dumps(prompts.example(trained.teacher), ensure_ascii=False)
    # The guidance_scale of diffusers is omega + 1.
    values = {"PROMPT": prompt, "STEPS": str(evaluate.steps), "SCALE": str(float(evaluate.omega) + 1)}
    return re.sub("|".join(values), lambda name: values[name[0]], usage)


@torch.no_grad()
def short_sample(trained: StudentPipeline, network: ModelMixin | None = None) -> Sample:
    """A few-step sample at the trained size, or at the smallest size where the trained one takes long.

    Args:
        trained: The student.
        network: The network to sample with; None for the student's.
    """
    teacher, student = trained.teacher, trained.student
    channels, frames, height, width = teacher.geometry.latent_shape
    if channels * frames * height * width > SMALL:
        side = 2 ** (len(student.network.config.block_out_channels) - 1)
        frames, height, width = min(frames, 2), side, 2 * side
    shape = (channels, frames, height, width)
    noises = [torch.stack([noise(seed, draw, shape) for seed in range(len(TEXTS))]) for draw in range(1 + STEPS)]
    run, energies = trained.run, student.energies
    lambdas = lambda_inputs(trained, strengths(trained))
    cond = teacher.embed(TEXTS)
    latents = sample(
        student if network is None else _Replaced(student, network),
        teacher,
        cond,
        noises[0].to(teacher.device),
        STEPS,
        run.evaluate.omega,
        torch.stack(lambdas) if lambdas else None,
        [run.energies[name].fraction for name in energies],
        noises=[value.to(teacher.device) for value in noises[1:]],
    )
    return Sample(
        prompt_embeds=cond["prompt_embeds"].cpu().float(),
        latents=noises[0],
        noises=torch.stack(noises[1:]),
        result=latents.cpu().float(),
    )


class _Replaced:
    """A student with another network."""

    def __init__(self, student: Any, network: ModelMixin) -> None:
        self._student, self._network, self.energies = student, network, student.energies

    def __call__(self, z: Tensor, t: Tensor, cond: dict[str, Tensor], omega: Tensor, lambdas: Tensor | None) -> Tensor:
        from guidedcd.diffusion.embeddings import guidance_embedding

        embedding = guidance_embedding(omega, lambdas)
        return self._student.teacher.net(z, t, cond, timestep_cond=embedding, network=self._network)


def embedding_width(trained: StudentPipeline) -> int:
    """Width of the guidance embedding, 256 (1 + E)."""
    return EMBEDDING * (1 + len(trained.student.energies))
