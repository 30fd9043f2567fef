"""The constants of VBench: dimensions, the ranges that its scores are normalised with, and weights.

Source: `scripts/constant.py` of the VBench repository at 45e79ec; Huang et al., VBench (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from guidedcd.evaluation.suites.contract import AggregateScore, Dimension


@attrs.frozen(kw_only=True)
class VBenchDimension(Dimension):
    """A dimension with what VBench's aggregate scores need."""

    least: float = 0.0
    """The value that is normalised to 0; smaller ones are negative."""
    most: float = 1.0
    """The value that is normalised to 1; larger ones exceed 1."""
    weight: float = 1.0
    """The weight in the score of its group."""
    prompts: str = ""
    """The list of prompts, and folder of videos in the layout with folders, without .txt."""

    def normalised(self, value: float) -> float:
        """The value relative to the range of VBench, not clipped."""
        return (value - self.least) / (self.most - self.least)


QUALITY, SEMANTIC = "quality", "semantic"


def _quality(name: str, title: str, least: float, most: float, prompts: str, videos: int | None, weight: float = 1.0):
    return VBenchDimension(
        name=name,
        group=QUALITY,
        title=title,
        least=least,
        most=most,
        weight=weight,
        prompts=prompts,
        videos=videos,
    )


def _semantic(name: str, title: str, least: float, most: float, videos: int, prompts: str = "", low: float = 0.0):
    return VBenchDimension(
        name=name,
        group=SEMANTIC,
        title=title,
        least=least,
        most=most,
        prompts=prompts or name,
        videos=videos,
        low=low,
    )


DIMENSIONS = (
    _quality("subject_consistency", "Subject", 0.1462, 1.0, "subject_consistency", 360),
    _quality("background_consistency", "BG", 0.2615, 1.0, "scene", 430),
    _quality("temporal_flickering", "Temporal", 0.6293, 1.0, "temporal_flickering", None),
    _quality("motion_smoothness", "Motion", 0.706, 0.9975, "subject_consistency", 360),
    _quality("aesthetic_quality", "Aesthetic", 0.0, 1.0, "overall_consistency", 465),
    _quality("imaging_quality", "Image", 0.0, 1.0, "overall_consistency", 465),
    _quality("dynamic_degree", "Dynamic", 0.0, 1.0, "subject_consistency", 360, weight=0.5),
    _semantic("object_class", "Object", 0.0, 1.0, 395),
    _semantic("multiple_objects", "Multiple", 0.0, 1.0, 410),
    _semantic("human_action", "Human", 0.0, 1.0, 500),
    _semantic("color", "Color", 0.0, 1.0, 425),
    _semantic("spatial_relationship", "Spatial", 0.0, 1.0, 420),
    _semantic("scene", "Scene", 0.0, 0.8222, 430),
    # These three are cosines.
    _semantic("appearance_style", "Appear", 0.0009, 0.2855, 450, low=-1.0),
    _semantic("temporal_style", "Temp. style", 0.0, 0.364, 500, low=-1.0),
    _semantic("overall_consistency", "Overall", 0.0, 0.364, 465, low=-1.0),
)
"""All 16, in the order of VBench. Temporal flickering scores the videos that pass the static filter."""

BY_NAME = {dimension.name: dimension for dimension in DIMENSIONS}


def mean_of(values: Mapping[str, float], names: tuple[str, ...]) -> float:
    """The weighted mean of normalised dimensions."""
    total = sum(BY_NAME[name].weight * BY_NAME[name].normalised(values[name]) for name in names)
    return total / sum(BY_NAME[name].weight for name in names)


QUALITY_NAMES = tuple(one.name for one in DIMENSIONS if one.group == QUALITY)
SEMANTIC_NAMES = tuple(one.name for one in DIMENSIONS if one.group == SEMANTIC)
STILL_NAMES = tuple(name for name in QUALITY_NAMES if name != "dynamic_degree")


def quality(values: Mapping[str, float]) -> float:
    """The Quality score, in which the dynamic degree has weight 0.5."""
    return mean_of(values, QUALITY_NAMES)


def semantic(values: Mapping[str, float]) -> float:
    """The Semantic score."""
    return mean_of(values, SEMANTIC_NAMES)


def total(values: Mapping[str, float]) -> float:
    """The Total score: four parts of Quality, one part of Semantic."""
    return (4 * quality(values) + semantic(values)) / 5


SCORES = (
    AggregateScore(name="quality", title="Quality", needs=QUALITY_NAMES, formula=quality, aliases=("quality_score",)),
    AggregateScore(
        name="semantic", title="Semantic", needs=SEMANTIC_NAMES, formula=semantic, aliases=("semantic_score",)
    ),
    AggregateScore(
        name="total", title="Total", needs=(*QUALITY_NAMES, *SEMANTIC_NAMES), formula=total, aliases=("total_score",)
    ),
    AggregateScore(
        name="quality_without_dynamic_degree",
        title="Quality without Dynamic",
        needs=STILL_NAMES,
        formula=lambda values: mean_of(values, STILL_NAMES),
    ),
)
"""The official three, and Quality without the dimension that decides most differences of it."""

QUALITY_HALF = (
    *("total", "quality", "subject_consistency", "background_consistency", "temporal_flickering"),
    *("motion_smoothness", "aesthetic_quality", "dynamic_degree", "imaging_quality"),
)
SEMANTIC_HALF = (
    *("semantic", "object_class", "multiple_objects", "human_action", "color", "spatial_relationship", "scene"),
    *("appearance_style", "temporal_style", "overall_consistency"),
)
"""The columns of Tables 5 to 11 of T2V-Turbo-v2 (Li et al., 2024)."""

OF_OTHER_VERSIONS = {
    "VBench-2.0": (
        *("Human_Anatomy", "Human_Clothes", "Human_Identity", "Composition", "Diversity", "Mechanics", "Material"),
        *("Thermotics", "Multi-View_Consistency", "Dynamic_Spatial_Relationship", "Dynamic_Attribute"),
        *("Motion_Order_Understanding", "Human_Interaction", "Complex_Landscape", "Complex_Plot"),
        *("Motion_Rationality", "Instance_Preservation"),
    ),
    "VBench-I2V": (
        *("i2v_subject", "i2v_background", "Video-Text Camera Motion", "Video-Image Subject Consistency"),
        "Video-Image Background Consistency",
    ),
    "VBench-2.0 or VBench-I2V": ("Camera_Motion",),
}
"""Dimensions that VBench does not have, by the benchmark that has them."""
