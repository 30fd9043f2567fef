"""VBench, the benchmark of text-to-video models by Huang et al. (2024): its prompts, layout and scores."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import gt, in_

from guidedcd import SuiteConfig, hookimpl


@frozen(kw_only=True)
class VBenchConfig(SuiteConfig):
    """Options of `vbench`."""

    dimensions: tuple[str, ...] = ()
    """The dimensions whose videos are generated and scored, by default all."""
    layout: str = field(default="flat", validator=in_(("flat", "folders")))
    """Where the videos lie: all in one folder (`flat`), or one folder for each list of prompts (`folders`)."""
    program: str = "vbench"
    """The installed program of VBench, in its own environment: a name on the PATH, or a path such as
    other/bin/vbench."""
    timeout: float = field(default=86_400.0, validator=gt(0))
    """Seconds after which the program is stopped, for one dimension."""


@hookimpl
def register_suites(register):
    """Offer `vbench`."""
    register(
        "vbench",
        "guidedcd_vbench.suite:VBench",
        config=VBenchConfig,
        summary="the 16 dimensions of VBench, its Quality, Semantic and Total scores, and published tables",
    )
