"""A route tried on captions: which rewards score a clip, with which caption, and whether energies apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from guidedcd.config.selection import Selection
from guidedcd.console import console, plain_table, print_table
from guidedcd.data.clips import ClipError, sample_of
from guidedcd.data.contract import is_encoded, opened
from guidedcd.data.inspection import geometry_of, readers
from guidedcd.data.prompts import as_prompts
from guidedcd.data.routing import Route, Sample, route
from guidedcd.errors import GuidedCDError, shortened


def try_route(selection: Selection, captions: Sequence[str] = (), *, clips: int = 12) -> list[tuple[Sample, Route]]:
    """Apply a route to captions and print its decisions.

    Args:
        selection: One route, the rewards to choose from, and the data sets whose clips are used without captions.
        captions: Texts, or "@FILE".
        clips: The number of clips of the data sets.

    Returns:
        Each sample with its route.

    Raises:
        GuidedCDError: There are no rewards and no captions, or the route returned something else than a route.
    """
    chosen = selection.one("route")
    rule = {str(chosen.component()): chosen.build()}
    tokenizers, energies = readers(selection.rewards), frozenset(one.name for one in selection.energies)
    decisions = [
        (sample, route(sample, rule))
        for sample in (
            attrs.evolve(one, readers=tokenizers, energies=energies) for one in _samples(selection, captions, clips)
        )
    ]
    _print(chosen.name, decisions, list(tokenizers))
    return decisions


def described(selection: Selection, decisions: Sequence[tuple[Sample, Route]]) -> dict[str, Any]:
    """The decisions as JSON values."""
    return {
        "route": selection.one("route").name,
        "captions": [
            {
                "id": sample.id,
                "caption": sample.caption,
                "energies": decision.guided,
                "without_energies": sorted(decision.without_energies),
                "rewards": {
                    name: {
                        "scores": name in decision.rewards,
                        "caption": decision.caption_of(name),
                        "tokens": reader.count(decision.caption_of(name)),
                        "max_tokens": reader.max_tokens,
                    }
                    for name, reader in sample.readers.items()
                },
            }
            for sample, decision in decisions
        ],
    }


def _samples(selection: Selection, captions: Sequence[str], clips: int) -> list[Sample]:
    """The metadata of captions, or of the first clips of the data sets."""
    if captions:
        texts = [prompt.text for prompt in as_prompts(captions)]
        return [Sample(id=f"caption {i}", dataset="captions", caption=text) for i, text in enumerate(texts, 1)]
    samples = []
    for chosen in selection.data:
        listed = opened(chosen, geometry_of(selection.teacher, exact=is_encoded(chosen)))
        for number in range(min(clips, len(listed))):
            try:
                samples.append(sample_of(listed[number]))
            except ClipError as error:
                console.print(f"skipped  {error}", markup=False)
    if not samples:
        raise GuidedCDError("no captions: give some, a file of them (@captions.txt), or a data set (--data).")
    return samples


def _print(name: str, decisions: Sequence[tuple[Sample, Route]], rewards: Sequence[str]) -> None:
    """One row per caption: each reward with its tokens, and a second row where rewards read another caption."""
    table = plain_table("energies", *rewards, "caption")
    for sample, decision in decisions:
        marks = [_mark(sample, decision, reward) for reward in rewards]
        table.add_row(_guided(decision), *marks, shortened(sample.caption, 100))
        texts: dict[str, list[str]] = {}
        for reward in rewards:
            texts.setdefault(decision.caption_of(reward), []).append(reward)
        for text, names in texts.items():
            if text != sample.caption:
                who = "rewards" if len(texts) == 1 else f"rewards {', '.join(names)}"
                table.add_row("", *[""] * len(rewards), f"{who} read: {shortened(text, 86)}")
    print_table(table)
    counts = [f"{reward} {sum(reward in one.rewards for _, one in decisions)}" for reward in rewards]
    total = len(decisions)
    unguided = sum(_guided(one) != "yes" for _, one in decisions)
    console.print(
        f"route    {name}: {total} captions, scored by {', '.join(counts) or 'no reward'}; {unguided} without energies",
        markup=False,
    )
    if not rewards:
        console.print("note     no rewards are chosen, so none can score: add --rewards NAME[,NAME]")


def _guided(decision: Route) -> str:
    """Whether energies apply: yes, no, or which do not."""
    if not decision.guided:
        return "no"
    return f"not {', '.join(sorted(decision.without_energies))}" if decision.without_energies else "yes"


def _mark(sample: Sample, decision: Route, reward: str) -> str:
    reader = sample.readers[reward]
    tokens = f"{reader.count(decision.caption_of(reward))} of {reader.max_tokens} tokens"
    return f"yes, {tokens}" if reward in decision.rewards else f"no, {tokens}"
