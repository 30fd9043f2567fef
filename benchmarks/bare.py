"""Random networks of VideoCrafter2's size, and how the benchmarks beside this file time and compare them."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "plugins")]  # where guidedcd is not installed
FRAMES, HEIGHT, WIDTH = 16, 40, 64
"""Latents of 16 frames of 320x512."""
TINY = {
    "block_out_channels": (32, 64, 64, 64),
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 16,
}
"""Arguments for trying a script out without a GPU."""


def parser(description: str | None, *, budget: float) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, help="JSON of all figures, written after each of them")
    found.add_argument("--budget", type=float, default=budget, help="no measurement begins later than this, in seconds")
    found.add_argument("--part", default="1/1", help="i/n: measure every n-th variant, beginning with the i-th")
    found.add_argument("--only", default="", help="measure variants whose name contains one of these, by commas")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--tiny", action="store_true", help="tiny networks, to try the script out")
    return found


def fill(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, also where a layer begins at zero; variances stay about one through the network."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    norms = {id(p) for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) for p in m.parameters()}
    with torch.no_grad():
        for name, p in network.named_parameters():
            std = p[0].numel() ** -0.5 if p.dim() > 1 else 0.1
            values = torch.randn(p.shape, generator=generator, device=p.device, dtype=torch.float32) * std
            p.copy_(values + 1 if id(p) in norms and name.endswith("weight") else values)
    return network.requires_grad_(False).eval()


def unet(device: str, dtype: torch.dtype, tiny: bool = False) -> UNet3DConditionModel:
    """The denoiser: 1.41 B parameters."""
    with torch.device("meta"):
        network = UNet3DConditionModel(**(TINY if tiny else {}))
    return fill(network.to(dtype).to_empty(device=device))


def vae(device: str, dtype: torch.dtype, tiny: bool = False) -> AutoencoderKL:
    """The autoencoder: 84 M parameters, 8 pixels per latent."""
    channels = (32, 32, 64, 64) if tiny else (128, 256, 512, 512)
    with torch.device("meta"):
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=channels,
            layers_per_block=2,
            norm_num_groups=32 if not tiny else 8,
        )
    return fill(network.to(dtype).to_empty(device=device), seed=1)


def inputs(batch: int, device: str, dtype: torch.dtype, tiny: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 4, F, H, W), timesteps (B,) and prompt embeddings (B, 77, D); the first rows are always the same."""
    rows = []
    size = (4, 4, 8, 8) if tiny else (4, FRAMES, HEIGHT, WIDTH)
    for row in range(batch):
        generator = torch.Generator().manual_seed(100 + row)
        rows.append(
            (torch.randn(size, generator=generator), torch.randn(77, 32 if tiny else 1024, generator=generator))
        )
    t = torch.tensor([(499 + 200 * row) % 1000 for row in range(batch)], device=device)
    z, prompt = (torch.stack(x).to(device, dtype) for x in zip(*rows, strict=True))
    return z, t, prompt


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: str, *, repeats: int = 7, warm_up: int = 2) -> tuple[float, float]:
    """(median seconds of a call, spread between the fastest and the slowest), after warm-up."""
    for _ in range(warm_up):
        run()
    synchronize(device)
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found), max(found) - min(found)


def peak_gb(device: str) -> float:
    """Most memory allocated since the last reset, what CUDA graphs keep included, in GB of 2^30 bytes."""
    if not device.startswith("cuda"):
        return float("nan")
    return (torch.cuda.max_memory_allocated() + graph_bytes()) / 2**30


def graph_bytes() -> int:
    """What CUDA graphs keep for the tensors between their kernels, which does not count as allocated."""
    kept = (one for one in torch.cuda.memory_snapshot() if tuple(one["segment_pool_id"]) != (0, 0))
    return sum(one["total_size"] - one["allocated_size"] for one in kept)


def reset(device: str) -> None:
    """Give memory back and forget its peak."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def error(found: Tensor, reference: Tensor) -> tuple[float, float]:
    """(norm of the difference over norm of the reference, largest difference over largest value)."""
    found, reference = found.double().cpu(), reference.double().cpu()
    difference = found - reference
    return (difference.norm() / reference.norm()).item(), (difference.abs().max() / reference.abs().max()).item()


class Results:
    """Rows as they become known: printed at once, and kept in a JSON file."""

    def __init__(self, out: Path | None, budget: float) -> None:
        self.out, self.budget, self.begun, self.rows = out, budget, time.monotonic(), []

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.begun

    def spent(self) -> bool:
        """Whether nothing more should begin."""
        return self.seconds > self.budget

    def add(self, **row: Any) -> None:
        """Print and keep one row."""
        row = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        row["at_s"] = round(self.seconds, 1)
        self.rows.append(row)
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps({"machine": machine(), "rows": self.rows}, indent=1))

    def table(self, columns: dict[str, str], key: str) -> None:
        """The rows that have `key`, sorted by it."""
        rows = sorted((row for row in self.rows if isinstance(row.get(key), int | float)), key=lambda row: row[key])
        if not rows:
            return
        print("\n" + "  ".join(columns))
        for row in rows:
            print("  ".join(format(row.get(name, ""), spec) if name in row else "-" for name, spec in columns.items()))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


def chosen(variants: list[Any], part: str, only: str) -> Iterator[Any]:
    """The variants of this process."""
    first, count = (int(word) for word in part.split("/"))
    words = [word for word in only.split(",") if word]
    for variant in variants[first - 1 :: count]:
        if not words or any(word in variant.name for word in words):
            yield variant
