"""Captions of scenes: short ones, dense ones, and prompts. Every attribute value is one word.

Dense captions exceed 77 tokens. Half of them name the object after token 40, all of them the motion after token 77.
"""

from __future__ import annotations

import random
import re

from guidedcd_shapes import world
from guidedcd_shapes.world import ORBIT, STILL, Scene

ADVERBS = (("slowly", "gently"), ("steadily", "smoothly"), ("quickly", "rapidly"))
VERBS = (("moving", "moves"), ("drifting", "drifts"), ("gliding", "glides"))
OPENINGS = ("", "", "", "footage of ", "video of ", "animation of ")
INTRO = (
    (
        "the video presents a calm and carefully composed scene recorded with a fixed camera , clean tones , "
        "sharp focus and no visible noise ."
    ),
    (
        "this clip shows a simple and elegant composition filmed by a steady camera with even exposure , "
        "vivid tones and very sharp detail ."
    ),
    (
        "the footage captures a minimal scene with professional equipment , a locked camera , rich tones and "
        "an impressive level of detail ."
    ),
)
SETTING = (
    (
        "the background is a {background} surface that fills the whole frame and remains unchanged from the "
        "first frame to the last frame without any visible change ."
    ),
    (
        "behind everything there is a {background} backdrop which covers the entire frame and does not "
        "change in tone or texture at any point in the whole clip ."
    ),
)
SUBJECT = (
    "the main subject is a {object} with crisp edges that stands out clearly against all that surrounds it .",
    "at the center of attention there is a {object} with clean edges and one uniform color all over it .",
)
ACTION = (
    (
        "over the course of the whole clip it {motion} while keeping the same size and color , and this is "
        "easy to follow ."
    ),
    (
        "as the seconds of the clip pass the subject {motion} without changing size or color , and the path "
        "is clear and continuous ."
    ),
)
SECOND = ("a second object , a {object} , rests {relation} it and does not move at all .",)
END = ("overall the mood is quiet and minimal .", "overall the atmosphere is modern and relaxed .")
FROM_SECOND = ("beside", "below")
"""Position of the second object relative to the first, by relation."""


def object_phrase(scene: Scene, which: int = 0, size: bool = True) -> str:
    """For example "small red star"."""
    words = [world.SIZES[scene.size[which]]] if size else []
    return " ".join([*words, world.COLORS[scene.color[which]], world.SHAPES[scene.shape[which]]])


def motion_phrase(scene: Scene, rng: random.Random, speed: bool = True, gerund: bool = True) -> str:
    """For example "slowly drifting left" or, as a finite verb, "slowly drifts left"."""
    if scene.motion == STILL:
        return "staying still" if gerund else "stays still"
    form = 0 if gerund else 1
    verb = (
        ("orbiting", "orbits")[form]
        if scene.motion == ORBIT
        else f"{rng.choice(VERBS)[form]} {world.MOTIONS[scene.motion]}"
    )
    return f"{rng.choice(ADVERBS[scene.speed])} {verb}" if speed else verb


def short_caption(scene: Scene, rng: random.Random) -> str:
    """A correct caption that leaves out some attributes at random, as captions from the web do."""

    def chance(p: float) -> bool:
        return rng.random() < p

    text = rng.choice(OPENINGS) + "a " + object_phrase(scene, 0, chance(0.7))
    if chance(0.85):
        text += " " + motion_phrase(scene, rng, chance(0.6))
    if scene.objects == 2:
        text += f" {world.RELATIONS[scene.relation]} a " + object_phrase(scene, 1, chance(0.6))
    if chance(0.65):
        text += f" on a {world.BACKGROUNDS[scene.background]} background"
    return text


def full_caption(scene: Scene, rng: random.Random, motion: bool = True, speed: bool = True) -> str:
    """A short caption that names every attribute, or all except motion or speed."""
    text = "a " + object_phrase(scene)
    if motion:
        text += " " + motion_phrase(scene, rng, speed)
    if scene.objects == 2:
        text += f" {world.RELATIONS[scene.relation]} a " + object_phrase(scene, 1)
    return text + f" on a {world.BACKGROUNDS[scene.background]} background"


def dense_caption(scene: Scene, rng: random.Random) -> str:
    """A long caption that names every attribute, mostly beyond the context of the rewards."""
    subject = rng.choice(SUBJECT).format(object=object_phrase(scene))
    setting = rng.choice(SETTING).format(background=world.BACKGROUNDS[scene.background])
    middle = [subject, setting] if rng.random() < 0.5 else [setting, subject]
    last = rng.choice(END)
    if scene.objects == 2:
        last = rng.choice(SECOND).format(object=object_phrase(scene, 1), relation=FROM_SECOND[scene.relation])
    action = rng.choice(ACTION).format(motion=motion_phrase(scene, rng, gerund=False))
    return " ".join([rng.choice(INTRO), *middle, action, last])


def words() -> list[str]:
    """Every word that a caption can contain, sorted."""
    texts = [*OPENINGS, *INTRO, *SETTING, *SUBJECT, *ACTION, *SECOND, *END, *FROM_SECOND]
    texts += [*world.SHAPES, *world.COLORS, *world.SIZES, *world.BACKGROUNDS, *world.RELATIONS, *world.MOTIONS[:-1]]
    texts += [*sum(ADVERBS, ()), *sum(VERBS, ()), "orbiting orbits staying stays still a on background"]
    return sorted({word for text in texts for word in re.sub(r"{\w+}", " ", text).split()})
