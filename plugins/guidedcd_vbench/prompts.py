"""The prompts of VBench, from its own files, and the videos that they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from guidedcd.console import console, counted
from guidedcd.data.prompts import read
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError, written
from guidedcd.evaluation.suites.contract import SuiteVideo
from guidedcd_vbench.dimensions import DIMENSIONS

COUNTS = {
    "subject_consistency": 72,
    "scene": 86,
    "temporal_flickering": 75,
    "overall_consistency": 93,
    "object_class": 79,
    "multiple_objects": 82,
    "human_action": 100,
    "color": 85,
    "spatial_relationship": 84,
    "appearance_style": 90,
    "temporal_style": 100,
}
"""Prompts of each list, counted in the repository of VBench."""
FLICKER = "temporal_flickering"
"""The list whose videos pass a filter, which removes those with motion."""
LONGEST = 1000
"""Prompts of the longest list."""
COPIES, FLICKER_COPIES = 5, 25
"""Videos of each prompt, and of each prompt of temporal flickering."""


def read_lists(path: Path | None, lists: Collection[str]) -> dict[str, list[str]]:
    """The prompts of each list, without repetitions.

    Args:
        path: The folder `prompts_per_dimension` of VBench, a folder that contains it, or `VBench_full_info.json`.
        lists: Names of the lists that are needed.

    Raises:
        GuidedCDError: There is no such path, a list is missing or empty.
    """
    if path is None:
        raise GuidedCDError(
            f"the prompts of VBench are needed: give {written('--suite.vbench.prompts FOLDER')}, its folder "
            "prompts_per_dimension or its file VBench_full_info.json."
        )
    if path.is_file():
        listed = _of_info(path)
        missing = [name for name in lists if not listed.get(name)]
        if missing:
            raise GuidedCDError(f"{path} has no prompts of {', '.join(missing)}. Give the file of VBench 1.")
        return {name: listed[name] for name in lists}
    if not path.is_dir():
        raise GuidedCDError(f"there are no prompts of VBench at {path}.")
    inner = path / "prompts_per_dimension"
    folder = inner if inner.is_dir() else path
    missing = [name for name in lists if not (folder / f"{name}.txt").is_file()]
    if missing:
        raise GuidedCDError(
            f"{folder} has no {', '.join(f'{name}.txt' for name in missing)}. Give the folder prompts_per_dimension of "
            "VBench, or fewer --suite.vbench.dimensions."
        )
    return {name: list(dict.fromkeys(one.text for one in read(folder / f"{name}.txt"))) for name in lists}


def _of_info(path: Path) -> dict[str, list[str]]:
    """The lists that VBench_full_info.json describes."""
    entries = read_json(path, [{"prompt_en": str, "dimension": [str]}])
    list_of = {dimension.name: dimension.prompts for dimension in DIMENSIONS}
    prompts_of: dict[str, dict[str, None]] = {}
    for entry in entries:
        for name in entry["dimension"]:
            prompts_of.setdefault(list_of.get(name, name), {})[entry["prompt_en"].strip()] = None
    return {name: list(prompts) for name, prompts in prompts_of.items()}


def warn_about_counts(lists: Mapping[str, list[str]]) -> None:
    """Print a line for each list that is longer or shorter than the official one."""
    for name, prompts in lists.items():
        if len(prompts) != COUNTS[name]:
            console.print(
                f"warning  {name} has {counted(len(prompts), 'prompt')}, but VBench has {COUNTS[name]}: scores of "
                "these videos are not official",
                markup=False,
            )


def videos_of(lists: Mapping[str, list[str]], *, flat: bool) -> list[SuiteVideo]:
    """The videos of some lists of prompts.

    The number of a video follows from its list, its place there and its copy, so that it has the same seed whichever
    other lists are sampled.

    Args:
        lists: The prompts by list.
        flat: All videos lie in one folder, in which a prompt of several lists has its videos once; otherwise each list
            has a folder.

    Raises:
        GuidedCDError: A prompt cannot be the name of a file, or a list is too long.
    """
    videos: dict[str, SuiteVideo] = {}
    for name, prompts in lists.items():
        if len(prompts) > LONGEST:
            raise GuidedCDError(f"{name} has {len(prompts):,} prompts; a list of VBench has at most {LONGEST:,}.")
        for place, prompt in enumerate(prompts):
            if "/" in prompt:
                raise GuidedCDError(f"the prompt {prompt!r} has a '/', so that VBench finds no video of this name.")
            first = FLICKER_COPIES * (LONGEST * list(COUNTS).index(name) + place)
            for copy in range(FLICKER_COPIES if name == FLICKER else COPIES):
                file = f"{prompt}-{copy}.mp4" if flat else f"{name}/{prompt}-{copy}.mp4"
                videos.setdefault(file, SuiteVideo(file=file, prompt=prompt, number=first + copy))
    return list(videos.values())
