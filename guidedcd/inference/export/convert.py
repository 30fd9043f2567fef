"""`guidedcd convert`: writes a published checkpoint as a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedcd import __version__
from guidedcd.console import console
from guidedcd.devices import dtype_of
from guidedcd.errors import GuidedCDError, suggest
from guidedcd.files import replacing, write_json
from guidedcd.inference.export.model_card import write_card
from guidedcd.inference.export.self_test import CleanProcess, assert_close
from guidedcd.inference.export.writing import check_free, ddim_scheduler, save_model, save_text, write_index
from guidedcd.models.checkpoints import videocrafter2
from guidedcd.models.checkpoints.architecture import Architecture, check_fps
from guidedcd.models.checkpoints.open_clip_tokens import clean, possible, tokenizer, write_tokenizer
from guidedcd.models.checkpoints.reading import exists, open_state
from guidedcd.models.teachers.videocrafter2 import VideoCrafter2Teacher

if TYPE_CHECKING:
    from transformers import CLIPTextModel

PROMPTS = ("", "A cat! plays the piano, 4k -- (masterpiece)", "two red balls roll down a hill " * 30)


_BEGIN = """
import diffusers, transformers
dtype = getattr(torch, options["dtype"])
def read(kind, name, **options):
    return kind.from_pretrained(folder, subfolder=name, **options)
"""


_SCRIPTS = {
    "unet": """
unet = read(diffusers.UNet3DConditionModel, "unet", torch_dtype=dtype)
out["unet"] = unet(inputs["z"].to(dtype), inputs["t"], inputs["context"].to(dtype)).sample
""",
    "vae": """
vae = read(diffusers.AutoencoderKL, "vae", torch_dtype=dtype)
out["vae.encode"] = vae.encode(inputs["image"].to(dtype)).latent_dist.mode()
out["vae.decode"] = vae.decode(inputs["latent"].to(dtype)).sample
""",
    "text": """
