"""`guidedcd convert`: a published checkpoint as a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedcd.console import console
from guidedcd.devices import dtype_of
from guidedcd.errors import GuidedCDError
from guidedcd.files import replacing, write_json
from guidedcd.inference.export.model_card import write_card
from guidedcd.inference.export.self_test import Fresh, compare
from guidedcd.inference.export.writing import free, save_module, save_text
from guidedcd.models.checkpoints import videocrafter2
from guidedcd.models.checkpoints.architecture import Architecture, check_fps
from guidedcd.models.checkpoints.open_clip_tokens import clean, possible, tokenizer, write_tokenizer
from guidedcd.models.checkpoints.reading import exists, open_state
from guidedcd.models.teachers.videocrafter2 import VideoCrafter2Teacher
from guidedcd.version import __version__

PROMPTS = ("", "A cat! plays the piano, 4k -- (masterpiece)", "two red balls roll down a hill " * 30)


_BEGIN = """
import diffusers, transformers
dtype = getattr(torch, options["dtype"])
def read(kind, part, **kept):
    return kind.from_pretrained(folder, subfolder=part, **kept)
"""


_SCRIPTS = {
    "unet": """
unet = read(diffusers.UNet3DConditionModel, "unet", torch_dtype=dtype)
out["unet"] = unet(given["z"].to(dtype), given["t"], given["context"].to(dtype)).sample
""",
    "vae": """
vae = read(diffusers.AutoencoderKL, "vae", torch_dtype=dtype)
out["vae.encode"] = vae.encode(given["image"].to(dtype)).latent_dist.mode()
out["vae.decode"] = vae.decode(given["latent"].to(dtype)).sample
""",
    "text": """
