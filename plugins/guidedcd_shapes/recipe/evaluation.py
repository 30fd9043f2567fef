"""Stages `evaluation` and `dit-evaluation`: a teacher's scores by steps, guidance and solver, and a contact sheet."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedcd_shapes import drawing, models, prompts, world
from guidedcd_shapes.oracle import ATTRIBUTES, Oracle, demand, summarise
from guidedcd_shapes.recipe.sampling import FlowSampler, Sampler, embed
from guidedcd_shapes.recipe.session import VARIETY, Session


def grid() -> list[tuple[str, str, int, float]]:
    """The settings (kind of prompts, solver, steps, guidance), most important first."""
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


def flow_grid() -> list[tuple[str, str, int, float]]:
    """The same for the video transformer."""
    rows = [("full", "euler", s, g) for s in (25, 8, 4) for g in (3.0, 1.0, 2.0, 5.0)]
    rows += [("full", solver, s, 3.0) for solver in ("even", "steep") for s in (25, 8, 4)]
    rows += [("full", "euler", s, 3.0) for s in (50, 2, 1)]
    rows += [("no-motion", "euler", s, 3.0) for s in (25, 8, 4)]
    return [*rows, ("dense", "euler", 25, 3.0), ("full", "euler", 25, 7.5)]


class Evaluation:
    """Measures a finished teacher on one device."""

    def __init__(self, session: Session, stage: str, sampler: Sampler) -> None:
        self.session, self.oracle = session, Oracle(session.device)
        self.vae, self.text = session.load("vae").to(session.dtype), session.load("text")
        self.stage, self.sampler = stage, sampler
        self.deadline = time.monotonic() + session.seconds(stage)
        self.cells: list[tuple[str, Tensor]] = []

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Videos (B, F, 3, H, W) in [0, 1] of latents (B, C, F, h, w)."""
        return models.decode(self.vae, z)

    def late(self) -> bool:
        """Whether the time budget is spent."""
        return time.monotonic() > self.deadline and not self.session.tiny

    def clips(self) -> random.Random:
        """Put clean and web-like clips on the sheet, and return the source of their scenes."""
        rng = random.Random(1)
        for web in (False, True):
            truth = world.to(world.pack([world.sample_scene(rng, "dynamic") for _ in range(2)]), self.session.device)
            clips = drawing.render(truth, web, self.session.generator(2), VARIETY)
            self.cells += [("web-like clip" if web else "clean clip", clip) for clip in clips.cpu()]
        return rng

    def steps(self, settings: Sequence[tuple[str, str, int, float]], shown: Sequence[int]) -> None:
        """Record the oracle's means by setting, until the time budget is spent.

        Args:
            settings: Kind of prompts, solver, steps, guidance.
            shown: Numbers of steps whose videos the contact sheet shows, at guidance 3.
        """
        count = self.session.size(320, 2)
        table: dict[str, dict[str, float | None]] = {}
        for kind, solver, steps, guidance in settings[:: self.session.size(1, 9)]:
            if self.late():
                break
            steps = min(steps, self.session.size(50, 2))
            chosen = prompts.evaluation_prompts(count, 0, kind)
            prompt, null = embed(self.session, self.text, chosen)
            sample = getattr(self.sampler, solver)
            video = self.decode(sample(self.sampler.noise(count, 0), prompt, null, steps, guidance))
            scores = self.oracle.score(video, world.to(prompts.truth(chosen), self.session.device))
            if kind == "no-motion":  # attributes that a prompt does not name are not judged
                scores = {k: v for k, v in scores.items() if k not in ("motion", "direction", "speed-class", "all")}
                scores["all"] = demand(scores, tuple(name for name in ATTRIBUTES if name in scores))
            key = f"{kind} {solver} {steps} steps g {guidance}"
            row: dict[str, float | None] = {**summarise(scores)}
            unseen = torch.tensor([_unseen(prompts.scene_of(p)) for p in chosen], device=video.device)
            for name, rows in (("all-seen", ~unseen), ("all-unseen", unseen)):
                row[name] = round(scores["all"][rows].mean().item(), 4) if rows.any() else None
            table[key] = row
            self.session.log(self.stage, on=key, **table[key])
            self.session.record(self.stage, {"prompts": count, "steps": table})
            if (kind, solver, guidance) == ("full", self.sampler.solver, 3.0) and steps in shown:
                self.cells += [(f"{steps} steps: {p.text}", v) for p, v in zip(chosen[:4], video.cpu(), strict=False)]


def _unseen(scene: world.Scene) -> bool:
    return (scene.color[0], scene.shape[0]) in world.UNSEEN


def sheet(path: str, cells: list[tuple[str, Tensor]], shown: tuple[int, ...] = (0, 2, 4, 7), zoom: int = 2) -> None:
    """Write a contact sheet with two columns: the frames `shown` of each video (F, 3, H, W) below its title."""
    import numpy as np
    from PIL import Image, ImageDraw

    side, gap = world.SIZE * zoom, 14
    width, height = len(shown) * side + 8, side + gap + 2
    image = Image.new("RGB", (2 * width - 8, -(-len(cells) // 2) * height), "white")
    draw = ImageDraw.Draw(image)
    for i, (title, video) in enumerate(cells):
        x, y = i % 2 * width, i // 2 * height
        for j, frame in enumerate(video[list(shown)]):
            pixels = Image.fromarray((frame.permute(1, 2, 0).numpy() * 255).astype(np.uint8))
            image.paste(pixels.resize((side, side), 0), (x + j * side, y + gap))
        draw.text((x + 2, y + 1), title[:70], fill="black")
    image.save(path)


def run(session: Session) -> None:
    """Measure the UNet, and write the contact sheet."""
    evaluation = Evaluation(session, "evaluation", Sampler(session, session.load("unet")))
    rng = evaluation.clips()
    fast = [world.sample_scene(rng, "dynamic") for _ in range(session.size(256, 4))]
    truth = world.to(world.pack(fast), session.device)
    video = drawing.render(truth, generator=session.generator(4), variety=VARIETY)
    dynamic = evaluation.oracle.score(video, truth)
    session.record("evaluation", {"distillation clips' speed": round(dynamic["speed"].mean().item(), 3)})
    evaluation.steps(grid(), (50, 4, 2))
    sheet(str(session.out / "sheet.png"), evaluation.cells)


def run_flow(session: Session) -> None:
    """Measure the video transformer, and write its contact sheet."""
    evaluation = Evaluation(session, "dit-evaluation", FlowSampler(session, session.load("dit")))
    evaluation.clips()
    evaluation.steps(flow_grid(), (25, 8, 4))
    sheet(str(session.out / "dit-sheet.png"), evaluation.cells)
