"""Decoding for rewards, with the gradient to the latents: stock diffusers and the policies of video teachers.

    python benchmarks/decoding.py                                       # Wan 2.1's autoencoder, 33 frames of 256x448
    python benchmarks/decoding.py --frames 81 --height 480 --width 832  # the usual size
    python benchmarks/decoding.py --fast blocks                         # with the autoencoder's faster paths

The autoencoder has random weights in bfloat16 (--tiny: float32). One video is decoded, and a weighted sum of the chosen
frames is differentiated. `few` are two frames, as random choices have them; `even` are eight from the first to the
last. `stock` is diffusers' `AutoencoderKLWan.decode`. Rows with `recomputing` are those of
`--train.activation-checkpoint.decoder true`. `pixel_error` and `gradient_error` compare with stock by relative norms.
Those of windows and of `tiny` depend on the weights: random ones state nothing about a published model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness  # first: it finds guidedcd where that is not installed
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from guidedcd_dits.wan import WanTeacher
from safetensors.torch import save_file
from torch import Tensor

from guidedcd.acceleration.autoencoders import restore_autoencoder, speed_up_autoencoder_of
from guidedcd.data.geometry import Geometry
from guidedcd.diffusion.schedule import NoiseSchedule
from guidedcd.models.checkpoints.tiny_autoencoder import TinyDecoder

TINY = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
"""Sizes of the autoencoder of --tiny."""
POLICIES = ("full", "window:2", "window:3", "window:4", "first", "tiny")


def teacher(options: argparse.Namespace, decode: str, vae: Any) -> WanTeacher:
    """A teacher with the autoencoder, and a denoiser of no size, which is not run."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    geometry = Geometry(
        frames=options.frames,
        height=options.height,
        width=options.width,
        fps=16.0,
        channels=16,
        compression=8,
        temporal_compression=4,
    )
    one = WanTeacher(
        network=WanTransformer3DModel(num_layers=1, num_attention_heads=2, ffn_dim=64),
        vae=vae,
        text=None,
        schedule=NoiseSchedule.from_scheduler(scheduler),
        geometry=geometry,
        scheduler=scheduler,
        decode=decode,
    )
    return one.to(options.device)  # type: ignore[return-value]  # of the base class


def chosen(name: str, frames: int) -> list[int]:
    """Indices of the frames that are read."""
    if name == "few":
        return [frames // 3, frames - 3]
    return [0] if name == "first" else [round(i * (frames - 1) / 7) for i in range(8)]


def stock(one: WanTeacher, z: Tensor, frames: list[int]) -> Tensor:
    """Pixels (B, k, 3, H, W) in [0, 1] by diffusers alone."""
    latents = one.denormalized(z).to(next(one.vae.parameters()).dtype)
    pixels = one.vae.decode(latents, return_dict=False)[0]
    return (pixels.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)[:, frames]


def with_gradient(decode: Callable[[Tensor, list[int]], Tensor], z: Tensor, frames: list[int]) -> tuple[Tensor, Tensor]:
    """Pixels of the frames, and the gradient of a weighted sum of them."""
    pixels = decode(z, frames)
    weights = torch.linspace(-1, 1, pixels.shape[-1], device=z.device)
    (gradient,) = torch.autograd.grad((pixels * weights).sum(), z)
    return pixels.detach(), gradient


def tiny_file(folder: Path, tiny: bool) -> Path:
    """Random weights of a tiny autoencoder of Wan 2.1."""
    decoder = TinyDecoder((16, 8, 8, 8) if tiny else (256, 128, 64, 64), (1, 2, 2), 16, 1)
    save_file(decoder.state_dict(), folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def measure(recorder: harness.Recorder, options: argparse.Namespace, folder: Path) -> None:
    """Add the row of stock diffusers and those of every policy, for each choice of frames."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**TINY if options.tiny else {}).requires_grad_(False).to(options.device)
    if not options.tiny:  # processors without bfloat16 are slow
        torch.nn.Module.to(vae, torch.bfloat16)
    file = tiny_file(folder, options.tiny)
    for name in ("few", "even", "first"):
        one = teacher(options, "full", vae)
        shape = one.geometry.latent_shape
        z = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)).to(options.device).requires_grad_()
        frames = chosen(name, options.frames)
        reference: list[tuple[Tensor, Tensor]] = []
        calls: dict[str, Callable[[Tensor, list[int]], Tensor]] = {"stock": partial(stock, one)}
        for policy in POLICIES:
            if (policy == "first") == (name == "first") or policy == "full":
                own = teacher(options, f"tiny:{file}" if policy == "tiny" else policy, vae)
                calls[policy] = own.decode
                if policy != "tiny":
                    calls[f"{policy}, recomputing"] = own.decode_recomputing
        for policy, call in calls.items():
            row = f"{name}: {policy}"
            if harness.selected(row, options.only) or policy == "stock":
                run = partial(with_gradient, call, z, frames)
                recorder.attempt(row, partial(add, recorder, row, run, options, reference))
            if policy == "stock":
                speed_up_autoencoder_of(one, options.fast)
        restore_autoencoder(vae)


def add(
    recorder: harness.Recorder,
    row: str,
    run: Callable[[], tuple[Tensor, Tensor]],
    options: argparse.Namespace,
    reference: list[tuple[Tensor, Tensor]],
) -> None:
    """Add a row; that of stock diffusers, where it fits into memory, is the reference of the others."""
    harness.free_memory()
    timing = harness.time_calls(run, options.device, repeats=options.repeats, warm_up=options.warm_up)
    pixels, gradient = (tensor.cpu() for tensor in timing.first_output)
    errors = {}
    if reference:
        errors["pixel_error"] = harness.relative_errors(pixels, reference[0][0])["relative_error"]
        errors["gradient_error"] = harness.relative_errors(gradient, reference[0][1])["relative_error"]
    elif row.endswith("stock"):
        reference.append((pixels, gradient))
    recorder.add(row, timing.values(), size=f"{options.frames}x{options.height}x{options.width}", **errors)


def main() -> None:
    """Measure."""
    parser = harness.parser(__doc__, budget=500, repeats=5)
    parser.add_argument("--frames", type=int, default=33, help="1 more than a multiple of 4")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--fast", default="no", help="--train.fast of all rows but stock, on a GPU")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = options.fast != "no"  # as in training
    if options.tiny:
        options.frames, options.height, options.width = 17, 32, 48
    recorder = harness.Recorder(options, "decoding")
    with tempfile.TemporaryDirectory() as folder:
        measure(recorder, options, Path(folder))


if __name__ == "__main__":
    main()