text = read(transformers.CLIPTextModel, "text_encoder", torch_dtype=dtype)
out["text"] = text(input_ids=given["ids"]).last_hidden_state
if options["prompts"]:
    tokenizer = read(transformers.CLIPTokenizer, "tokenizer")
    length = text.config.max_position_embeddings
    ids = tokenizer(options["prompts"], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    out["ids"] = ids.input_ids
out["alphas_cumprod"] = read(diffusers.DDIMScheduler, "scheduler").alphas_cumprod
""",
}
"""What a fresh process repeats of each part, as soon as it is written."""


def convert(
    kind: str,
    path: str | Path,
    out: str | Path,
    *,
    fps: int = 8,
    arch: str | Path | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a published checkpoint as a folder that diffusers reads.

    Args:
        kind: What the file is: "videocrafter2".
        path: The published file, or its tensors as safetensors.
        out: The folder; must not exist yet.
        fps: Frame rate to fold into the UNet, frames per second.
        arch: JSON or YAML with the architecture; None is the published one.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        `out`.

    Raises:
        GuidedCDError: The kind is unknown, the file is missing, damaged or another model, or `out` exists.
    """
    if kind != "videocrafter2":
        raise GuidedCDError(f"cannot convert '{kind}'. Known: videocrafter2.")
    return convert_videocrafter2(path, out, fps=fps, arch=arch, dtype=dtype)


def convert_videocrafter2(
    path: str | Path,
    out: str | Path,
    *,
    fps: int = 8,
    arch: str | Path | None = None,
    dtype: str = "float32",
) -> Path:
    """Write VideoCrafter2's `model.ckpt` as a folder that diffusers reads, whole or not at all.

    Weights are copied from the mapped file, so hardly any memory is needed. Ends with a self-test: a fresh process
    loads each part without this package as soon as it is written, and repeats its output.

    Args:
        path: The published file, or its tensors as safetensors.
        out: The folder; must not exist yet.
        fps: Frame rate to fold into the UNet, frames per second.
        arch: JSON or YAML with the architecture; None is the published one.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        `out`.

    Raises:
        GuidedCDError: The file is missing, damaged or something else, `out` exists, or the self-test fails.
    """
    out = Path(out).expanduser()
    free(out)
    weights_dtype = dtype_of(dtype)
    fps, architecture = check_fps(fps), Architecture.read(arch)
    state = open_state(exists(path, "VideoCrafter2's model.ckpt", videocrafter2.WHERE))
    views = videocrafter2.split(state)
    schedule = videocrafter2.schedule(architecture, state)
    kept: dict[str, Any] = {"dtype": weights_dtype, "copy": False}
    given = _inputs(architecture)
    expected: dict[str, Tensor] = {}
    options: dict[str, Any] = {"dtype": dtype, "prompts": []}
    with replacing(out) as folder, Fresh() as test, torch.no_grad():
        folder.mkdir()

        def check(part: str) -> None:
            test.begin(_BEGIN + _SCRIPTS[part], folder, given, options)

        unet = videocrafter2.load_unet(architecture.unet, views["unet"], fps=fps, **kept)
        expected["unet"] = unet(given["z"].to(unet.dtype), given["t"], given["context"].to(unet.dtype)).sample
        save_module(unet, folder / "unet")
        check("unet")
        del unet
        vae = videocrafter2.load_vae(architecture, views["vae"], **kept)
        expected["vae.encode"] = vae.encode(given["image"].to(vae.dtype)).latent_dist.mode()
        expected["vae.decode"] = vae.decode(given["latent"].to(vae.dtype)).sample
        save_module(vae, folder / "vae")
        check("vae")
        del vae
        text = videocrafter2.load_text(architecture, views["text"], **kept)
        config = text.config
        length, readable_words = config.max_position_embeddings, possible(config.vocab_size)
        if readable_words:
            expected["ids"] = tokenizer(config.vocab_size)(list(PROMPTS), context_length=length)
            write_tokenizer(folder / "tokenizer", config.vocab_size, length)
            options["prompts"] = [clean(prompt) for prompt in PROMPTS]
        else:
            console.print(
                f"convert  note: open_clip has no vocabulary of {config.vocab_size} tokens, so no tokenizer is written"
            )
        given["ids"] = expected.get("ids", torch.arange(2 * length).reshape(2, -1) % config.vocab_size)
        expected["text"] = text(input_ids=given["ids"]).last_hidden_state
        write_scheduler(folder / "scheduler", architecture)
        expected["alphas_cumprod"] = schedule.alphas_cumprod
        save_text(text, folder / "text_encoder")
        check("text")
        del text
        write_index(folder, tokenizer=readable_words)
        about = {"source": Path(path).name, "fps": fps, "dtype": dtype, "guidedcd": __version__}
        write_json(folder / "conversion.json", about)
        _write_card(folder, about)
        error = compare(expected, test.results(), 1e-4 if dtype == "float32" else 5e-2)
    console.print(f"convert  {out}: loads in a fresh process, largest error {error:.1g} of the magnitude")
    return out


def _write_card(folder: Path, about: dict[str, Any]) -> None:
    """Write the folder's model card; `about` is the content of conversion.json."""
    write_card(
        folder,
        title="VideoCrafter2 for diffusers",
        base=VideoCrafter2Teacher.base_model,
        text=f"Converted from `{about['source']}`. The network is told {about['fps']} frames per second: that input is "
        "folded into its weights. Every other weight is the published one. Texts were cleaned during training "
        "(ftfy, HTML entities, lower case); clean unusual ones before you tokenize them.",
        usage=_USAGE,
        settings=about,
    )


def write_scheduler(folder: Path, arch: Architecture) -> None:
    """The DDIM scheduler that samples as VideoCrafter's script does, without its scaling of clean latents."""
    from diffusers import DDIMScheduler

    DDIMScheduler(
        num_train_timesteps=arch.timesteps,
        beta_start=arch.beta_start,
        beta_end=arch.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    ).save_pretrained(folder)


def write_index(folder: Path, *, tokenizer: bool = True) -> None:
    """`model_index.json` of a text-to-video pipeline, with or without a tokenizer."""
    import diffusers

    write_json(
        folder / "model_index.json",
        {
            "_class_name": "TextToVideoSDPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"] if tokenizer else [None, None],
            "unet": ["diffusers", "UNet3DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _inputs(arch: Architecture) -> dict[str, Tensor]:
    """Small inputs for the three networks."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    side, pixels = 2 ** (len(arch.unet["channel_mult"]) - 1), 4 * arch.compression
    channels = arch.unet.get("in_channels", 4)
    return {
        "z": normal(1, channels, 2, side, 2 * side),
        "t": torch.tensor([500]),
        "context": normal(1, 7, arch.unet["context_dim"]),
        "image": normal(1, arch.ddconfig.get("in_channels", 3), pixels, 2 * pixels).clamp(-1, 1),
        "latent": normal(1, arch.embed_dim, 4, 8),
    }


_USAGE = """
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("FOLDER", torch_dtype=torch.float16).to("cuda")
frames = pipe("a red panda eats bamboo", num_frames=16, height=320, width=512, num_inference_steps=50,
              guidance_scale=12.0).frames
"""
