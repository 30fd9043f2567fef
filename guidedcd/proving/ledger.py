"""The ledger of a folder of results: each claim with its criteria, numbers, verdict and the paper's numbers. No torch.

It is printed, and written as ledger.json and ledger.md.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedcd import __version__
from guidedcd.console import console, counted, plain_table, print_table
from guidedcd.files import replacing, write_json
from guidedcd.proving import intervals, results
from guidedcd.proving.criteria import Criterion
from guidedcd.proving.intervals import SeedEstimate
from guidedcd.proving.proof import Claim, Proof

PAPER = {True: intervals.HOLDS, False: intervals.FAILS, None: ""}
"""Whether a claim holds on the paper's printed numbers."""


def write(proof: Proof, out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the results in `out` with the claims; print the ledger and write it there.

    Args:
        proof: The claims.
        out: The folder of results.
        about: `command`, `seconds` and `failed` of this call.

    Returns:
        The content of ledger.json.
    """
    content = build(proof, results.read_all(out), about)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "ledger.json", content)
    with replacing(out / "ledger.md") as temporary:
        temporary.write_text(page(content), encoding="utf-8")
    _print(content)
    console.print(f"ledger   {out / 'ledger.md'}", markup=False)
    return content


def build(proof: Proof, measured: results.Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ledger.json."""
    values = {
        metric: {
            arm: {seed: results.value_of(result, one) for seed, result in measured[arm].items()}
            for arm in proof.arms
            if arm in measured
        }
        for metric, one in proof.metrics.items()
    }
    listed = [result for arm in proof.arms for result in measured.get(arm, {}).values()]
    return {
        "title": proof.title,
        "quick": proof.quick,
        "guidedcd": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": about.get("command", ""),
        "failed": dict(about.get("failed", {})),
        "machines": sorted({result["machine"] for result in listed}),
        "versions": sorted({" ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in listed}),
        "minutes": round(sum(result["seconds"] for result in listed) / 60, 1),
        "wall_minutes": round(about.get("seconds", 0) / 60, 1),
        "prompts": dict(proof.prompts),
        "metrics": {name: one.about for name, one in proof.metrics.items()},
        "arms": [_arm(proof, name, measured[name], values) for name in proof.arms if name in measured],
        "claims": [_claim(claim, values) for claim in proof.claims],
        "without_meaning": [dict(one) for one in proof.without_meaning],
    }


def _arm(proof: Proof, name: str, by_seed: Mapping[int, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arm": name,
        "about": proof.arms[name].about,
        "seeds": sorted(by_seed),
        "minutes": round(sum(result["seconds"] for result in by_seed.values()) / 60, 2),
        "metrics": {
            metric: _numbers(intervals.over_seeds([v for v in values[metric][name].values() if not math.isnan(v)]))
            for metric in proof.metrics
        },
    }


def _claim(claim: Claim, values: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, Any]:
    criteria = [_criterion(one, values[one.metric]) for one in claim.criteria]
    return {
        "id": claim.id,
        "claim": claim.claim,
        "source": claim.source,
        "paper": claim.paper,
        "paper_holds": claim.paper_holds,
        "verdict": intervals.together([one["verdict"] for one in criteria]),
        "criteria": criteria,
    }


def _criterion(criterion: Criterion, values: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """The contrast of a criterion over the seeds that all of its arms have."""
    by_arm = {arm: values.get(arm, {}) for arm in criterion.factors}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_arm.values())))
    contrasts = [criterion.contrast({arm: by_arm[arm][seed] for arm in by_arm}) for seed in seeds]
    pairs = [(seed, value) for seed, value in zip(seeds, contrasts, strict=True) if not math.isnan(value)]
    estimate = intervals.over_seeds([value for _, value in pairs])
    deviation = estimate.error * math.sqrt(estimate.n) if estimate.n > 1 else math.nan
    return {
        "criterion": criterion.text,
        "seeds": [seed for seed, _ in pairs],
        "contrasts": [round(value, 5) for _, value in pairs],
        **_numbers(estimate),
        "power_at_3_seeds": _rounded(intervals.power(estimate.mean, deviation, 3)),
        "verdict": intervals.verdict(estimate, criterion.low, criterion.high),
    }


def _numbers(estimate: SeedEstimate) -> dict[str, Any]:
    return {key: _rounded(getattr(estimate, key)) for key in ("mean", "error", "low", "high")} | {"n": estimate.n}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _print(content: Mapping[str, Any]) -> None:
    """The claims and their verdicts on the terminal."""
    table = plain_table("claim", "verdict", "criteria", "the deciding one", "ours", "paper")
    for claim in content["claims"]:
        holding = sum(one["verdict"] == intervals.HOLDS for one in claim["criteria"])
        deciding = next(one for one in claim["criteria"] if one["verdict"] == claim["verdict"])
        count = f"{holding} of {len(claim['criteria'])} hold"
        paper = PAPER[claim["paper_holds"]]
        table.add_row(claim["id"], claim["verdict"], count, deciding["criterion"], shown(deciding), paper)
    print_table(table)
    counts = Counter(claim["verdict"] for claim in content["claims"])
    note = " (one seed, so that verdicts have no interval)" if content["quick"] else ""
    console.print("claims   " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + note)


def shown(numbers: Mapping[str, Any]) -> str:
    """E.g. "+0.120 ± 0.031 (3 seeds)"; "-" without results."""
    if numbers["mean"] is None:
        return "-"
    error = "" if numbers["error"] is None else f" ± {numbers['error']:.3f}"
    return f"{numbers['mean']:+.3f}{error} ({counted(numbers['n'], 'seed')})"


def _paper(claim: Mapping[str, Any]) -> str:
    holds = PAPER[claim["paper_holds"]]
    return ": ".join(text for text in (holds, claim["paper"]) if text)


def page(content: Mapping[str, Any]) -> str:
    """The ledger as Markdown."""
    lines = [f"# {content['title']}", ""]
    quick = " One seed an arm: verdicts have no interval." if content["quick"] else ""
    lines += [
        f"{content['date']}, {', '.join(content['machines']) or 'no results'}, {'; '.join(content['versions'])}. "
        f"{content['minutes']:g} minutes of training and sampling in all.{quick}",
        "",
        "```console",
        f"$ {content['command']}",
        "```",
        "",
        "A claim is a set of criteria on differences between arms, paired by seed. The numbers are means over seeds "
        "± their standard error. A criterion holds, or does not hold, where the 95 % interval of Student's t over "
        "seeds lies on one side of its bound; it is undecided otherwise.",
        "",
        "## Claims",
        "",
        "| claim | verdict | criterion | ours | paper, as printed |",
        "|---|---|---|---|---|",
    ]
    for claim in content["claims"]:
        for number, one in enumerate(claim["criteria"]):
            cells = [f"{claim['id']}: {claim['claim']}", f"**{claim['verdict']}**"] if not number else ["", ""]
            mark = "" if one["verdict"] == claim["verdict"] else f" ({one['verdict']})"
            cells += [f"`{one['criterion']}`", shown(one) + mark, _paper(claim) if not number else ""]
            lines.append(_row(cells))
    lines += ["", "## Arms", "", _row(["arm", "seeds", *content["metrics"], "minutes"])]
    lines.append("|" + "---|" * (3 + len(content["metrics"])))
    for arm in content["arms"]:
        numbers = [_plain(arm["metrics"][name]) for name in content["metrics"]]
        lines.append(_row([f"`{arm['arm']}`", ", ".join(map(str, arm["seeds"])), *numbers, f"{arm['minutes']:g}"]))
    lines += ["", *(f"- `{arm['arm']}`: {arm['about']}" for arm in content["arms"])]
    lines += ["", "Metrics:", "", *(f"- {name}: {about}" for name, about in content["metrics"].items())]
    if content["without_meaning"]:
        lines += ["", "## Claims without a meaning here", ""]
        lines += [f"- {', '.join(one['ids'])}: {one['reason']}" for one in content["without_meaning"]]
    if content["failed"]:
        lines += ["", "## Not computed", "", *(f"- {job}: {error}" for job, error in content["failed"].items())]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _plain(numbers: Mapping[str, Any]) -> str:
    """E.g. "0.612 ± 0.010"."""
    if numbers["mean"] is None:
        return "-"
    return f"{numbers['mean']:.3f}" + ("" if numbers["error"] is None else f" ± {numbers['error']:.3f}")
