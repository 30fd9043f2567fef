"""What a run's store asks of the teacher, in passes: expectations over the random draws."""

from __future__ import annotations

import attrs
import numpy

from guidedcd.config.run import Run
from guidedcd.diffusion.guidance import draw_index, guided_from

POINTS = 4096
"""Points at which each draw's random number is looked at."""


@attrs.frozen(kw_only=True)
class Passes:
    """What one video asks of the teacher on average."""

    inversion: float
    """Steps of its DDIM inversion."""
    scored: float
    """Draws with scores: a pass without the caption, one for each kind of reference, one with a gradient."""
    plain: float
    """Draws without: a pass with and one without the caption."""


def passes(run: Run) -> Passes:
    """The expected passes of one video.

    The draws of a video are stratified: draw i of D stands at solver index floor((i + u) N / D), u uniform in [0, 1),
    squeezed into the range that draws come from.
    One inversion, up to the last scored draw, serves all of them.
    """
    steps, draws = run.solver.steps, run.preprocess.draws_per_video
    first = guided_from(run.preprocess.window, steps) if run.energies else steps
    u = (numpy.arange(POINTS) + 0.5) / POINTS
    place = (numpy.arange(draws)[:, None] + u) * steps / draws
    index = draw_index(place, steps, run.preprocess.noise_range)
    scored = index >= first
    inverts = any(config.reference == "inversion" for config in run.energies.values())
    return Passes(
        inversion=float(((index[-1] + 1) * scored[-1]).mean()) if inverts else 0.0,
        scored=float(scored.mean(1).sum()),
        plain=float((~scored).mean(1).sum()),
    )
