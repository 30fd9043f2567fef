"""The arithmetic of T2V-CompBench, from ratings, boxes and displacements that are given.

Source: the programs of T2V-CompBench (Sun et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 856, 480
"""Size of the videos in pixels, to which they are resized for motion binding."""

ANSWERS = {
    **{("A", "A"): 5.0, ("A", "B"): 4.5, ("B", "B"): 4.0, ("A", "C"): 3.5, ("A", "D"): 3.0},
    **{("B", "C"): 2.8, ("B", "D"): 2.5, ("C", "C"): 2.0, ("C", "D"): 1.5, ("D", "D"): 1.0},
}
"""By two answers from A (best) to D, in either order, the rating of consistent attributes."""

DIRECTIONS = {"left": (0, -1, WIDTH), "right": (0, 1, WIDTH), "up": (1, -1, HEIGHT), "down": (1, 1, HEIGHT)}
"""By direction the axis, the sign and the size of the video along it; y points down."""

NO_OBJECT = -1.0
"""The score of a video in which no object of the prompt was found."""


def consistent_attribute(ratings: Sequence[tuple[str, str]]) -> float:
    """The value of the category, from the two answers for each video, in [0, 1]."""
    return sum((ANSWERS[min(pair), max(pair)] - 1) / 4 for pair in ratings) / len(ratings)


def dynamic_attribute(first: tuple[float, float], last: tuple[float, float], inner: int) -> float:
    """The score of one video, in [0, 0.8].

    Args:
        first: Ratings from 1 to 5 of the first frame against the first and the second state.
        last: The same of the last frame.
        inner: How many of the 14 frames between them show one of the states.
    """
    if inner <= 0.8 * 14:
        return 0.0
    return 0.5 * first[0] / 5 * (1 - first[1] / 5) + 0.5 * (1 - last[0] / 5) * last[1] / 5


def displacement(direction: str, object_shift: Sequence[float] | None, ground_shift: Sequence[float]) -> float:
    """How far an object moves in a direction relative to the background, as a share of the video's side; 0 if not.

    Args:
        direction: "left", "right", "up" or "down".
        object_shift: Its displacement (x, y) in pixels; None where it was not found.
        ground_shift: That of the background.
    """
    axis, sign, size = DIRECTIONS[direction]
    if object_shift is None:
        return 0.0
    return max(0.0, sign * (object_shift[axis] - ground_shift[axis]) / size)


def motion_binding(
    directions: Sequence[str], object_shifts: Sequence[Sequence[float] | None], ground_shift: Sequence[float]
) -> float:
    """The score of one video: the mean displacement of its objects, or `NO_OBJECT` if none was found."""
    if all(shift is None for shift in object_shifts):
        return NO_OBJECT
    pairs = zip(directions, object_shifts, strict=True)
    return sum(displacement(one, shift, ground_shift) for one, shift in pairs) / len(directions)


def motion_binding_of_category(scores: Sequence[float]) -> float:
    """The value of the category, from the scores of its videos: 0.2 stands for objects that do not move."""
    return sum(0.0 if score == NO_OBJECT else 0.2 + 0.8 * score for score in scores) / len(scores)


def action_binding(ratings: Sequence[float]) -> float:
    """The value of the category, from ratings of each video from 0 to 5."""
    return sum(rating / 5 for rating in ratings) / len(ratings)


def object_interactions(ratings: Sequence[float]) -> float:
    """The value of the category, from ratings of each video from 1 to 5."""
    return sum((rating - 1) / 4 for rating in ratings) / len(ratings)


def spatial_frame(objects: int, *, holds: bool, overlap: float, depth: bool = False) -> float:
    """The score of one frame of spatial relationships, in [0, 1].

    Args:
        objects: How many of both objects were found.
        holds: Whether both have the relation.
        overlap: Intersection over union of their boxes.
        depth: Whether the relation is in front or behind, for which a large overlap is better.
    """
    if objects < 2:
        return 0.2 * objects
    if not holds:
        return 0.4
    return 0.4 + 0.6 * (overlap if depth else 1 - overlap)