text = read(transformers.CLIPTextModel, "text_encoder", torch_dtype=dtype)
out["text"] = text(input_ids=inputs["ids"]).last_hidden_state
if options["prompts"]:
    tokenizer = read(transformers.CLIPTokenizer, "tokenizer")
    length = text.config.max_position_embeddings
    ids = tokenizer(options["prompts"], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    out["ids"] = ids.input_ids
out["alphas_cumprod"] = read(diffusers.DDIMScheduler, "scheduler").alphas_cumprod
""",
}
"""Self-test of each model, run in a fresh process as soon as the model is written."""


def convert(
    kind: str,
    path: str | Path,
    out: str | Path,
    *,
    fps: float = 8,
    arch: str | Path | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a published checkpoint as a folder that diffusers reads.

    Args:
        kind: The kind of checkpoint, "videocrafter2".
        path: The published file, or its tensors as safetensors.
        out: The folder to write, which must not exist yet.
        fps: Frame rate to fold into the UNet, a whole number of frames per second.
        arch: JSON or YAML with the architecture; None is the published one.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        `out`.

    Raises:
        GuidedCDError: The kind is unknown, the file is missing, damaged or of another model, `out` exists, or the
            self-test fails.
    """
    if kind not in CONVERTERS:
        names = ", ".join(CONVERTERS)
        raise GuidedCDError(f"cannot convert '{kind}'.{suggest(kind, CONVERTERS)} guidedcd converts {names}.")
    return CONVERTERS[kind](path, out, fps=fps, arch=arch, dtype=dtype)


def convert_videocrafter2(
    path: str | Path,
    out: str | Path,
    *,
    fps: float = 8,
    arch: str | Path | None = None,
    dtype: str = "float32",
) -> Path:
    """Write VideoCrafter2's `model.ckpt` as a folder that diffusers reads; arguments and errors as in `convert`.

    The folder appears after the self-test, in which a fresh process loads each model without this package as soon as it
    is written, and computes its output. Weights are copied from the memory-mapped file.
    """
    out = Path(out).expanduser()
    check_free(out)
    weights_dtype = dtype_of(dtype)
    rate, architecture = check_fps(fps), Architecture.read(arch)
    state = open_state(exists(path, "VideoCrafter2's model.ckpt", videocrafter2.WHERE))
    views = videocrafter2.split(state)
    schedule = videocrafter2.schedule(architecture, state)
    loading: dict[str, Any] = {"dtype": weights_dtype, "copy": False}
    inputs = _inputs(architecture)
    expected: dict[str, Tensor] = {}
    options: dict[str, Any] = {"dtype": dtype, "prompts": []}
    with replacing(out) as folder, CleanProcess() as process, torch.no_grad():
        folder.mkdir()

        def test(name: str) -> None:
            process.begin(_BEGIN + _SCRIPTS[name], folder, inputs, options)

        unet = videocrafter2.load_unet(architecture.unet, views["unet"], fps=rate, **loading)
        expected["unet"] = unet(inputs["z"].to(unet.dtype), inputs["t"], inputs["context"].to(unet.dtype)).sample
        save_model(unet, folder / "unet")
        test("unet")
        del unet
        vae = videocrafter2.load_vae(architecture, views["vae"], **loading)
        expected["vae.encode"] = vae.encode(inputs["image"].to(vae.dtype)).latent_dist.mode()
        expected["vae.decode"] = vae.decode(inputs["latent"].to(vae.dtype)).sample
        save_model(vae, folder / "vae")
        test("vae")
        del vae
        text: CLIPTextModel = videocrafter2.load_text(architecture, views["text"], **loading)
        length, vocabulary = text.config.max_position_embeddings, text.config.vocab_size
        has_tokenizer = possible(vocabulary)
        if has_tokenizer:
            expected["ids"] = tokenizer(vocabulary)(list(PROMPTS), context_length=length)
            write_tokenizer(folder / "tokenizer", vocabulary, length)
            options["prompts"] = [clean(prompt) for prompt in PROMPTS]
        else:
            console.print(
                f"convert  note: open_clip has no vocabulary of {vocabulary} tokens, so no tokenizer is written"
            )
        inputs["ids"] = expected.get("ids", torch.arange(2 * length).reshape(2, -1) % vocabulary)
        expected["text"] = text(input_ids=inputs["ids"]).last_hidden_state
        betas = {"beta_start": architecture.beta_start, "beta_end": architecture.beta_end}
        scheduler = ddim_scheduler(architecture.timesteps, "epsilon", beta_schedule="scaled_linear", **betas)
        scheduler.save_pretrained(folder / "scheduler")
        expected["alphas_cumprod"] = schedule.alphas_cumprod
        save_text(text, folder / "text_encoder")
        test("text")
        del text
        write_index(folder, "TextToVideoSDPipeline", tokenizer="CLIPTokenizer" if has_tokenizer else None)
        conversion = {"source": Path(path).name, "fps": rate, "dtype": dtype, "guidedcd": __version__}
        write_json(folder / "conversion.json", conversion)
        _write_card(folder, conversion)
        error = assert_close(expected, process.results(), 1e-4 if dtype == "float32" else 5e-2)
    console.print(f"convert  {out}: loads in a fresh process, largest relative error {error:.1g}")
    return out


CONVERTERS = {"videocrafter2": convert_videocrafter2}
"""Converters by the kind of checkpoint."""


def _write_card(folder: Path, conversion: dict[str, Any]) -> None:
    """Write the folder's model card; `conversion` is the content of conversion.json."""
    write_card(
        folder,
        title="VideoCrafter2 for diffusers",
        base=VideoCrafter2Teacher.base_model,
        text=f"Converted from `{conversion['source']}`. The frame rate, an input of the published network, is fixed at "
        f"{conversion['fps']} frames per second and folded into the weights. All other weights are the published ones. "
        "Prompts were cleaned during training (ftfy, HTML entities, lower case). Clean unusual prompts in the same way "
        "before you tokenize them.",
        usage=_USAGE,
        settings=conversion,
    )


def _inputs(arch: Architecture) -> dict[str, Tensor]:
    """Small inputs of the three networks, by the names that the self-test reads."""
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
