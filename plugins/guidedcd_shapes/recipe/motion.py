"""Stage `motion`: motion guidance of the teacher by rule, strength and fraction, with the sampler of guidedcd.

The prompts name no motion. Their references show other objects and backgrounds, with fast motion in a straight line.
"""

from __future__ import annotations

import random
import time

import attrs

from guidedcd_shapes import captions, drawing, prompts, world
from guidedcd_shapes.oracle import Oracle, summarise
from guidedcd_shapes.recipe.session import VARIETY, Session

SETTINGS = (
    ("official", 0.0, 0.5, 6.5, "official"),
    *(("official", relative, 0.7, 6.5, "official") for relative in (0.05, 0.1, 0.2)),
    ("official", 0.1, 0.6, 6.5, "official"),
    ("official", 0.03, 0.8, 6.5, "official"),
    *(("official", relative, fraction, 6.5, "all") for relative, fraction in ((0.05, 0.7), (0.1, 0.6))),
    ("official", 0.0, 0.5, 4.0, "official"),
    ("official", 0.1, 0.7, 4.0, "official"),
    ("official", 0.0, 0.5, 2.0, "official"),
    *(("official", relative, 0.6, 2.0, "official") for relative in (0.05, 0.1, 0.2)),
    ("official", 0.2, 0.5, 2.0, "official"),
    ("official", 0.05, 0.8, 2.0, "official"),
    *(("official", relative, 0.7, 2.0, "all") for relative in (0.05, 0.1)),
    *(("official", relative, 0.7, 2.0, "motionclone") for relative in (0.03, 0.1)),
)
"""Rule, norm of the guided term relative to the prediction, fraction of guided steps, omega, layers."""


def reference(rng: random.Random, prompt: world.Scene) -> world.Scene:
    """A scene with fast, straight motion that shares neither colour, shape nor background with the prompt's."""
    while True:
        scene = world.sample_scene(rng, "dynamic", two=0.0)
        same = scene.color[0] == prompt.color[0] or scene.shape[0] == prompt.shape[0]
        if not same and scene.background != prompt.background and 1 <= scene.motion <= 4 and scene.speed == 2:
            return scene


def run(session: Session) -> None:
    """Measure the settings in order, until the time budget is spent."""
    from guidedcd_pta import PTAConfig
    from guidedcd_pta.energy import PTA

    from guidedcd.diffusion.randomness import noise
    from guidedcd.inference.guides import Guide
    from guidedcd.inference.solvers import teacher_sample
    from guidedcd_shapes import ShapesTeacherConfig
    from guidedcd_shapes.teacher import ShapesTeacher

    count, steps, oracle = session.size(96, 2), session.size(50, 4), Oracle(session.device)
    teacher = ShapesTeacher(ShapesTeacherConfig(path=str(session.out))).to(session.device)
    chosen, rng = prompts.evaluation_prompts(count, 5, "no-motion"), random.Random(5)
    references = [reference(rng, prompts.scene_of(p)) for p in chosen]
    truth = world.to(world.pack(references), session.device)
    clips = drawing.render(truth, generator=session.generator(3), variety=VARIETY)
    z0 = teacher.encode(clips)
    guide = Guide(
        energy=PTA(PTAConfig()),
        config=PTAConfig(),
        z0=z0,
        cond=teacher.embed([captions.full_caption(scene, rng) for scene in references]),
    )
    expected = world.to(prompts.truth(chosen), session.device) | {"motion": truth["motion"]}
    cond, null = teacher.embed([p.text for p in chosen]), teacher.null(count)
    latents = noise(session.seed, 3, z0.shape).to(session.device)
    table = {"reference clips": summarise(oracle.score(clips, truth))}
    deadline = time.monotonic() + session.seconds("motion")
    for rule, relative, fraction, omega, layers in SETTINGS[:: session.size(1, 9)]:
        if time.monotonic() > deadline and not session.tiny:
            break
        config = PTAConfig(relative=relative, fraction=fraction if relative else 0.0, layers=layers)
        guides = [attrs.evolve(guide, config=config, energy=PTA(config))]
        z = teacher_sample(teacher, cond, null, latents, steps, omega, energies=guides, rule=rule)
        setting = f"{rule} relative {relative} fraction {fraction}" + (
            f" layers {layers}" if layers != "official" else ""
        )
        key = f"{setting if relative else 'none'} omega {omega}"
        table[key] = summarise(oracle.score(teacher.decode(z), expected))
        session.log("motion", on=key, **table[key])
        session.record("motion", {"prompts": count, "steps": steps, "settings": table})
