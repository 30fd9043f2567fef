"""Write the model card of the embedded models from the meta.json beside their weights."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from guidedcd_shapes import models, world

ABOUT = {
    "vae": "stock `AutoencoderKL`, per frame",
    "text": "stock `CLIPTextModel`, context 128",
    "unet": "the teacher: a stock `UNet3DConditionModel` with temporal attention, v-prediction",
    "dit": "the teacher `shapes-dit`: a stock `WanTransformer3DModel`, flow matching",
    "clip": "open_clip's `CLIP`, context 77",
    "hps": "the same network as `clip`, tuned on better and worse pictures",
    "internv2": "InternVideo2's two towers, 4 frames, context 40",
}
ATTRIBUTES = ("color", "shape", "size", "background", "motion", "second")


def write(folder: Path, page: Path) -> None:
    """Write the model card `page` of the weights in `folder`."""
    meta = models.meta(folder)
    stages = meta.get("stages", {})
    guided = motion(stages)
    notes = "".join(f"{_item(note)}\n" for note in meta.get("notes", ()))
    variety = models.variety(folder)
    amounts = {
        "shapes are tilted": variety.tilt,
        "textures turn and shift": variety.texture,
        "paths bend": variety.sway,
    }
    properties = [text for text, amount in amounts.items() if amount]
    varied = f"Properties that no caption names vary: {' and '.join(properties)}." if properties else ""
    text = (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            folder="plugins/guidedcd_shapes/weights",
            frames=world.FRAMES,
            size=world.SIZE,
            combinations=len(world.COLORS) * len(world.SHAPES),
            variety=varied,
            prompts=stages.get("evaluation", {}).get("prompts", 320),
            models="\n".join(_row(_model(name, folder, stages)) for name in models.CONFIGS),
            bars=table(("quantity", "figure", "target", ""), bars(stages)),
            notes=f"\n### Notes\n\n{notes}\n" if notes else "",
            steps=_by_steps(stages.get("evaluation", {})),
            flow_steps=_by_steps(stages.get("dit-evaluation", {})),
            confused=table(
                ("teacher", "pair", "share of captions at the end", "the right one drawn"),
                [
                    *(("`shapes`", *row) for row in confused(stages.get("polish") or stages.get("teacher", {}))),
                    *(("`shapes-dit`", *row) for row in confused(stages.get("dit", {}))),
                ],
            ),
            judges=table(
                ("reward", "pictures", *ATTRIBUTES, "clean preferred to web-like"),
                (
                    (
                        f"`{name}`",
                        kind,
                        *_numbers(row, *ATTRIBUTES),
                        *_numbers(stages[name]["pairs"]["quality"], "clean over web"),
                    )
                    for name in ("clip", "hps", "internv2")
                    for kind, row in stages.get(name, {}).get("pairs", {}).items()
                    if kind in ("clean", "decoded", "dense", "pictures")
                ),
            ),
            motion=table(
                ("setting", "direction", "motion", "px per frame", "shape", "color", "size", "background", "misfit"),
                (
                    (
                        key,
                        *_numbers(
                            row, "direction", "motion", "speed", "shape", "color", "size", "background", "misfit"
                        ),
                    )
                    for key, row in guided.items()
                ),
            ),
        )
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(re.sub(r" +\n", "\n", text), encoding="utf-8")


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table, or a line if there are no rows."""
    lines, head = [_row(row) for row in rows], list(head)
    return "\n".join([_row(head), "|" + "---|" * len(head), *lines]) if lines else "Not measured."


def best(steps: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, str, str, Mapping[str, Any]]]:
    """The best setting by kind of prompts and number of steps: (kind, steps, solver, guidance, row)."""
    settings: dict[tuple[str, int], tuple[str, int, str, str, Mapping[str, Any]]] = {}
    for key, row in steps.items():
        match = re.fullmatch(r"(\S+) (\S+) (\d+) steps g (\S+)", key)
        if match is None:
            raise ValueError(f"meta.json has a setting that `Evaluation.steps` did not write: {key!r}")
        kind, solver, n, g = match.groups()
        if (kind, int(n)) not in settings or row.get("all", 0) > settings[kind, int(n)][-1].get("all", 0):
            settings[kind, int(n)] = (kind, int(n), solver, g, row)
    return list(settings.values())


