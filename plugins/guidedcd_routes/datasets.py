"""The route `dataset:NAME`, a pure rule on metadata."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs

from guidedcd import GuidedCDError, Route, Sample
from guidedcd.data.routing import PROMPTS
from guidedcd_routes import ALL, DatasetRouteConfig


class FromDataset:
    """Rewards and energies use the clips of one dataset only.

    Several such rules of a run are one: a reward or an energy that some of them name uses the clips of their datasets.
    Rewards still score the videos that the student samples itself from prompts, which belong to no dataset.
    """

    def __init__(self, config: DatasetRouteConfig) -> None:
        """Keep the options; the dataset is checked once the run is known."""
        if not config.dataset:
            raise GuidedCDError("route 'dataset' needs the name of a dataset: write dataset:NAME.")
        self.configs: Sequence[DatasetRouteConfig] = (config,)

    @staticmethod
    def together(rules: Sequence[FromDataset]) -> FromDataset:
        """One rule in place of several."""
        joined = FromDataset(rules[0].configs[0])
        joined.configs = tuple(config for rule in rules for config in rule.configs)
        return joined

    def check_run(self, run: Any) -> None:
        """Check that the run has all datasets, rewards and energies that the options name.

        Raises:
            GuidedCDError: It lacks one.
        """
        datasets = [chosen.name for chosen in run.data]
        for config in self.configs:
            whose = f"route 'dataset:{config.dataset}'"
            _check(whose, "dataset", [config.dataset], datasets)
            _check(whose, "reward", _names(config.rewards), run.rewards)
            _check(whose, "energy", _names(config.energies), run.energies)

    def __call__(self, sample: Sample, route: Route) -> Route:
        """The route without the rewards and energies that take no clips of this sample's dataset."""
        if sample.dataset == PROMPTS:
            return route
        rewards = _withheld(sample.dataset, sample.readers, {c.dataset: c.rewards for c in self.configs})
        energies = _withheld(sample.dataset, sample.energies, {c.dataset: c.energies for c in self.configs})
        everything = all(ALL in config.energies for config in self.configs)
        return attrs.evolve(
            route,
            rewards=frozenset(route.rewards) - rewards,
            guided=route.guided and not (everything and all(c.dataset != sample.dataset for c in self.configs)),
            without_energies=route.without_energies | energies,
        )


def _names(options: Sequence[str]) -> list[str]:
    return [name for name in options if name not in (ALL, "none")]


def _check(whose: str, kind: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise GuidedCDError(
                f"{whose}: the run has no {kind} '{name}'. It has {', '.join(dict.fromkeys(known)) or 'none'}."
            )


def _withheld(dataset: str, names: Iterable[str], takes: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The rewards or energies that take clips of other datasets than this one only."""
    withheld = set()
    for name in names:
        datasets = [own for own, options in takes.items() if ALL in options or name in options]
        if datasets and dataset not in datasets:
            withheld.add(name)
    return frozenset(withheld)
