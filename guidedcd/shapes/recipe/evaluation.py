"""Stage `evaluation`: the teacher by steps, guidance and solver; how slowly it moves; motion guidance on it alone."""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor, nn

from guidedcd.shapes import models, prompts, world
from guidedcd.shapes.oracle import Oracle, summarise
from guidedcd.shapes.recipe.sampling import Sampler, embed
from guidedcd.shapes.recipe.session import Session
from guidedcd.teachers import probes

LAYERS = "official"
SCALES = (0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8)
"""Norm of the guided term as a fraction of the prediction's."""


def grid() -> list[tuple[str, str, int, float]]:
    """Prompt kind, solver, steps, guidance."""
    rows = [("full", "ddim", 50, g) for g in (3.0, 1.0, 2.0, 5.0, 7.5)]
    rows += [
        ("full", solver, s, g) for s in (8, 4, 2, 1) for solver in ("ddim", "dpm") for g in (1.0, 2.0, 3.0, 5.0, 7.5)
    ]
    rows += [
        ("full", "dpm", 50, 3.0),
        ("dense", "ddim", 50, 3.0),
        ("no-motion", "ddim", 50, 3.0),
        ("no-motion", "ddim", 4, 3.0),
    ]
    return rows


class Evaluation:
    """The finished models on one device."""

    def __init__(self, session: Session) -> None:
        self.session, self.oracle = session, Oracle(session.device)
        self.vae, self.text = session.load("vae").to(session.dtype), session.load("text")
        self.sampler = Sampler(session, session.load("unet"))
        self.deadline = time.monotonic() + session.seconds("evaluation")
        self.rows: list[tuple[str, Tensor]] = []

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Videos of latents."""
        return models.decode(self.vae, z)

    def late(self) -> bool:
        """Whether the budget is spent."""
        return time.monotonic() > self.deadline and not self.session.tiny

    def steps(self) -> dict[str, dict[str, float]]:
        """The oracle's means by setting."""
        count, table = self.session.size(320, 2), {}
        for kind, solver, steps, guidance in grid()[:: self.session.size(1, 9)]:
            if self.late():
                break
            steps = min(steps, self.session.size(50, 2))
            wanted = prompts.evaluation_prompts(count, 0, kind)
            prompt, null = embed(self.session, self.text, wanted)
            sample = getattr(self.sampler, solver)
            video = self.decode(sample(self.sampler.noise(count, 0), prompt, null, steps, guidance))
            scores = self.oracle.score(video, world.to(prompts.truth(wanted), self.session.device))
            key = f"{kind} {solver} {steps} steps g {guidance}"
            table[key] = summarise(scores)
            fresh = torch.tensor([_unseen(p.scene) for p in wanted], device=video.device)
            table[key]["all-unseen"] = round(scores["all"][fresh].mean().item(), 4) if fresh.any() else None
            self.session.log("evaluation", on=key, **table[key])
            if (solver, guidance) == ("ddim", 3.0) and steps in (50, 4, 2):
                self.rows += [(f"{steps} steps: {p.text}", v) for p, v in zip(wanted[:8], video.cpu(), strict=False)]
        return table

    def guided_motion(self) -> dict[str, dict[str, float]]:
        """Prompts without motion, references with other objects, backgrounds and sizes that move fast in a line."""
        session, count, steps = self.session, self.session.size(128, 2), self.session.size(50, 4)
        wanted = prompts.evaluation_prompts(count, 3, "no-motion")
        prompt, null = embed(session, self.text, wanted)
        rng = random.Random(3)
        theirs = [_reference(rng, p.scene) for p in wanted]
        reference = world.to(world.pack(theirs), session.device)
        clips = world.render(reference, generator=session.generator(3))
        inverted = self.sampler.invert(models.encode(self.vae, clips), null, steps)
        truth = world.to(prompts.truth(wanted), session.device) | {"motion": reference["motion"]}
        table = {"reference clips": summarise(self.oracle.score(clips, reference))}
        for scale in SCALES[:: session.size(1, 3)]:
            if self.late():
                break

            def push(z: Tensor, t: int, index: int, scale: float = scale) -> Tensor | None:
                if index >= steps // 2 or not scale:
                    return None
                times = torch.full((count,), t, device=z.device)
                slope = self.sampler.graph("energy", self.energy_slope, z, inverted[t], times, prompt, null)
                norm = slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1, 1)
                return scale * slope / norm * slope[0].numel() ** 0.5

            z = self.sampler.ddim(self.sampler.noise(count, 3), prompt, null, steps, 3.0, push)
            video = self.decode(z)
            table[f"scale {scale}"] = summarise(self.oracle.score(video, truth))
            session.log("evaluation", on=f"motion guidance {scale}", **table[f"scale {scale}"])
            if scale in (0.0, 0.3):
                self.rows += [(f"guidance {scale}: {p.text}", v) for p, v in zip(wanted[:3], video.cpu(), strict=False)]
        return table

    def energy_slope(self, z: Tensor, noisy: Tensor, t: Tensor, prompt: Tensor, null: Tensor) -> Tensor:
        """Gradient at z of the attention energy: mean over layers of the mean masked squared difference, per sample."""
        need = f"temporal-attention:{LAYERS}"
        with torch.no_grad(), probes.record(self.sampler.network, [need], len(z)) as records:
            self.sampler.run(noisy, t, null)
        goal = {name: value.detach() for name, value in records[need].items()}
        with torch.enable_grad(), probes.record(self.sampler.network, [need], len(z)) as records:
            z = z.detach().requires_grad_(True)
            self.sampler.run(z, t, prompt)
            energy = 0
            for name, value in records[need].items():
                mask = (goal[name] == goal[name].amax(-1, keepdim=True)).float()
                part = (mask * (goal[name] - value).square()).flatten(1).sum(1) / mask.flatten(1).sum(1)
                energy = energy + part.sum() / len(records[need])
            return torch.autograd.grad(energy, z)[0]


