"""The share of each energy's guided term in the teacher's prediction, from a store's small tensors. No torch.

The share of a draw is the RMS of what the energy adds to the eps of the guided step, over the RMS of that eps under
classifier-free guidance. An energy with a share of 0.03 % does nothing, and one with 400 % destroys the prediction.
Both train without an error, so that the share is printed wherever a store or a run is.

Legend: N guided draws with a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy
from safetensors import SafetensorError, safe_open

from guidedcd.config.run import Run
from guidedcd.console import console
from guidedcd.documents import read_json
from guidedcd.errors import with_option_names
from guidedcd.preprocessing import score_sets, shards
from guidedcd.preprocessing.score_sets import ScoreFolders

LOWEST, HIGHEST = 0.01, 2.0
"""Median shares outside of this range are reported."""
FORM = {"energy": str, "draws": int, "quantiles": list, "by_level": list}
"""Form of a share in JSON; an infinite `example_scale` is left out."""
EXAMPLE = 0.3
"""The relative strength whose scale is printed."""
BINS = 4
"""Number of bins of the noise level."""
SHARES = "shares"
"""The folder in a store with the measured shares of energies of the output."""
FACTORS = {"official": 3, "sqrt-one-minus": 4}
"""Columns of the moments with the noise factors."""


@attrs.frozen(kw_only=True)
class Share:
    """The distribution of an energy's share over draws."""

    energy: str
    draws: int
    """N."""
    quantiles: tuple[float, float, float]
    """5, 50 and 95 % of the shares."""
    by_level: Sequence[tuple[float, float, float]]
    """(lowest, highest noise level, median share), levels as fractions of the grid."""
    example_scale: float
    """The scale at which the median share is `EXAMPLE`; infinite for an energy without a gradient."""

    def lines(self) -> list[str]:
        """Sentences for the console: the share, the equal scale, and a warning where the share is out of range."""
        low, median, high = self.quantiles
        levels = ", ".join(f"{percent(share)} at {bottom:.2f}-{top:.2f}" for bottom, top, share in self.by_level)
        text = f"{self.energy}: {percent(median)} of the prediction"
        if percent(low) == percent(high):  # as with `relative`, which fixes the share
            text += f" on {self.draws:,} guided draws"
        else:
            text += f" ({percent(low)} to {percent(high)} for 5 to 95 % of {self.draws:,} guided draws; "
            text += f"by noise level {levels})"
        if numpy.isfinite(self.example_scale):
            text += f"; --energies.{self.energy}.relative {EXAMPLE} is about scale {number(self.example_scale)}"
        lines = [text]
        if warning := self.warning():
            lines.append(warning)
        return lines

    def warning(self) -> str:
        """What a share out of range means, or ""."""
        median, advice = self.quantiles[1], f"Set --energies.{self.energy}.relative, such as {EXAMPLE}."
        if not numpy.isfinite(self.example_scale):
            return f"warning: energy '{self.energy}' has no gradient on most draws, so that it does nothing there."
        if median < LOWEST:
            return f"warning: energy '{self.energy}' is below {LOWEST:.0%} of the prediction, too weak to act. {advice}"
        if median > HIGHEST:
            return f"warning: energy '{self.energy}' is above {HIGHEST:.0%} of the prediction, which it hides. {advice}"
        return ""


def percent(share: float) -> str:
    """A share in per cent with two figures: "0.031 %", "1.4 %", "160 %"."""
    return f"{number(100 * share)} %"


def number(value: float) -> str:
    """A number with two figures and without an exponent below a million: "0.031", "1.4", "160", "23,000"."""
    if value == 0 or not numpy.isfinite(value):
        return f"{value:g}"
    digits = 1 - int(numpy.floor(numpy.log10(abs(value))))
    return f"{round(value, digits):,.{max(digits, 0)}f}" if value < 1e6 else f"{value:.1e}"


