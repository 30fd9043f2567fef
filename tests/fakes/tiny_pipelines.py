"""Tiny random pipelines of diffusers, as folders that `save_pretrained` writes, for every family with a transformer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "red", "ball", "moves", "left", "two", "boats", "in", "the", "rain", "ball rolls", "to")


def tokenizer(length: int = 16) -> Any:
    """A word tokenizer with the end and padding tokens of T5, built offline."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{word: 3 + n for n, word in enumerate(WORDS)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=length
    )


def text_encoder(width: int, kind: str = "T5", layers: int = 1) -> Any:
    """A T5 or UMT5 encoder of `width`."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32,
        d_model=width,
        d_kv=4,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def perturbed(model: Any, std: float = 0.05) -> Any:
    """The model with noise on every weight, so that no layer is zero or the identity at the start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model.eval()


def wan(folder: Path, *, seed: int = 0, **choices: Any) -> Any:
    """Write a tiny `WanPipeline`, and return it.

    `choices`: heads, head_dim, layers, patch, channels, text (width), freq, ffn, vae (arguments of the autoencoder),
    scheduler, experts, boundary, expand.
    """
    import diffusers

    torch.manual_seed(seed)
    channels = choices.get("channels", 4)
    vae = {
        "base_dim": 3,
        "z_dim": channels,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": torch.randn(channels).tolist(),
        "latents_std": torch.rand(channels).add(0.5).tolist(),
        **choices.get("vae", {}),
    }

    def transformer() -> Any:
        return perturbed(
            diffusers.WanTransformer3DModel(
                patch_size=choices.get("patch", (1, 2, 2)),
                num_attention_heads=choices.get("heads", 2),
                attention_head_dim=choices.get("head_dim", 12),
                in_channels=channels,
                out_channels=channels,
                text_dim=choices.get("text", 16),
                freq_dim=choices.get("freq", 32),
                ffn_dim=choices.get("ffn", 32),
                num_layers=choices.get("layers", 2),
                rope_max_seq_len=32,
            )
        )

    two = choices.get("experts", 1) == 2
    pipeline = diffusers.WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(choices.get("text", 16), choices.get("encoder", "UMT5")),
        vae=perturbed(diffusers.AutoencoderKLWan(**vae), 0.02),
        scheduler=choices.get("scheduler", lambda: unipc(3.0))(),
        transformer=transformer(),
        transformer_2=transformer() if two else None,
        boundary_ratio=choices.get("boundary", 0.875 if two else None),
        expand_timesteps=choices.get("expand", False),
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def cogvideox(folder: Path, *, seed: int = 0, **choices: Any) -> Any:
    """Write a tiny `CogVideoXPipeline`, and return it.

    `choices`: transformer and vae (arguments), text (width), length (tokens), scheduler.
    """
    import diffusers

    torch.manual_seed(seed)
    text, length = choices.get("text", 16), choices.get("length", 12)
    transformer: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": text,
        "num_layers": 2,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "patch_size": 2,
        "max_text_seq_length": length,
        **choices.get("transformer", {}),
    }
    vae: dict[str, Any] = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": transformer["in_channels"],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "temporal_compression_ratio": 4,
        **choices.get("vae", {}),
    }
    pipeline = diffusers.CogVideoXPipeline(
        tokenizer=tokenizer(length),
        text_encoder=text_encoder(text),
        vae=perturbed(diffusers.AutoencoderKLCogVideoX(**vae), 0.02),
        transformer=perturbed(diffusers.CogVideoXTransformer3DModel(**transformer)),
        scheduler=choices.get("scheduler", cog_ddim)(),
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ltx(folder: Path, *, seed: int = 0, **choices: Any) -> Any:
    """Write a tiny `LTXPipeline`, and return it.

    `choices`: transformer and vae (arguments), text (width), scheduler.
    """
    import diffusers

    torch.manual_seed(seed)
    text = choices.get("text", 16)
    vae: dict[str, Any] = {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "patch_size": 1,
        "patch_size_t": 1,
        **choices.get("vae", {}),
    }
    transformer: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": vae["latent_channels"],
        "out_channels": vae["latent_channels"],
        "cross_attention_dim": 24,
        "caption_channels": text,
        "num_layers": 2,
        **choices.get("transformer", {}),
    }
    autoencoder = perturbed(diffusers.AutoencoderKLLTXVideo(**vae), 0.02)
    autoencoder.latents_mean.normal_()
    autoencoder.latents_std.uniform_(0.5, 1.5)
    pipeline = diffusers.LTXPipeline(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(text),
        vae=autoencoder,
        transformer=perturbed(diffusers.LTXVideoTransformer3DModel(**transformer)),
        scheduler=choices.get("scheduler", lambda: euler(1.0))(),
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def cog_ddim(**options: Any) -> Any:
    """The scheduler of CogVideoX 2B; `options` replace its arguments."""
    import diffusers

    return diffusers.CogVideoXDDIMScheduler(**{**COG, **options})


def cog_dpm(**options: Any) -> Any:
    """The scheduler of CogVideoX 5B; `options` replace its arguments."""
    import diffusers

    return diffusers.CogVideoXDPMScheduler(**{**COG, **options})


COG: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "beta_schedule": "scaled_linear",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}
"""Arguments of the schedulers of CogVideoX."""