def _unseen(scene: dict) -> bool:
    return (scene["color"][0], scene["shape"][0]) in world.UNSEEN


def _reference(rng: random.Random, prompt: dict) -> world.Scene:
    """A fast straight move of an object that shares neither colour, shape nor background with the prompt."""
    while True:
        scene = world.sample_scene(rng, "dynamic", two=0.0)
        same = scene.color[0] == prompt["color"][0] or scene.shape[0] == prompt["shape"][0]
        if not same and scene.background != prompt["background"] and 1 <= scene.motion <= 4 and scene.speed == 2:
            return scene


def sheet(path: str, rows: list[tuple[str, Tensor]], zoom: int = 2) -> None:
    """Write a contact sheet: one video (F, 3, H, W) per row under its title."""
    import numpy as np
    from PIL import Image, ImageDraw

    side = world.SIZE * zoom
    image = Image.new("RGB", (world.FRAMES * side, len(rows) * (side + 14)), "white")
    draw = ImageDraw.Draw(image)
    for i, (title, video) in enumerate(rows):
        for j, frame in enumerate(video):
            pixels = Image.fromarray((frame.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
            image.paste(pixels.resize((side, side), 0), (j * side, i * (side + 14) + 14))
        draw.text((2, i * (side + 14) + 1), title[-125:], fill="black")
    image.save(path)


def run(session: Session) -> None:
    """Measure everything and draw the contact sheet."""
    evaluation = Evaluation(session)
    rng = random.Random(1)
    for web in (False, True):
        scenes = [world.sample_scene(rng, "dynamic" if not web else "pretrain") for _ in range(4)]
        clips = world.render(world.to(world.pack(scenes), session.device), web, session.generator(2))
        evaluation.rows += [(f"world, web {web}", clip) for clip in clips.cpu()]
    fast = [world.sample_scene(rng, "dynamic") for _ in range(session.size(256, 4))]
    truth = world.to(world.pack(fast), session.device)
    dynamic = evaluation.oracle.score(world.render(truth, generator=session.generator(4)), truth)
    result = {"distillation clips' speed": round(dynamic["speed"].mean().item(), 3), "steps": evaluation.steps()}
    result["motion guidance"] = evaluation.guided_motion()
    sheet(str(session.out / "sheet.png"), evaluation.rows)
    session.record("evaluation", result)


def attention(network: nn.Module) -> list[str]:
    """Names of the layers that motion guidance reads."""
    return list(probes.select_layers(network, LAYERS))
