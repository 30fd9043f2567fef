"""Sizes of published pipelines, by which a plan counts a model that is not on this machine.

They are the entries of the published configurations that differ from the defaults of diffusers and transformers. What
changes neither shapes nor operations is left out, such as the statistics of latents.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import attrs

T5 = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""The encoder of T5 v1.1 XXL, and of UMT5 XXL."""
VAE_5B = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


@attrs.frozen(kw_only=True)
class Pipeline:
    """The configurations of a pipeline: entries by class, without what its class has by default."""

    kind: str
    transformer: tuple[str, dict[str, Any]]
    vae: tuple[str, dict[str, Any]]
    scheduler: tuple[str, dict[str, Any]]
    text: tuple[str, str, dict[str, Any]]
    """Class, model type and entries of the text encoder."""
    index: dict[str, Any] = attrs.field(factory=dict)
    """Further entries of model_index.json."""

    def write(self, folder: Path) -> Path:
        """Write the files of its folder, which contains no weights and no tokenizer."""
        experts = ("transformer", "transformer_2")[: 2 if self.index.get("boundary_ratio") else 1]
        files: dict[str, dict[str, Any]] = {}
        index: dict[str, Any] = {"_class_name": self.kind, **self.index}
        for name in experts:
            index[name] = ["diffusers", self.transformer[0]]
            files[f"{name}/config.json"] = _config(*self.transformer)
        for name, (kind, entries) in {"vae": self.vae, "scheduler": self.scheduler}.items():
            index[name] = ["diffusers", kind]
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            files[f"{name}/{file}"] = _config(kind, entries)
        kind, model_type, entries = self.text
        index["text_encoder"], index["tokenizer"] = ["transformers", kind], ["transformers", "T5TokenizerFast"]
        files["text_encoder/config.json"] = {"architectures": [kind], "model_type": model_type, **entries}
        for name, values in {"model_index.json": index, **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=1), encoding="utf-8")
        return folder


def _config(kind: str, entries: dict[str, Any]) -> dict[str, Any]:
    return {"_class_name": kind, **entries}


def _wan(transformer: dict[str, Any], *, shift: float, vae: dict[str, Any] | None = None, **index: Any) -> Pipeline:
    """A `WanPipeline`."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return Pipeline(
        kind="WanPipeline",
        transformer=("WanTransformer3DModel", {"text_dim": 4096, **transformer}),
        vae=("AutoencoderKLWan", vae or {}),
        scheduler=("UniPCMultistepScheduler", flow),
        text=("UMT5EncoderModel", "umt5", {**T5, "vocab_size": 256384}),
        index={"boundary_ratio": None, "expand_timesteps": False, **index},
    )


WAN_14B = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
WAN_5B = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48}
PIPELINES = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        shift=3.0,
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(WAN_14B, shift=5.0),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _wan(WAN_5B, shift=5.0, vae=VAE_5B, expand_timesteps=True),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _wan(WAN_14B, shift=3.0, boundary_ratio=0.875),
    "THUDM/CogVideoX-2b": Pipeline(
        kind="CogVideoXPipeline",
        transformer=("CogVideoXTransformer3DModel", {}),
        vae=("AutoencoderKLCogVideoX", {}),
        scheduler=(
            "CogVideoXDDIMScheduler",
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        ),
        text=("T5EncoderModel", "t5", {**T5, "vocab_size": 32128}),
    ),
    "Lightricks/LTX-Video": Pipeline(
        kind="LTXPipeline",
        transformer=("LTXVideoTransformer3DModel", {}),
        vae=("AutoencoderKLLTXVideo", {}),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        text=("T5EncoderModel", "t5", {**T5, "vocab_size": 32128}),
    ),
}
"""By hub id."""


def configurations(path: str) -> tempfile.TemporaryDirectory[str] | None:
    """A temporary folder with the configurations of the published pipeline `path`; None if it is none of them."""
    if (pipeline := PIPELINES.get(path)) is None:
        return None
    folder = tempfile.TemporaryDirectory(prefix="guidedcd-")
    pipeline.write(Path(folder.name))
    return folder
