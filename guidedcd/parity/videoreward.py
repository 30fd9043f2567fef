"""Reference numbers of VideoReward: frames, sizes, patches, token ids, scores, gradients and merged weights.

A folder is recognised by cases.safetensors beside base/config.json and a folder with model_config.json. sampling.json
and templates.json are recomputed from their inputs, config.json for its cases. Of cases.safetensors only the frames and
the other heads are read, and the names of the values.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from torch import Tensor, nn

from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints.loading import open_weights
from guidedcd.parity import Results, Tolerance, going_on
from guidedcd.rewards.scorer import even_indices

CASES, SAMPLING, TEMPLATES, MERGED = "cases.safetensors", "sampling.json", "templates.json", "merged.safetensors"


def compute(folder: Path) -> Results:
    """Everything that the inputs in `folder` define, by file name."""
    releases = sorted(folder.glob("*/model_config.json"))
    if not ((folder / CASES).is_file() and (folder / "base" / "config.json").is_file() and releases):
        return {}
    results: Results = {}
    for name, family in ((SAMPLING, _sampling), (TEMPLATES, _templates)):
        if (folder / name).is_file():
            with going_on(folder / name):
                results[name] = family(_json(folder / name))
    if (folder / MERGED).is_file():
        with going_on(folder / MERGED):
            results[MERGED] = _merged(folder / MERGED, releases[0].parent)
    with going_on(folder / CASES):
        results[CASES], results["config.json"] = _cases(folder, releases[0].parent)
    return results


def tolerance(file: str, key: str) -> Tolerance | None:
    """The tolerance of one value, from the table that accompanies the reference numbers."""
    name = re.sub(r"\.(every)?\d+$", "", key).rpartition(".")[2]
    if name == "scores_raw_if_mrope":
        return None  # what another choice of positions gives
    if name.startswith("grad_"):
        return Tolerance(2e-4, 0.0)
    if name == "hidden_reward" or name.startswith(("scores", "overall")):
        return Tolerance(0.0, 1e-4)
    if name == "pixel_values_videos":
        return Tolerance(0.0, 1e-5)
    return Tolerance(0.0, 1e-6 if file.endswith(MERGED) else 0.0)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _sampling(golden: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of frames, and numbers and indices of picked frames, without the long lists that the golden leaves out."""
    from guidedcd_videoreward.protocol import prepared_size, rounded_count, sampled_count

    limits = {key: golden["smart_resize"][key] for key in ("factor", "min_pixels", "max_pixels")}
    rows = golden["smart_resize"]["rows_h_w_newh_neww"]
    sizes = [[height, width, *prepared_size(height, width, **limits)] for height, width, *_ in rows]
    frames = []
    for row in golden["frames"]:
        total, clip_fps, options = row["T"], row["fps"], row["args"]
        inputs = {"T": total, "fps": clip_fps, "args": options}
        if "fps" in options:
            count = sampled_count(total, clip_fps, options["fps"])
        else:
            count = rounded_count(total, options["nframes"])
        if not 2 <= count <= total:
            frames.append({**inputs, "error": f"nframes should in interval [2, {total}], but got {count}."})
        else:
            indices = even_indices(total, count) if row.get("indices", ()) is not None else None
            frames.append({**inputs, "n": count, "indices": indices})
    return {"smart_resize": {**limits, "rows_h_w_newh_neww": sizes}, "frames": frames}


def _templates(golden: Mapping[str, Any]) -> dict[str, Any]:
    from guidedcd_videoreward.chat import PREFIX, SUFFIX, template

    name = "detailed_special"
    digest = hashlib.sha256(template().encode()).hexdigest()
    return {"chat_prefix": PREFIX, "chat_suffix": SUFFIX, "templates": {name: template()}, "sha256": {name: digest}}


def _merged(path: Path, release: Path) -> dict[str, Tensor]:
    from guidedcd_videoreward.checkpoint import find_release, merged_weights, present_name

    weights = merged_weights(find_release(str(release)))
    return {key: weights[present_name(key)] for key in open_weights(path, path.name)}


@attrs.frozen(eq=False)
class Case:
    """The inputs of one call of the released code."""

    videos: Sequence[Tensor]
    """Picked frames (n, 3, H, W), uint8."""
    chats: Sequence[Any]
    prepare: Any
    normalises: bool


