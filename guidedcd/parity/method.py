"""Parity of the method: which fixture a folder contains, and what is computed from it.

Fixtures are recognised by their content: tables and timesteps of the schedule, DDIM steps, attention maps,
Algorithm 1, training steps, sampling, and forward passes of the small UNet.
"""

from __future__ import annotations

import re
from pathlib import Path

from guidedcd.documents import read_json
from guidedcd.parity import Results, Tolerance, algorithm, attention, going_on, networks, tables
from guidedcd.parity.inputs import Tensors, files, settings


def compute(folder: Path) -> Results:
    """Everything that the inputs directly in `folder` define, by golden file name."""
    results: Results = {}
    for file in files(folder):
        with going_on(file.path):
            _tensors(results, folder, file)
    for path in sorted(folder.glob("*.json")):
        if path.name not in results:
            with going_on(path):
                _numbers(results, path)
    return results


def _tensors(results: Results, folder: Path, file: Tensors) -> None:
    keys = set(file.keys)
    if _any(keys, r"ddim\d+\..+|emb\.w|scalings\.t|alphas_cumprod_official_f32"):
        results[file.name] = tables.tables(file)
    elif {"x_init", "model_outputs"} <= keys:
        results[file.name] = tables.trajectory(file)
    elif _any(keys, r"N\d+\.z_t"):
        results[file.name] = tables.ddim(file)
    elif _any(keys, r".*\.ref") and _any(keys, r".*\.gen"):
        results[file.name], results[f"{file.path.stem}.json"] = attention.pta(file)
    elif "batch.z_t" in keys:
        _training_step(results, folder, file)
    elif {"x", "timesteps", "context"} <= keys:
        results[file.name] = networks.forward(file)
    elif {"latents", "noise", "prompt_embeds", "uncond_prompt_embeds"} <= keys:
        runs = {path.stem: settings(path) for path in sorted(folder.glob("golden*.json"))}
        results |= algorithm.algorithm1(folder, file, runs or {"golden_f64": {}})
    elif {"latents", "prompt_embeds"} <= keys:
        options = _options(folder, file, {"steps", "origin", "w"})
        if options is not None:
            results[file.name], numbers = networks.sampling(file, options)
            results.setdefault("golden.json", {})[file.path.stem] = numbers


def _numbers(results: Results, path: Path) -> None:
    value = read_json(path)
    if isinstance(value, dict) and value:
        if all(re.fullmatch(r"origin\d+\.steps\d+", key) for key in value):
            results[path.name] = tables.few_step_timesteps(value)
        elif isinstance(value.get("thresholds", value.get("inference")), dict):
            results[path.name] = tables.windows(value)


def tolerance(file: str, key: str) -> Tolerance | None:
    """The tolerances of the fixtures' descriptions."""
    folder, _, name = file.rpartition("/")
    if key in ("w_emb", "w_embedding", "motion_emb", "motion_embedding"):
        return Tolerance(0.0, 2e-3)  # a last bit of a frequency, times 1000 omega rad
    match folder:
        case "pta":
            if "tie" in name and ("official" in key or "topk" in key or "motionclone" in key):
                return None  # which of equal entries a sort returns is implementation-defined
            return Tolerance(1e-12, 1e-15)
        case "ddim":
            return Tolerance(1e-6, 0.0)
        case "schedule":
            if key.startswith("emb.dim"):
                return Tolerance(0.0, 0.03)  # float32 phases of up to 5e5 rad; 2e-3 for omega up to 15
            if key.endswith("_f64_ref"):
                return Tolerance(1e-9, 0.0)
            return Tolerance(1e-5, 1e-6)
        case "algorithm1":
            return _algorithm1(name, key)
        case "cd_step":
            if "grad" in key or "group_norm" in key or "grad_norms" in name:
                return Tolerance(2e-3, 1e-6)
            return Tolerance(1e-4, 1e-6)
        case "tiny_unet":
            return Tolerance(0.0, 1e-6 if key.endswith("f64") else 2e-5)
    return Tolerance(1e-4, 1e-6)


def _algorithm1(name: str, key: str) -> Tolerance | None:
    if "max_abs_f32_minus_f64" in key:
        return None  # rounding noise, a measure of its size only
    if "sign_test" in key and "first_order" not in key:
        return Tolerance(2e-3 if "f32" in name else 1e-6, 0.0)  # moved along the score, which has that tolerance
    if "f64" in name:
        return Tolerance(1e-6, 0.0)
    literal = "literal" in key
    return Tolerance(2e-3 if "score" in key or "grad" in key or literal else 1e-3, 1e-5)


def _training_step(results: Results, folder: Path, file: Tensors) -> None:
    options = _options(folder, file, {"N", "topk"}) or {}
    name = file.path.stem
    results[file.name], numbers, norms = networks.cd_step(file, options)
    results.setdefault("golden.json", {})[name] = numbers
    for loss, values in norms.items():
        results[f"{name}_{loss}_param_grad_norms.json"] = values


def _options(folder: Path, file: Tensors, names: set[str]) -> dict | None:
    """The settings of one case: the entry in golden.json or another JSON file that has one of `names`."""
    for path in [folder / "golden.json", *sorted(folder.glob("*.json"))]:
        entry = settings(path).get(file.path.stem)
        if isinstance(entry, dict) and names & set(entry):
            return entry
    return None


def _any(keys: set[str], pattern: str) -> bool:
    return any(re.fullmatch(pattern, key) for key in keys)