def unipc(shift: float) -> Any:
    """The scheduler of the published Wan folders."""
    import diffusers

    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )


def euler(shift: float, **options: Any) -> Any:
    """The scheduler of flow models with Euler steps."""
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **options)


def normalized(family: str, pipeline: Any, z: torch.Tensor) -> torch.Tensor:
    """Latents of the autoencoder in the pipeline's scale."""
    if family == "cogvideox":
        return z * pipeline.vae.config.scaling_factor
    mean, std, scale = _statistics(family, pipeline.vae)
    return (z - mean) * scale / std


def decoded(family: str, pipeline: Any, z: torch.Tensor) -> torch.Tensor:
    """Pixels (B, F, 3, H, W) in [0, 1] of latents in the pipeline's scale, as the pipeline decodes them."""
    vae = pipeline.vae
    if family == "cogvideox":
        pixels = pipeline.decode_latents(z.transpose(1, 2))
    else:
        mean, std, scale = _statistics(family, vae)
        conditioned = family == "ltx" and vae.config.timestep_conditioning
        times = (torch.zeros(len(z)),) if conditioned else ()
        pixels = vae.decode(z * std / scale + mean, *times).sample
    return pipeline.video_processor.postprocess_video(pixels, output_type="pt")


def _statistics(family: str, vae: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    if family == "ltx":
        mean, std, scale = vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    else:
        mean, std, scale = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std), 1.0
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1), scale


def embedded(family: str, pipeline: Any, captions: list[str], teacher: Any) -> dict[str, torch.Tensor]:
    """The pipeline's embeddings of captions, under our names."""
    with torch.no_grad():
        parts = pipeline.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=teacher.text.length
        )
    return {"prompt_embeds": parts[0], **({"prompt_mask": parts[1]} if family == "ltx" else {})}


def packed(family: str, pipeline: Any, z: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, F, h, w) in the pipeline's layout."""
    if family == "cogvideox":
        return z.transpose(1, 2)
    if family == "ltx":
        config = pipeline.transformer.config
        return pipeline._pack_latents(z, config.patch_size, config.patch_size_t)
    return z


def shift(family: str, pipeline: Any, teacher: Any) -> float:
    """The shift of a flow pipeline's noise levels."""
    from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

    config = pipeline.scheduler.config
    if config.get("use_dynamic_shifting"):
        _, frames, height, width = teacher.geometry.latent_shape
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return math.exp(calculate_shift(frames * height * width, *(config[name] for name in names)))
    return float(config.get("flow_shift") or config.get("shift"))


