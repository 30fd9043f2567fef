"""Captions of scenes: short honest ones, long dense ones, and prompts. Every attribute value is one word.

Dense captions exceed 77 tokens: half of them name the object after the 40th, all of them the motion after the 77th.
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
PLACE = (
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
"""Where the second object is, seen from the first."""


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
    """A web-like caption: honest, and silent about some attributes."""

    def says(p: float) -> bool:
        return rng.random() < p

    text = rng.choice(OPENINGS) + "a " + object_phrase(scene, 0, says(0.7))
    if says(0.85):
        text += " " + motion_phrase(scene, rng, says(0.6))
    if scene.objects == 2:
        text += f" {world.RELATIONS[scene.relation]} a " + object_phrase(scene, 1, says(0.6))
    if says(0.65):
        text += f" on a {world.BACKGROUNDS[scene.background]} background"
    return text


def full_caption(scene: Scene, rng: random.Random, motion: bool = True, speed: bool = True) -> str:
    """A short caption that names everything, or everything but motion or speed."""
    text = "a " + object_phrase(scene)
    if motion:
        text += " " + motion_phrase(scene, rng, speed)
    if scene.objects == 2:
        text += f" {world.RELATIONS[scene.relation]} a " + object_phrase(scene, 1)
    return text + f" on a {world.BACKGROUNDS[scene.background]} background"


def dense_caption(scene: Scene, rng: random.Random) -> str:
    """A long caption that names everything, most of it beyond what rewards read."""
    subject = rng.choice(SUBJECT).format(object=object_phrase(scene))
    place = rng.choice(PLACE).format(background=world.BACKGROUNDS[scene.background])
    middle = [subject, place] if rng.random() < 0.5 else [place, subject]
    last = rng.choice(END)
    if scene.objects == 2:
        last = rng.choice(SECOND).format(object=object_phrase(scene, 1), relation=FROM_SECOND[scene.relation])
    action = rng.choice(ACTION).format(motion=motion_phrase(scene, rng, gerund=False))
    return " ".join([rng.choice(INTRO), *middle, action, last])


def words() -> list[str]:
    """Every word that a caption can contain, sorted."""
    texts = [*OPENINGS, *INTRO, *PLACE, *SUBJECT, *ACTION, *SECOND, *END, *FROM_SECOND]
    texts += [*world.SHAPES, *world.COLORS, *world.SIZES, *world.BACKGROUNDS, *world.RELATIONS, *world.MOTIONS[:-1]]
    texts += [*sum(ADVERBS, ()), *sum(VERBS, ()), "orbiting orbits staying stays still a on background"]
    return sorted({word for text in texts for word in re.sub(r"{\w+}", " ", text).split()})
