"""T2V-Turbo-v2's run, and random batches in the format of a store, for `training.py`."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import networks  # first: it finds guidedcd where that is not installed
import torch
from guidedcd_clip import CLIPConfig
from guidedcd_hps import HPSConfig
from guidedcd_internv2 import InternV2Config
from guidedcd_output_energies import X0MotionConfig
from guidedcd_pta import PTAConfig
from torch import Tensor

from guidedcd.config.kinds import Chosen
from guidedcd.config.run import Run
from guidedcd.config.sections import Solver, Student, Train
from guidedcd.data.routing import Route, Sample
from guidedcd.plugins.configs import TeacherConfig
from guidedcd.training.batches import Batch

CAPTION = "a red panda eats bamboo in a snowy forest"


def paper_run(
    train: Train,
    rewards: Sequence[str] = (),
    student: Student | None = None,
    energies: Sequence[str] = ("pta",),
) -> Run:
    """200 solver steps, the energies, and the paper's weights of the rewards."""
    configs = {
        "hps": HPSConfig(weight=0.2, frames=networks.FRAMES["hps"], pick="random"),
        "clip": CLIPConfig(weight=0.2, frames=networks.FRAMES["clip"], pick="random"),
        "internv2": InternV2Config(weight=0.5, frames=networks.FRAMES["internv2"], pick="strided"),
    }
    return Run(
        teacher=Chosen("videocrafter2", TeacherConfig()),
        data=(),
        energies={name: {"pta": PTAConfig(), "x0-motion": X0MotionConfig()}[name] for name in energies},
        rewards={name: configs[name] for name in rewards},
        solver=Solver(steps=200),
        student=student or Student(),
        train=train,
    )


@attrs.frozen
class RandomBatches:
    """Batches with random latents, predictions and scores; every third caption differs."""

    size: int
    rewards: tuple[str, ...]
    tiny: bool
    energies: int = 1
    """1 for `pta`, 2 with `x0-motion`, whose strength is relative."""

    def __call__(self, number: int) -> Batch:
        """Batch `number`; the same number gives the same batch."""
        generator = torch.Generator().manual_seed(number)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        shape = (self.size, *networks.geometry(self.tiny).latent_shape)
        captions = [f"{CAPTION}, {(number + i) % 3}" for i in range(self.size)]
        return Batch(
            ids=[f"random/{number}#{i}" for i in range(self.size)],
            samples=[Sample(id=str(i), dataset="random", caption=caption) for i, caption in enumerate(captions)],
            routes=[Route(caption=caption, rewards=frozenset(self.rewards)) for caption in captions],
            index=torch.randint(0, 200, (self.size,), generator=generator),
            z0=normal(*shape),
            noise=normal(*shape),
            cond={"prompt_embeds": normal(self.size, networks.TOKENS, networks.text_width(self.tiny))},
            cond_output=normal(*shape),
            uncond_output=normal(*shape),
            scores={"pta": 1e-4 * normal(*shape)},
            omega=5 + 10 * torch.rand(self.size, generator=generator),
            strengths=torch.tensor([500.0, 0.03])[: self.energies].repeat(self.size, 1),
        )