def shares(folder: Path, identity: Mapping[str, Any], scores: Path, name: str, how: Mapping[str, Any]) -> Share | None:
    """The share of an energy's guided term on the draws of a store; None if there are none yet.

    Args:
        folder: The store, complete or not.
        identity: The content of its store.json.
        scores: The folder of the energy's scores.
        name: The energy.
        how: Strength and step, see `score_sets.strength_of`.

    Raises:
        GuidedCDError: A shard is damaged.
    """
    parts = [_shard(folder, scores, n) for n in range(identity["shards"]) if _exists(folder, scores, n)]
    rows = [part for part in parts if part is not None]
    if not rows:
        return None
    index, rms, moments = (numpy.concatenate(column) for column in zip(*rows, strict=True))
    # In float32, as `guidedcd.diffusion.guidance.window` compares.
    guided = index.astype(numpy.float32) >= numpy.float32((1 - how["fraction"]) * identity["steps"])
    return share_of(name, index[guided] / identity["steps"], rms[guided], moments[guided], how)


def share_of(
    name: str, levels: numpy.ndarray, rms: numpy.ndarray, moments: numpy.ndarray, how: Mapping[str, Any]
) -> Share | None:
    """The distribution of an energy's share; None without draws.

    Args:
        name: The energy.
        levels: Noise levels (N,) as fractions of the grid.
        rms: RMS of the energy's gradients (N,).
        moments: (N, 5), see `guidedcd.diffusion.guidance.moments`.
        how: Strength and step, see `score_sets.strength_of`.
    """
    if not len(levels):
        return None
    omega = how["omega"]
    prediction = numpy.sqrt(moments[:, 0] + 2 * omega * moments[:, 1] + omega**2 * moments[:, 2])
    factor = 1.0 if how["rule"] == "paper-literal" else moments[:, FACTORS[how["noise_factor"]]]
    unit = factor * rms / numpy.maximum(prediction, 1e-30)
    acting = numpy.where(unit > 0, how["strength"], 0.0) if how["is_relative"] else how["strength"] * unit
    low, median, high = numpy.quantile(acting, (0.05, 0.5, 0.95))
    edges = numpy.linspace(levels.min(), levels.max(), BINS + 1)
    bins = numpy.clip(numpy.searchsorted(edges, levels, side="right") - 1, 0, BINS - 1)
    typical = float(numpy.median(unit))
    return Share(
        energy=name,
        draws=len(levels),
        quantiles=(float(low), float(median), float(high)),
        by_level=[
            (float(edges[b]), float(edges[b + 1]), float(numpy.median(acting[bins == b])))
            for b in range(BINS)
            if (bins == b).any()
        ],
        example_scale=EXAMPLE / typical if typical > 0 else float("inf"),
    )


def print_shares(folder: Path, run: Run, identity: Mapping[str, Any], scores: ScoreFolders) -> None:
    """Print the share of each of a run's energies; that of a store of format 1 is unknown."""
    for name, part in scores.items():
        share = None if part is None else shares(folder, identity, part, name, score_sets.strength_of(run, name))
        unknown = [f"{name}: unknown, the store has no moments of its predictions"]
        print_lines(unknown if share is None else share.lines())


def print_lines(lines: Sequence[str]) -> None:
    """Print lines about a share during preprocessing."""
    for line in lines:
        console.print(f"share    {with_option_names(line)}", markup=False, highlight=False)


def read_measured(store: Path) -> list[tuple[dict[str, Any], Share]]:
    """The measured shares of energies of the output in a store: the identity of each energy, and its share."""
    measured = []
    for path in sorted((store / SHARES).glob("*.json")):
        content = read_json(path, {"scores": score_sets.FORM["scores"], "share": FORM})
        measured.append((content["scores"], Share(**{"example_scale": float("inf"), **content["share"]})))
    return measured


def _exists(folder: Path, scores: Path, number: int) -> bool:
    return all((part / f"{shards.shard_name(number)}.json").exists() for part in (folder, scores))


def _shard(folder: Path, scores: Path, number: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray] | None:
    """Grid index, RMS of the gradient, and moments of each scored draw of a shard; None without any."""
    name = f"{shards.shard_name(number)}.safetensors"
    try:
        with safe_open(folder / name, framework="np") as base, safe_open(scores / name, framework="np") as part:
            if not {"moments"} <= set(base.keys()) or not {"row", "rms"} <= set(part.keys()):
                return None
            row, rms = part.get_tensor("row").reshape(-1), part.get_tensor("rms")
            index, moments = base.get_tensor("index").reshape(-1), base.get_tensor("moments")
    except (SafetensorError, OSError) as error:
        raise shards.damaged(folder, number, error) from error
    is_scored = row >= 0
    return index[is_scored], rms[row[is_scored]], moments.reshape(len(row), -1)[is_scored]
