"""Sampling of the teachers: guided DDIM and DPM-Solver++ on the grid t_i = (i + 1) (1000 // steps) - 1, and Euler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from guidedcd.acceleration.precision import cast
from guidedcd.data.clips import Prompt
from guidedcd_shapes import models, prompts, world
from guidedcd_shapes.oracle import Oracle, summarise
from guidedcd_shapes.recipe.session import Session, speed_up
from guidedcd_shapes.recipe.training import Graphed
from guidedcd_shapes.vocabulary import WorldTokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class Sampler:
    """Samples a UNet with guidance g: u + g (c - u) of the predictions c with and u without the prompt."""

    solver = "ddim"
    """Name of the method that samples during training and for the contact sheet."""

    def __init__(self, session: Session, network: nn.Module) -> None:
        self.session = session
        self.abar = models.alphas_cumprod().to(session.device)
        self.network = self.prepare(copy.deepcopy(network)).eval().requires_grad_(False)
        self._graphs: dict[tuple[str, int], Graphed] = {}

    def prepare(self, network: nn.Module) -> nn.Module:
        """`network` in the session's dtype with its fast paths, changed in place."""
        return speed_up(self.session, network.to(self.session.dtype))

    def run(self, z: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """The predicted v (B, C, F, h, w), float32."""
        return self.network(z.to(self.session.dtype), t, prompt.to(self.session.dtype), return_dict=False)[0].float()

    def split(self, z: Tensor, v: Tensor, abar: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps of the prediction v at noise level `abar`, broadcastable to z."""
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        return alpha * z - sigma * v, alpha * v + sigma * z

    def graph(self, key: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function(*inputs)`, captured once per key and batch size."""
        size = (key, len(inputs[0]))
        if size not in self._graphs:
            self._graphs[size] = Graphed(function, *inputs)
        return self._graphs[size](*inputs)

    @torch.no_grad()
    def v(self, z: Tensor, t: float, prompt: Tensor, null: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """The guided v of all samples at timestep `t`; without `null` or with guidance 1 no guidance is applied."""
        times = torch.full((len(z),), t, device=z.device)
        if guidance == 1.0 or null is None:
            return self.graph("one", self.run, z, times, prompt)
        both = torch.cat([z, z]), torch.cat([times, times]), torch.cat([prompt, null])
        c, u = self.graph("both", self.run, *both).chunk(2)
        return u + guidance * (c - u)

    def noise(self, count: int, seed: int) -> Tensor:
        """Initial noise (count, C, F, h, w)."""
        return torch.randn(count, *models.LATENT, device=self.session.device, generator=self.session.generator(seed))

    def ddim(self, z: Tensor, prompt: Tensor, null: Tensor, steps: int, guidance: float) -> Tensor:
        """Clean latents of the noise `z`, by DDIM."""
        k = 1000 // steps
        for t in range(k * steps - 1, -1, -k):
            x0, eps = self.split(z, self.v(z, t, prompt, null, guidance), self.abar[t])
            after = self.abar[t - k] if t >= k else torch.ones_like(self.abar[0])
            z = after.sqrt() * x0 + (1 - after).sqrt() * eps
        return z

    def dpm(self, z: Tensor, prompt: Tensor, null: Tensor, steps: int, guidance: float) -> Tensor:
        """Clean latents of the noise `z`, by diffusers' second-order DPM-Solver++."""
        from diffusers import DPMSolverMultistepScheduler

        solver = DPMSolverMultistepScheduler(**models.SCHEDULER, timestep_spacing="trailing", final_sigmas_type="zero")
        solver.set_timesteps(steps)
        for t in solver.timesteps.tolist():
            z = solver.step(self.v(z, t, prompt, null, guidance), t, z, return_dict=False)[0]
        return z


class FlowSampler(Sampler):
    """Samples a flow-matching transformer, whose prediction is eps - x0."""

    solver = "euler"

    def prepare(self, network: nn.Module) -> nn.Module:
        """`network` in the session's dtype, changed in place; what its class keeps in float32 stays so."""
        cast(network, self.session.dtype)
        return network

    def euler(
        self,
        z: Tensor,
        prompt: Tensor,
        null: Tensor,
        steps: int,
        guidance: float,
        shift: float = models.FLOW_SCHEDULER["shift"],
    ) -> Tensor:
        """Clean latents of the noise `z` by Euler steps over the levels s = shift u / (1 + (shift - 1) u).

        The times u fall evenly from 1 to 0, as in `FlowMatchEulerDiscreteScheduler`.
        """
        times = [1 - i / steps for i in range(steps + 1)]
        levels = [shift * u / (1 + (shift - 1) * u) for u in times]
        for level, after in pairwise(levels):
            z = z + (after - level) * self.v(z, 1000 * level, prompt, null, guidance)
        return z

    def even(self, z: Tensor, prompt: Tensor, null: Tensor, steps: int, guidance: float) -> Tensor:
        """As `euler` without a shift: the noise levels are evenly spaced."""
        return self.euler(z, prompt, null, steps, guidance, shift=1.0)

    def steep(self, z: Tensor, prompt: Tensor, null: Tensor, steps: int, guidance: float) -> Tensor:
        """As `euler` with shift 5: more steps at high noise."""
        return self.euler(z, prompt, null, steps, guidance, shift=5.0)


@torch.no_grad()
def embed(session: Session, text: nn.Module, chosen: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, D) of the prompts, and of the empty prompt B times."""
    tokens = WorldTokenizer(models.CONTEXT["text"])([p.text for p in chosen] + [""]).to(session.device)
    hidden = text(input_ids=tokens).last_hidden_state
    return hidden[:-1].contiguous(), hidden[-1:].expand(len(chosen), -1, -1).contiguous()


def partner(truth: dict[str, Tensor], pair: Sequence[str]) -> tuple[str, Tensor, dict[str, Tensor]]:
    """The attribute of two words, which scenes have either of them (B,), and the scenes with the words exchanged."""
    names = {"color": world.COLORS, "shape": world.SHAPES, "background": world.BACKGROUNDS, "size": world.SIZES}
    attribute = next(name for name, words in names.items() if pair[0] in words)
    a, b = (names[attribute].index(word) for word in pair)
    value = truth[attribute]
    other = torch.where(value == a, b, torch.where(value == b, a, value))
    first, changed = (x if x.ndim == 1 else x[:, 0] for x in (value, other))
    return attribute, first != changed, truth | {attribute: other}


@torch.no_grad()
def guided_quality(
    session: Session,
    sampler: Sampler,
    vae: AutoencoderKL,
    text: nn.Module,
    pairs: Sequence[Sequence[str]],
    guidance: float = 3.0,
) -> dict[str, float]:
    """The oracle's means during training, and for each pair of words the share of samples that show the right one."""
    chosen = prompts.evaluation_prompts(session.size(384, 2), 7, "full")
    truth, oracle = world.to(prompts.truth(chosen), session.device), Oracle(session.device)
    prompt, null = embed(session, text, chosen)
    sample = getattr(sampler, sampler.solver)
    z = sample(sampler.noise(len(chosen), 7), prompt, null, session.size(25, 2), guidance)
    video = models.decode(vae, z)
    scores = oracle.score(video, truth)
    row = summarise(scores)
    for pair in pairs:
        attribute, either, exchanged = partner(truth, pair)
        right = scores[attribute][either].sum()
        both = right + oracle.score(video, exchanged)[attribute][either].sum()
        row["/".join(pair)] = round((right / both.clamp_min(1)).item(), 4)
    return row
