"""Parity of the checkpoint readers: whole VideoCrafter2 files, T2V-Turbo students, tokens, schedules.

Networks run in float64 with weights upcast from the file, so that the errors are the rounding of the goldens.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.diffusion.embeddings import guidance_scale_embedding
from guidedcd.documents import read_json
from guidedcd.errors import GuidedCDError
from guidedcd.models.checkpoints import t2v_turbo, videocrafter2
from guidedcd.models.checkpoints.architecture import Architecture
from guidedcd.models.checkpoints.lvdm_unet import unet_config
from guidedcd.models.checkpoints.open_clip_tokens import tokenizer
from guidedcd.models.checkpoints.reading import View, open_state
from guidedcd.models.guidance_inputs import set_fps
from guidedcd.parity import Results, Tolerance
from guidedcd.parity.generated_weights import generated
from guidedcd.parity.inputs import Tensors
from guidedcd.parity.reference_samplers import half_embedding
from guidedcd.parity.sampler_tables import schedules, schedules_json

WHOLE = ("model.safetensors", "model.ckpt", "model.pt")
STUDENT = ("unet.safetensors", "unet.pt", "unet_mg.pt", "unet_no_mg.pt")
LORA = ("unet_lora.pt",)
PRECISE = torch.float64


def compute(folder: Path) -> Results:
    """Everything that the inputs in `folder` define, by file name; {} where the folder has none."""
    results: Results = {}
    if (tokens := folder / "tokenizer_golden.json").is_file():
        results[tokens.name] = _tokens(read_json(tokens))
    if (tables := folder / "schedules.safetensors").is_file():
        results[tables.name] = schedules(Tensors(tables))
    if (tables := folder / "schedules.json").is_file():
        results[tables.name] = schedules_json(read_json(tables))
    if (folder / "io.safetensors").is_file() and (folder / "config.json").is_file():
        io, config = Tensors(folder / "io.safetensors"), read_json(folder / "config.json")
        with torch.no_grad():
            values = _networks(folder, config, io)
        if values:
            inputs = {key: io[key] for key in io.keys if not key.startswith("out.") and key not in values}
            results["io.safetensors"] = {**inputs, **{key: _single(value) for key, value in values.items()}}
    return results


def tolerance(file: str, key: str) -> Tolerance | None:
    """The tolerance of one value; None for inputs."""
    if file.endswith("io.safetensors"):
        if key.startswith("out."):
            return Tolerance(relative=0, absolute=5e-5 if "lora" in file else 2e-5)
        return Tolerance(relative=0, absolute=1e-6) if key.endswith("_embedding") else None
    if file.endswith("schedules.safetensors"):
        if key.startswith("vc2_ddim") and key.endswith("sample"):
            return Tolerance(relative=1e-4, absolute=0)
        return Tolerance(relative=0, absolute=1e-5 if ".step" in key else 1e-6)
    return Tolerance(relative=0, absolute=1e-6 if file.endswith("schedules.json") else 0)


def _networks(folder: Path, config: Mapping[str, Any], io: Tensors) -> dict[str, Tensor]:
    if "unet.x" in io and (state := _whole(folder, config)) is not None:
        return _checkpoint(state, config, io)
    if (path := _first(folder, LORA)) is not None:
        return _low_rank(path, config, io)
    if (path := _first(folder, STUDENT)) is not None:
        return _student(open_state(path), config, io)
    return {}


def _whole(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
    if (path := _first(folder, WHOLE)) is not None:
        return open_state(path)
    if (folder / "keys.json").is_file():
        return generated(read_json(folder / "keys.json"), config)
    return None


def _checkpoint(state: Mapping[str, Tensor], config: Mapping[str, Any], io: Tensors) -> dict[str, Tensor]:
    """UNet, autoencoder and text tower of a whole file."""
    arch, views = Architecture.from_config(config), videocrafter2.split(state)
    videocrafter2.schedule(arch, state)
    out: dict[str, Tensor] = {}
    x, context = io["unet.x"].to(PRECISE), io["unet.context"].to(PRECISE)
    t_pair, fps_pair = io["unet.t_pair"], io["unet.fps_pair"]
    live = videocrafter2.load_unet(arch.unet, views["unet"], fps=None, dtype=PRECISE)

    for t in _numbers(t_pair, io.keys, r"out\.unet\.time_embed_t(\d+)"):
        times = torch.full((len(x),), t)
        embedding = live.time_embedding
        sinusoid = live.time_proj(times).to(PRECISE)
        out[f"unet.time_embed_t{t}"] = embedding.linear_2(embedding.act(embedding.linear_1(sinusoid)))
    for fps in _numbers(fps_pair, io.keys, r"out\.unet\.fps_embed_fps(\d+)"):
        out[f"unet.fps_embed_fps{fps}"] = live.time_embedding.post_act.embed(torch.full((len(x),), fps))
    set_fps(live, fps_pair)
    out["unet.eps_tmixed_fpsmixed"] = live(x, t_pair, context).sample
    del live

    timesteps: dict[int, dict[str, Tensor]] = {}  # by frame rate and name of the case
    for t, fps in _pairs(t_pair, fps_pair, io.keys):
        timesteps.setdefault(fps, {})[f"eps_t{t}_fps{fps}"] = torch.tensor(t)
    for fps in _numbers([16], io.keys, r"out\.unet\.eps_tmixed_fps(\d+)"):
        timesteps.setdefault(fps, {})[f"eps_tmixed_fps{fps}"] = t_pair
    for fps in dict.fromkeys([int(fps_pair[0]), *timesteps]):
        folded = videocrafter2.load_unet(arch.unet, views["unet"], fps=fps, dtype=PRECISE)
        if fps == int(fps_pair[0]):
            out["unet.eps_1frame"] = folded(x[:1, :, :1], t_pair[:1], context[:1]).sample
        for name, times in timesteps.get(fps, {}).items():
            out[f"unet.{name}"] = folded(x, times.expand(len(x)), context).sample

    vae = videocrafter2.load_vae(arch, views["vae"], dtype=PRECISE)
    posterior = vae.encode(io["vae.image"].to(PRECISE)).latent_dist
    out["vae.mean"], out["vae.logvar"] = posterior.mean, posterior.logvar
    out["vae.decode_z"] = vae.decode(io["vae.z"].to(PRECISE)).sample
    video = io["vae.video_latent_scaled"].to(PRECISE) / arch.scale
    frames = vae.decode(video.transpose(1, 2).flatten(0, 1)).sample
    out["vae.video_decoded"] = frames.unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)

    text = videocrafter2.load_text(arch, views["text"], dtype=PRECISE)
    torch.set_default_dtype(PRECISE)  # the dtype of the causal mask in transformers before 5
    try:
        out["text.embedding"] = text(input_ids=io["text.tokens"]).last_hidden_state
    finally:
        torch.set_default_dtype(torch.float32)
    return {f"out.{key}": value for key, value in out.items()}


def _student(state: Mapping[str, Tensor], config: Mapping[str, Any], io: Tensors) -> dict[str, Tensor]:
    """The conditioning paths of a v2 student: four with an energy input, two without."""
    x, t, context = io["x"].to(PRECISE), io["t"], io["context"].to(PRECISE)
    out = _embeddings(io)
    omega = _embedding(io, "omega_embedding", out)
    paths: dict[str, Tensor | None] = {"no_motion_arg": omega, "teacher_path": None}
    motion: Tensor | None = None
    if "motion_cond_proj.weight" in state:
        motion = torch.cat([omega, _embedding(io, "lambda_embedding", out)], dim=1)
        paths["motion"] = motion
        paths["motion_zero"] = torch.cat([omega, _embedding(io, "lambda_zero_embedding", out)], dim=1)
    used = [int(fps) for fps in config.get("fps_used", [8, 16])]
    named = {m.groups() for key in io.keys if (m := re.fullmatch(r"out\.eps_(\w+?)_fps(\d+)", key))}
    for number, fps in enumerate(dict.fromkeys([*used, *(int(f) for _, f in named)])):
        network = videocrafter2.load_unet(config, state, fps=fps, dtype=PRECISE)
        for path, cond in paths.items():
            if number == 0 or path == "motion" or (path, str(fps)) in named:
                out[f"out.eps_{path}_fps{fps}"] = network(x, t, context, timestep_cond=cond).sample
        if number == 0 and motion is not None:
            out["out.eps_motion_b1"] = network(x[:1], t[:1], context[:1], timestep_cond=motion[:1]).sample
    live = videocrafter2.load_unet(config, state, fps=None, dtype=PRECISE)
    embedding = live.time_embedding
    for path, cond in paths.items():
        into = live.time_proj(t).to(PRECISE)
        into = into if cond is None else into + embedding.cond_proj(cond)
        out[f"out.time_embed_in_{path}"] = into
        out[f"out.time_embed_out_{path}"] = embedding.linear_2(embedding.act(embedding.linear_1(into)))
    return out


def _low_rank(path: Path, config: Mapping[str, Any], io: Tensors) -> dict[str, Tensor]:
    """A v1 student: the low-rank weights of its list merged into the base, and the base without them."""
    name = config.get("base_checkpoint", "../vc2_tiny/model.safetensors").split()[0]
    base = path.parent / name
    whole = open_state(base) if base.is_file() else None
    if whole is None and (base.parent / "config.json").is_file():
        whole = _whole(base.parent, read_json(base.parent / "config.json"))
    if whole is None:
        raise GuidedCDError(f"{path} needs its base model {name}, named in {path.parent / 'config.json'}.")
    state: Any = View(whole, videocrafter2.PREFIXES["unet"])
    if t2v_turbo.OMEGA in io:
        state = {**state, t2v_turbo.OMEGA: io[t2v_turbo.OMEGA]}
    state = {key: value.to(PRECISE) for key, value in state.items()}
    x, t, context = io["x"].to(PRECISE), io["t"], io["context"].to(PRECISE)
    out = _embeddings(io)
    cond = _embedding(io, "omega_embedding", out)
    fps = config.get("fps_used", 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = t2v_turbo.read_student(path, unet_config(config), state)
    for key, weights in {"out.eps_merged": merged, "out.eps_base_without_lora": state}.items():
        network = videocrafter2.load_unet(config, weights, fps=fps, dtype=PRECISE)
        has_omega = t2v_turbo.OMEGA in weights
        out[key] = network(x, t, context, timestep_cond=cond if has_omega else None).sample
    out["out.eps_unmerged_eval"] = out["out.eps_merged"]
    return out


def _embeddings(io: Tensors) -> dict[str, Tensor]:
    """The embeddings of the guidance inputs, float32; "_bf16" is the released pipeline's, in half precision."""

    def width(name: str) -> int:
        return io.shape(name)[1] if name in io else 256

    out = {"omega_embedding": guidance_scale_embedding(io["omega"], width("omega_embedding"))}
    if "lambda" in io:
        strength, wide = io["lambda"], width("lambda_embedding")
        out["lambda_embedding"] = guidance_scale_embedding(strength, wide)
        out["lambda_zero_embedding"] = guidance_scale_embedding(torch.zeros_like(strength), wide)
        out["lambda_embedding_bf16"] = half_embedding(strength, wide).float()
    return out


