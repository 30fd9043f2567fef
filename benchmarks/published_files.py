"""Published checkpoints at full size: written with random weights, read by the real loaders, run once each.

    python benchmarks/published_files.py --manifests FOLDER --out published_files.json  # one GPU, 13 GB of disk
    python benchmarks/published_files.py --tiny  # the same on any machine, in seconds

Lines, each printed as soon as it is known: what was written and read (seconds, GB, anonymous memory), one PTA score,
one 4-step sample with decoding, one pass of each reward with the gradient to the pixels. A line that fails says why
and the others go on. Seconds are medians after one call that is not counted; peaks include the weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import random_files
import torch
from measuring import GB, Anonymous, Report, finite, free, measured
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "plugins")]  # where guidedcd is not installed; it is imported below, when needed
PROMPT = "a red panda eats bamboo in a snowy forest"
REWARDS = ("hps", "clip", "internv2", "internv2-8", "pickscore")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifests", type=Path, help="folder with {key: shape} files of the published checkpoints")
    parser.add_argument("--out", type=Path, help="JSON file, rewritten after every line")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--only", help="comma-separated: videocrafter2, " + ", ".join(REWARDS))
    parser.add_argument("--scratch", type=Path, help="where files are written, one or two at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=230, help="seconds; what has not begun by then is left out")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and videos")
    return parser.parse_args(arguments)


def written(report: Report, name: str, scratch: Path, device: torch.device) -> Path:
    """Write a published file of random weights; a line about it."""
    report.check()
    options = report.options
    shapes = None if options.tiny else random_files.manifest(name, options.manifests)
    source = "manifest" if shapes else "this package's tables"
    shapes = shapes or random_files.derived(name, options.tiny)
    began = time.perf_counter()
    path = random_files.write(name, shapes, scratch, device)
    size, seconds = path.stat().st_size / GB, time.perf_counter() - began
    report.add(f"write {name}", file=path.name, gb=round(size, 4), keys_from=source, seconds=round(seconds, 1))
    return path


def loaded(report: Report, name: str, path: Path, load: Callable[[], Any]) -> Any:
    """What `load` reads; a line about it."""
    with Anonymous() as memory:
        found = load()
    size = path.stat().st_size / GB
    report.add(
        f"load {name}", seconds=round(memory.seconds, 2), anonymous_gb=round(memory.gb, 3), file_gb=round(size, 4)
    )
    return found


def videocrafter2(report: Report, scratch: Path, device: torch.device) -> None:
    """The teacher, one PTA score of it, the student, one sample of it."""
    from guidedcd.inference.published import load_student
    from guidedcd.models.teachers.videocrafter2 import load_videocrafter2

    options, dtype = report.options, getattr(torch, report.options.dtype)
    size = {"frames": 2, "height": 16, "width": 32} if options.tiny else {"frames": 16, "height": 320, "width": 512}
    path = student_path = None
    teacher = student = None
    try:
        with report.going_on("load videocrafter2"):
            path = written(report, "videocrafter2", scratch, device)
            arch = random_files.arch_file(scratch) if options.tiny else None
            teacher = loaded(
                report, "videocrafter2", path, lambda: load_videocrafter2(path, arch=arch, dtype=dtype, **size)
            ).to(device)
        if teacher is None:
            return
        with report.going_on("pta score"):
            score(report, teacher, device)
        with report.going_on("load student"):
            student_path = written(report, "student", scratch, device)
            student = loaded(report, "student", student_path, lambda: load_student(student_path, teacher))
        if student is not None:
            with report.going_on("sample"):
                sample(report, teacher, student, device)
    finally:
        for file in (path, student_path):
            if file is not None:
                file.unlink(missing_ok=True)


def score(report: Report, teacher: Any, device: torch.device) -> None:
    """The gradient of the PTA energy at one noisy video: a pass over the reference, a pass with gradient, and back."""
    from guidedcd_pta import PTAConfig
    from guidedcd_pta.energy import PTA

    report.check()
    energy, shape = PTA(PTAConfig()), (1, *teacher.geometry.latent_shape)
    z, reference = (torch.randn(shape, device=device) for _ in range(2))
    t, cond = torch.tensor([799], device=device), teacher.embed([PROMPT])

    def run() -> Tensor:
        with torch.no_grad():
            theirs = teacher.seen(reference, t, cond, energy.needs)
        leaf = z.clone().requires_grad_(True)
        value = energy(teacher.seen(leaf, t, cond, energy.needs), theirs)
        return torch.autograd.grad(value.sum(), leaf)[0]

    found, about = measured(run, device, report.options.repeats)
    report.add("pta score", latents=list(shape), **about, **finite(found))


def sample(report: Report, teacher: Any, student: Any, device: torch.device) -> None:
    """One video in 4 steps, text encoding and decoding included."""
    from guidedcd.diffusion.sampler import sample as draw

    report.check()
    shape = (1, *teacher.geometry.latent_shape)
    latents, noises = torch.randn(shape, device=device), torch.randn(4, *shape, device=device)

    @torch.no_grad()
    def run() -> Tensor:
        z = draw(student, teacher, teacher.embed([PROMPT]), latents, 4, 7.5, [0.05], 0.5, noises=noises)
        return teacher.decode(z)

    video, about = measured(run, device, report.options.repeats)
    report.add("sample, 4 steps", pixels=list(video.shape), **about, **finite(video))


def reward(report: Report, name: str, scratch: Path, device: torch.device) -> None:
    """A reward of one video, with the gradient to its pixels."""
    report.check()
    options, tiny = report.options, report.options.tiny
    kind, frames = name.partition("-")[0], {"internv2": 4, "internv2-8": 8}.get(name, 2)
    path = scratch / random_files.FILES[kind]
    if not path.is_file():
        path = written(report, kind, scratch, device)
    module = loaded(report, name, path, lambda: built(kind, path, scratch, options)).to(device)
    size = (28, 44) if tiny else (320, 512)
    pixels = torch.rand(1, frames, 3, *size, device=device, requires_grad=True)

    def run() -> Tensor:
        return torch.autograd.grad(module(pixels, [PROMPT]).sum(), pixels)[0]

    found, about = measured(run, device, options.repeats)
    report.add(f"reward {name}", pixels=list(pixels.shape), **about, **finite(found))


def built(kind: str, path: Path, scratch: Path, options: argparse.Namespace) -> torch.nn.Module:
    """The reward, as a run builds it."""
    import importlib

    plugin, module = (importlib.import_module(f"guidedcd_{kind}{part}") for part in ("", ".reward"))
    config = {"hps": "HPSConfig", "clip": "CLIPConfig", "internv2": "InternV2Config", "pickscore": "PickScoreConfig"}
    target = {"hps": "HPS", "clip": "CLIPScore", "internv2": "InternV2", "pickscore": "PickScore"}
    given: dict[str, Any] = {"path": str(path)}
    given["dtype"] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[options.dtype]
    if options.tiny:
        given["arch"] = str(random_files.sizes_file(kind, scratch))
    if kind == "internv2":
        given["vocab"] = str(random_files.vocabulary(scratch, 30 if options.tiny else 30522))
    return getattr(module, target[kind])(getattr(plugin, config[kind])(**given))


def main(arguments: list[str] | None = None) -> int:
    """Run everything that was asked for; exit status 1 when a line failed."""
    options = parse(arguments)
    device = torch.device(options.device)
    report = Report(options)
    wanted = options.only.split(",") if options.only else ["videocrafter2", *REWARDS]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        for place, name in enumerate(wanted):
            if name == "videocrafter2":
                videocrafter2(report, scratch, device)
                free()
                continue
            with report.going_on(f"reward {name}"):
                reward(report, name, scratch, device)
            kind = name.partition("-")[0]
            if not any(later.partition("-")[0] == kind for later in wanted[place + 1 :]):
                (scratch / random_files.FILES.get(kind, "none")).unlink(missing_ok=True)
    report.close()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