def _cases(folder: Path, release: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The values of cases.safetensors, and the entry "cases" of config.json."""
    from guidedcd_videoreward import VideoRewardConfig
    from guidedcd_videoreward.reward import VideoReward

    config = _json(folder / "config.json")
    limits = {key: config["preprocess"][key] for key in ("min_pixels", "max_pixels")}
    architecture = str(folder / "base" / "config.json")
    reward = VideoReward(VideoRewardConfig(path=str(release), arch=architecture, **limits))
    values: dict[str, Tensor] = {}
    descriptions: dict[str, Any] = {}
    with safe_open(folder / CASES, "pt") as file:
        names = list(file.keys())
        for case, entry in config["cases"].items():
            with going_on(folder / CASES / case):
                inputs, descriptions[case] = _inputs(reward, case, entry, file, config["preprocess"]["target_fps"])
                case_names = {name.removeprefix(f"{case}.") for name in names if name.startswith(f"{case}.")}
                results = _released(reward, inputs, case_names)
                values.update({f"{case}.{name}": value for name, value in results.items()})
                for name in (name for name in names if name.endswith(f".{case}.scores_raw")):
                    head = file.get_tensor(f"{name.partition('.')[0]}.rm_head.weight")
                    values[f"{name.partition('.')[0]}.rm_head.weight"] = head
                    values[name] = _scored(reward, inputs, inputs.prepare, head)["scores_raw"]
        with going_on(folder / CASES / "real"):
            values.update(_real(reward, file, [name for name in names if name.startswith("real.")]))
    return {name: value.detach() for name, value in values.items()}, {"cases": descriptions}


def _inputs(
    reward: Any, case: str, entry: Mapping[str, Any], file: Any, target_fps: float
) -> tuple[Case, dict[str, Any]]:
    """The inputs of a case, and its description as config.json has it."""
    from guidedcd_videoreward.chat import text
    from guidedcd_videoreward.protocol import rounded_count, sampled_count

    options, videos, rows, texts = entry.get("args", {}), [], [], []
    prepare = attrs.evolve(reward.prepare, max_pixels=options.get("max_pixels") or reward.prepare.max_pixels)
    for number, video in enumerate(entry["videos"]):
        frames, total = file.get_tensor(f"{case}.frames.{number}"), video["T"]
        if options.get("num_frames"):
            count = rounded_count(total, options["num_frames"])
        else:
            count = sampled_count(total, video["fps"], options.get("fps") or target_fps)
        if count != len(frames):
            raise GuidedCDError(f"{len(frames)} frames are given, the rule picks {count} of {total}.")
        size = prepare.size(video["H"], video["W"])
        keys = ("T", "fps", "H", "W")
        row = {**{key: video[key] for key in keys}, "indices": even_indices(total, count), "resized": list(size)}
        rows.append({**row, "prompt": video["prompt"]})
        texts.append((video["prompt"], prepare.tokens(prepare.grid(count, *frames.shape[-2:]))))
        videos.append(frames)
    chats = [reward.chat.chat(prompt) for prompt, _ in texts]
    lengths = [len(chat.ids(tokens)) for chat, (_, tokens) in zip(chats, texts, strict=True)]
    positions = [chat.positions(tokens) for chat, (_, tokens) in zip(chats, texts, strict=True)]
    digests = [hashlib.sha256(text(prompt).encode()).hexdigest() for prompt, _ in texts]
    description = {"videos": rows, "L": max(lengths), "reward_positions": positions, "chat_text_sha256": digests}
    return Case(videos, chats, prepare, options.get("use_norm", True)), description


def _released(reward: Any, inputs: Case, names: set[str]) -> dict[str, Tensor]:
    """The values of a case, with rounding and, under "float.", without, under the names in `names`."""
    values = {f"frames.{number}": video for number, video in enumerate(inputs.videos)}
    prepare = inputs.prepare
    values |= _scored(reward, inputs, prepare, gradients=any("grad_" in name for name in names))
    if any(name.startswith("float.") for name in names):
        unrounded = attrs.evolve(prepare, rounding=False)
        floats = _scored(reward, inputs, unrounded, gradients=any(name.startswith("float.grad") for name in names))
        values |= {f"float.{name}": value for name, value in floats.items()}
    return _thinned(values, names)


def _thinned(values: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The values under the names of a fixture, where NAME.everyN has every N-th row."""
    bases = {name: name.partition(".every")[::2] for name in names}
    return {name: values[base][:: int(step or 1)] for name, (base, step) in bases.items() if base in values}


def _scored(
    reward: Any, inputs: Case, prepare: Any, head: Tensor | None = None, *, gradients: bool = False
) -> dict[str, Tensor]:
    """Token ids, patches, hidden states, scores and gradients of a case."""
    videos = [(video.float() / 255).requires_grad_(gradients) for video in inputs.videos]
    patches = torch.cat([prepare(video[None]) for video in videos])
    grids = [prepare.grid(len(video), *video.shape[-2:]) for video in videos]
    counts = [prepare.tokens(grid) for grid in grids]
    rows = [torch.tensor(chat.ids(count)) for chat, count in zip(inputs.chats, counts, strict=True)]
    hidden = reward.model.hidden(patches, grids, inputs.chats, reward.chat.pad)
    raw = reward.model.raw(hidden) if head is None else torch.einsum("bkc,kc->bk", hidden, head)
    scores = reward.normalised(raw) if inputs.normalises else raw
    overall = scores.sum(1)
    values = {
        "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=reward.chat.pad),
        "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "video_grid_thw": torch.tensor(grids),
        "pixel_values_videos": patches,
        "hidden_reward": hidden,
        "scores_raw": raw,
        "scores": scores,
        "overall": overall,
    }
    if gradients:
        gradient, *others = torch.autograd.grad(overall.sum(), [patches, *videos])
        values["grad_pixel_values_videos"] = gradient
        values |= {f"grad_frames.{number}": other for number, other in enumerate(others)}
    return values


def _real(reward: Any, file: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """The preparation alone, with the released limits of a frame's area."""
    from guidedcd_videoreward.reward import RELEASED_MAX_PIXELS, RELEASED_MIN_PIXELS

    prepare = attrs.evolve(reward.prepare, min_pixels=RELEASED_MIN_PIXELS, max_pixels=RELEASED_MAX_PIXELS)
    videos = [file.get_tensor(name) for name in sorted(names, key=lambda name: (len(name), name)) if ".frames." in name]
    values = {f"real.frames.{number}": video for number, video in enumerate(videos)}
    patches = torch.cat([prepare(video[None].float() / 255) for video in videos]) if videos else torch.empty(0)
    grids = [prepare.grid(len(video), *video.shape[-2:]) for video in videos]
    values |= {"real.pixel_values_videos": patches, "real.video_grid_thw": torch.tensor(grids)}
    return _thinned(values, names)