def _embedding(io: Tensors, name: str, computed: Mapping[str, Tensor]) -> Tensor:
    """The embedding from the fixture, or the computed one where the fixture has none."""
    return (io[name] if name in io else computed[name]).to(PRECISE)


def _tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids of every prompt."""
    tokens = tokenizer()
    cases = config["cases"]
    ids = tokens([case["prompt"] for case in cases], context_length=len(cases[0].get("ids", [0] * 77)))
    special = {"sot": tokens.sot_token_id, "eot": tokens.eot_token_id, "pad": 0}
    rows = [{"prompt": case["prompt"], "ids": row.tolist()} for case, row in zip(cases, ids, strict=True)]
    return {**special, "cases": rows}


def _numbers(numbers: Iterable[Any], keys: Iterable[str], pattern: str) -> list[int]:
    """Distinct `numbers`, then those in the keys that match `pattern`."""
    named = (int(m[1]) for key in keys if (m := re.fullmatch(pattern, key)))
    return list(dict.fromkeys([*(int(n) for n in numbers), *named]))


def _pairs(times: Tensor, rates: Tensor, keys: Iterable[str]) -> list[tuple[int, int]]:
    """Every timestep with every frame rate, then the pairs in the names of the keys."""
    named = (m.groups() for key in keys if (m := re.fullmatch(r"out\.unet\.eps_t(\d+)_fps(\d+)", key)))
    every = [(int(t), int(fps)) for t in times for fps in rates]
    return list(dict.fromkeys([*every, *((int(t), int(fps)) for t, fps in named)]))


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
