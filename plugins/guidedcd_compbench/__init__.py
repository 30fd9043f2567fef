"""T2V-CompBench, the benchmark of compositional text-to-video generation by Sun et al. (2024): its tables."""

from __future__ import annotations

from attrs import frozen

from guidedcd import SuiteConfig, hookimpl


@frozen(kw_only=True)
class CompBenchConfig(SuiteConfig):
    """Options of `t2v-compbench`."""


@hookimpl
def register_suites(register):
    """Offer `t2v-compbench`."""
    register(
        "t2v-compbench",
        "guidedcd_compbench.suite:CompBench",
        config=CompBenchConfig,
        summary="the 7 categories of T2V-CompBench, from its CSV files, and published values",
    )