def scheduler_step(
    pipeline: Any, schedule: Any, t: torch.Tensor, t_next: torch.Tensor, output: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
    """A step of the family's scheduler between two training timesteps: for flow models Euler's, else DDIM."""
    import diffusers

    if schedule.prediction == "flow":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
        scheduler.set_timesteps(sigmas=[float(schedule.sigma[t]), float(schedule.sigma[t_next])])
        return scheduler.step(output, scheduler.timesteps[0], z, return_dict=False)[0]
    scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(10)
    return scheduler.step(output, int(t), z, return_dict=False)[0]


def _sizes(**names: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return names


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "wan": _sizes(
        small={"size": {"frames": 9, "height": 32, "width": 48}},
        wide={
            "heads": 3,
            "head_dim": 16,
            "layers": 1,
            "channels": 6,
            "text": 24,
            "freq": 64,
            "encoder": "T5",
            "patch": (1, 1, 2),
            "scheduler": lambda: euler(5.0),
            "vae": {"base_dim": 4, "num_res_blocks": 2, "dim_mult": [1, 2, 1, 1]},
            "size": {"frames": 5, "height": 48, "width": 32},
        },
        tokens={
            "channels": 8,
            "expand": True,
            "scheduler": lambda: unipc(5.0),
            "vae": {
                "in_channels": 12,
                "out_channels": 12,
                "is_residual": True,
                "patch_size": 2,
                "scale_factor_spatial": 16,
            },
            "size": {"frames": 5, "height": 64, "width": 32},
        },
        experts={"experts": 2, "boundary": 0.7, "size": {"frames": 5, "height": 32, "width": 32}},
    ),
    "cogvideox": _sizes(
        small={"size": {"frames": 9, "height": 32, "width": 32}},
        rotary={
            "transformer": {
                "num_attention_heads": 3,
                "num_layers": 1,
                "in_channels": 6,
                "out_channels": 6,
                "use_rotary_positional_embeddings": True,
                "time_embed_dim": 12,
                "sample_width": 6,
            },
            "text": 24,
            "length": 9,
            "vae": {"scaling_factor": 0.7, "layers_per_block": 2},
            "scheduler": lambda: cog_dpm(snr_shift_scale=1.0),
            "size": {"frames": 17, "height": 32, "width": 64},
        },
        long={
            "transformer": {
                "patch_size_t": 2,
                "use_rotary_positional_embeddings": True,
                "patch_bias": False,
                "sample_height": 8,
                "sample_width": 8,
            },
            "scheduler": lambda: cog_ddim(snr_shift_scale=1.0),
            "size": {"frames": 9, "height": 32, "width": 48},
        },
    ),
    "ltx": _sizes(
        small={"size": {"frames": 9, "height": 32, "width": 32}},
        dynamic={
            "transformer": {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 1},
            "text": 24,
            "vae": {"latent_channels": 6, "scaling_factor": 0.8, "patch_size": 2},
            "scheduler": lambda: euler(
                1.0,
                use_dynamic_shifting=True,
                base_shift=0.95,
                max_shift=2.05,
                base_image_seq_len=16,
                max_image_seq_len=256,
            ),
            "size": {"frames": 5, "height": 32, "width": 64},
        },
        terminal={
            "vae": {"timestep_conditioning": True, "decoder_causal": True},
            "scheduler": lambda: euler(
                1.0, use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
            ),
            "size": {"frames": 13, "height": 32, "width": 32},
        },
    ),
}
"""By family and name, the choices of its function and the size of the videos."""

CALL: dict[str, Any] = {
    "wan": lambda teacher: {"max_sequence_length": teacher.text.length},
    "cogvideox": lambda teacher: {"max_sequence_length": teacher.text.length},
    "ltx": lambda teacher: {"max_sequence_length": teacher.text.length, "frame_rate": teacher.geometry.fps},
}
"""By family, further arguments of its pipeline for a teacher."""