def motion(stages: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Measurements of motion guidance by setting."""
    rows = stages.get("motion", {}).get("settings") or stages.get("evaluation", {}).get("motion guidance", {})
    return {key: row for key, row in rows.items() if key != "reference clips"}


def confused(stage: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Rows (pair, last share of swapped captions, share of correct samples at the last check) of a training."""
    if not stage.get("checks"):
        return []
    quality = stage["checks"][-1]["quality"]
    quality = quality.get("2.5", quality)
    pairs = ["/".join(pair[:2]) for pair in stage["confused"]]
    shares = stage.get("shares") or stage["final_shares"]
    return [(pair, f"{share:.3f}", f"{quality[pair]:.2f}") for pair, share in zip(pairs, shares, strict=True)]


def bars(stages: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (quantity, measured value, target, a mark if it was missed)."""
    rows: list[tuple[str, str, str, str]] = []

    def bar(quantity: str, value: float | None, low: float = 0.0, high: float = 1.0) -> None:
        if value is not None:
            target = f"at least {low:g}" if high == 1 else f"{low:g} to {high:g}" if low else f"at most {high:g}"
            rows.append((quantity, f"{value:.3f}", target, "" if low <= value <= high else "**missed**"))

    vae, evaluation = stages.get("vae", {}), stages.get("evaluation", {})
    for name, least in (("clean", 0.98), ("web", 0.95)):
        if f"truth-{name}" in vae:
            bar(f"oracle on drawn videos, {name}, all attributes", vae[f"truth-{name}"]["all"], least)
            bar(f"the same through the VAE, {name}", vae[f"through-vae-{name}"]["all"], 0.95)
    rows_by_kind = {(kind, n): row for kind, n, _, _, row in best(evaluation.get("steps", {}))}
    full = {n: row for (kind, n), row in rows_by_kind.items() if kind == "full"}
    if 50 in full:
        bar("teacher, all attributes, 50 steps", full[50]["all"], 0.6, 0.8)
        bar("direction when it is named, cosine", full[50]["direction"], 0.95)
        fresh = full[50].get("all-unseen")
        if fresh is not None:
            bar("accuracy lost on new pairs", (full[50].get("all-seen") or full[50]["all"]) - fresh, high=0.3)
        for n, most_lost in ((4, 0.1), (2, 0.2)):
            bar(f"accuracy lost at {n} steps", full[50]["all"] - full[n]["all"] if n in full else None, most_lost)
    if ("no-motion", 50) in rows_by_kind:
        share = rows_by_kind["no-motion", 50]["speed"] / evaluation["distillation clips' speed"]
        bar("speed without motion words, share of the distillation clips'", share, high=0.6)
    for name in ("clip", "hps", "internv2"):
        row = stages.get(name, {}).get("pairs", {}).get("clean", {})
        looks = [row[a] for a in ATTRIBUTES[:4] if a in row]
        bar(f"`{name}` on minimal pairs: colour, shape, size, background, the lowest", min(looks, default=None), 0.9)
        if name == "internv2":
            bar("`internv2` on minimal pairs: direction", row.get("motion"), 0.9)
    guided = motion(stages)
    if guided:
        plain = {key.rpartition(" ")[2]: row for key, row in guided.items() if key.startswith("none")}
        pairs = [(row, plain[key.rpartition(" ")[2]]) for key, row in guided.items() if not key.startswith("none")]
        cheap = [row for row, none in pairs if min(row[a] - none[a] for a in ("shape", "color")) >= -0.02]
        most = max((r["direction"] for r in cheap), default=0.0)
        bar("motion guidance, direction at a cost of at most 0.02 in shape and in colour", most, 0.9)
    return rows


def _by_steps(stage: Mapping[str, Any]) -> str:
    """The table of a teacher's evaluation: its best setting by kind of prompts and number of steps."""
    columns = ("all", "all-unseen", *ATTRIBUTES, "speed-class", "direction", "misfit")
    rows = ((kind, n, solver, g, *_numbers(row, *columns)) for kind, n, solver, g, row in best(stage.get("steps", {})))
    return table(
        ("prompts", "steps", "solver", "g", *(name.replace("all-unseen", "all, new pairs") for name in columns)), rows
    )


def _model(name: str, folder: Path, stages: Mapping[str, Any]) -> tuple[Any, ...]:
    path = folder / f"{name}.safetensors"
    records = [stages.get(stage, {}) for stage in (("teacher", "polish") if name == "unet" else (name,))]
    size = f"{path.stat().st_size / 2**20:.1f}" if path.exists() else ""
    steps = " + ".join(
        f"{s['steps']} of {s['batch']}" if "batch" in s else str(s["steps"]) for s in records if "steps" in s
    )
    seconds = sum(s.get("seconds") or 0 for s in records)
    return f"`{name}`", ABOUT[name], size, steps, f"{seconds:.0f}" if seconds else ""


def _numbers(row: Mapping[str, Any], *names: str) -> list[str]:
    return ["" if row.get(name) is None else f"{row[name]:.3f}" for name in names]


def _item(text: str) -> str:
    """An item of a list, wrapped at 100 characters."""
    return textwrap.fill(text, 100, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
