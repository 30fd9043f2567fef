"""A student as a PEFT adapter of its teacher: the one it was trained as, or extracted from its change of weights."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from guidedcd.files import write_json
from guidedcd.inference.export import few_step_pipeline, merged_student
from guidedcd.inference.export.diffusers_folder import write_schedule
from guidedcd.inference.export.self_test import compare, repeated
from guidedcd.inference.export.writing import readable, save_module
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.checkpoints.t2v_turbo import factorise

COND = "time_embedding.cond_proj"
KINDS = (nn.Linear, nn.Conv2d, nn.Conv3d)

_SCRIPT = """
import diffusers
sys.path.insert(0, folder)
from pipeline import FewStepPipeline
from peft import PeftModel
kind = getattr(diffusers, options["class"])
unet = kind.from_pretrained(options["base"], time_cond_proj_dim=options["width"], low_cpu_mem_usage=False)
unet = PeftModel.from_pretrained(unet, folder).merge_and_unload()
scheduler = diffusers.DDIMScheduler.from_pretrained(options["scheduler"])
pipe = FewStepPipeline(unet, None, None, None, scheduler, **options["settings"])
pipe.set_progress_bar_config(disable=True)
out["latents"] = pipe(num_inference_steps=options["steps"], output_type="latent", **given).frames
"""

USAGE = """
import sys
sys.path.insert(0, "FOLDER")                      # pipeline.py
from diffusers import UNET
from peft import PeftModel
from pipeline import FewStepPipeline

base = "BASE"                                     # the teacher as a diffusers folder, see `guidedcd convert`
unet = UNET.from_pretrained(base, subfolder="unet", time_cond_proj_dim=WIDTH, low_cpu_mem_usage=False)
unet = PeftModel.from_pretrained(unet, "FOLDER").merge_and_unload()
pipe = FewStepPipeline.from_pretrained(base, unet=unet, **SETTINGS)
video = pipe("a red ball rolls to the right", num_inference_steps=4, guidance_scale=8.5).frames[0]
"""


def write_lora(trained: StudentPipeline, folder: Path, rank: int | None) -> str:
    """Write the adapter and test it; a line about the result.

    Args:
        trained: The student.
        folder: Where.
        rank: Of an extracted adapter, 64 by default; a trained adapter keeps its own.

    Raises:
        GuidedCDError: The self-test fails.
    """
    teacher, student = trained.teacher, trained.student
    network = merged_student.merged_network(student)
    weight = merged_student.composite(merged_student.projection(network))
    base = _base(teacher.network)
    if student.config.kind == "lora" and rank is None:
        pairs, rank, lost = _trained(student.network), student.config.rank, 0.0
    else:
        rank = rank or 64
        pairs, lost = _extracted(base, network, rank)
    tensors = {f"base_model.model.{COND}.weight": weight}
    for name, (up, down) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", _config(pairs, rank))
    write_json(folder / "guidance.json", merged_student.defaults(trained))
    shutil.copyfile(few_step_pipeline.__file__, folder / "pipeline.py")
    readable(folder)

    restored = merged_student.stock(_with(base, network, pairs), weight)
    made = merged_student.short_sample(trained, restored)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        save_module(base, Path(scratch, "unet"))
        write_schedule(teacher.schedule, Path(scratch, "scheduler"))
        options = {
            "base": str(Path(scratch, "unet")),
            "scheduler": str(Path(scratch, "scheduler")),
            "class": type(base).__name__,
            "width": weight.shape[1],
            "steps": merged_student.STEPS,
            "settings": merged_student.defaults(trained),
        }
        found = repeated(_SCRIPT, folder, made.inputs, options)
    error = compare({"latents": made.result}, found, 1e-3)
    whole = merged_student.short_sample(trained).result
    apart = float((made.result - whole).norm() / whole.norm())
    return (
        f"rank {rank} leaves out {lost:.2%} of the change of the weights; its samples differ from the student's by "
        f"{apart:.2%}; a fresh process without guidedcd repeats them, largest error {error:.1g} of the magnitude"
    )


def usage(trained: StudentPipeline) -> str:
    """How to load the adapter."""
    text = USAGE.replace("UNET", type(trained.student.network).__name__)
    text = text.replace("WIDTH", str(merged_student.embedding_width(trained)))
    return text.replace("SETTINGS", repr(merged_student.defaults(trained)))


def _base(network: nn.Module) -> nn.Module:
    """The teacher's network on the CPU in float32; the same object where it is that already."""
    parameter = next(network.parameters())
    if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
        return network
    made = type(network).from_config(network.config)
    made.load_state_dict({key: value.float().cpu() for key, value in network.state_dict().items()})
    return made


def _trained(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """(up, down) of every adapter that was trained; alpha equals the rank, so they count as they are."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            up, down = (getattr(module, part)["default"].weight.detach().cpu().float() for part in ("lora_B", "lora_A"))
            found[name] = (up, down)
    return found


def _extracted(base: nn.Module, tuned: nn.Module, rank: int) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """The best factors of every layer's change, and the norm of what they leave out relative to all changes."""
    before = dict(base.named_parameters())
    layers = {f"{name}.weight" for name, module in base.named_modules() if type(module) in KINDS}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    lost = total = 0.0
    for key, value in tuned.named_parameters():
        if key not in before:
            continue  # the guidance inputs, which are stored whole
        delta = value.detach().float() - before[key].detach().float()
        change = float(delta.square().sum())
        total += change
        if key not in layers:
            lost += change
            continue
        up, down, error = factorise(delta, rank)
        if up.shape[1] < rank:  # PEFT wants one rank everywhere
            up = torch.cat([up, up.new_zeros(up.shape[0], rank - up.shape[1])], dim=1)
            down = torch.cat([down, down.new_zeros(rank - down.shape[0], *down.shape[1:])])
        found[key.removesuffix(".weight")] = (up.reshape(*up.shape, *[1] * (delta.ndim - 2)), down)
        lost += error
    return found, (lost / total) ** 0.5 if total else 0.0


def _with(base: nn.Module, tuned: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy of the tuned network whose weights are the base's plus the factors."""
    import copy

    made = copy.deepcopy(tuned)
    state = {**made.state_dict(), **base.state_dict()}
    for name, (up, down) in pairs.items():
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    made.load_state_dict(state)
    return made


def _config(pairs: dict[str, Any], rank: int) -> dict[str, Any]:
    from peft import LoraConfig

    made = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(pairs), modules_to_save=[COND]).to_dict()
    kept = {key: sorted(value) if isinstance(value, set) else value for key, value in made.items()}
    return {**kept, "inference_mode": True, "peft_type": "LORA"}
