"""Requirements of plugins' distributions that the environment does not meet. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def requirements(plugins: Iterable[str]) -> dict[str, list[str]]:
    """Missing requirements by distribution, for the ids of some plugins."""
    from packaging.requirements import InvalidRequirement, Requirement  # 10 ms that help does without
    from packaging.version import InvalidVersion

    missing_by_distribution: dict[str, list[str]] = {}
    for distribution in dict.fromkeys(plugin.partition("/")[0] for plugin in plugins):
        missing = []
        try:
            texts = metadata.requires(distribution) or []
        except metadata.PackageNotFoundError:
            continue  # a file or an object of the program
        for text in texts:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                missing.append(f"its requirement {text!r} cannot be read")
                continue
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            try:
                installed = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                missing.append(f"{requirement.name} is not installed")
                continue
            try:
                is_met = requirement.specifier.contains(installed, prereleases=True)
            except InvalidVersion:
                is_met = False
            if not is_met:
                missing.append(f"{requirement.name} {installed} is installed, {requirement.specifier} is required")
        missing_by_distribution[distribution] = missing
    return missing_by_distribution


def unmet(plugins: Iterable[str]) -> list[str]:
    """A sentence for each missing requirement of the distributions of some plugins."""
    return [
        f"{distribution} may not work: {text}."
        for distribution, missing in requirements(plugins).items()
        for text in missing
    ]
