"""A student as a PEFT adapter of its teacher: the trained adapter, or one extracted from the change of the weights."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from guidedcd.acceleration.precision import relative_error
from guidedcd.console import progress
from guidedcd.files import write_json
from guidedcd.inference.export import few_step_pipeline, merged_student
from guidedcd.inference.export.diffusers_folder import write_schedule
from guidedcd.inference.export.self_test import assert_close, run_clean
from guidedcd.inference.export.writing import make_readable, save_model
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.checkpoints.t2v_turbo import factorise

if TYPE_CHECKING:
    from diffusers import ModelMixin

DIFFUSERS = "pytorch_lora_weights.safetensors"
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
out["latents"] = pipe(num_inference_steps=options["steps"], output_type="latent", **inputs).frames
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
video = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE).frames[0]
"""


def write_lora(trained: StudentPipeline, folder: Path, rank: int | None) -> str:
    """Write the adapter and test it.

    Args:
        trained: The student.
        folder: The folder for the files.
        rank: Rank of an extracted adapter, 64 by default; a trained adapter has its own.

    Returns:
        Sentences about the error and the test, for the console and the model card.

    Raises:
        GuidedCDError: The self-test fails.
    """
    teacher, student = trained.teacher, trained.student
    network = merged_student.merged_network(student)
    weight = merged_student.composite(merged_student.projection(network))
    base = on_cpu(teacher.network)
    pairs, rank, lost = pairs_of(student, base, network, rank)
    tensors = {f"base_model.model.{COND}.weight": weight}
    for name, (up, down) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", _config(pairs, rank))
    write_json(folder / "guidance.json", merged_student.defaults(trained))
    shutil.copyfile(few_step_pipeline.__file__, folder / "pipeline.py")
    make_readable(folder)

    restored = merged_student.stock(with_pairs(base, network, pairs), weight)
    sample = merged_student.short_sample(trained, restored)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        save_model(base, Path(scratch, "unet"))
        write_schedule(teacher.schedule, Path(scratch, "scheduler"))
        options = {
            "base": str(Path(scratch, "unet")),
            "scheduler": str(Path(scratch, "scheduler")),
            "class": type(base).__name__,
            "width": weight.shape[1],
            "steps": merged_student.STEPS,
            "settings": merged_student.defaults(trained),
        }
        results = run_clean(_SCRIPT, folder, sample.inputs, options)
    error = assert_close({"latents": sample.result}, results, 1e-3)
    whole = merged_student.short_sample(trained).result
    difference = relative_error(sample.result, whole)
    return (
        f"rank {rank} leaves out {lost:.2%} of the change of the weights; its samples differ from the student's by "
        f"{difference:.2%}; a fresh process without guidedcd samples the same, largest relative error {error:.1g}"
    )


def pairs_of(
    student: Any, base: nn.Module, network: nn.Module, rank: int | None
) -> tuple[dict[str, tuple[Tensor, Tensor]], int, float]:
    """(up, down) by layer, their rank, and the part of the change of the weights that they leave out.

    A trained adapter is taken as it is, unless another rank is stated or it has a LoRA file below it.
    """
    if student.config.kind == "lora" and rank is None and not student.config.init:
        return trained_pairs(student.network), student.config.rank, 0.0
    rank = rank or 64
    pairs, lost = extracted_pairs(base, network, rank)
    return pairs, rank, lost


def usage(trained: StudentPipeline) -> str:
    """Python code that loads the adapter, for the model card."""
    text = USAGE.replace("UNET", type(trained.student.network).__name__)
    text = text.replace("WIDTH", str(merged_student.embedding_width(trained)))
    text = text.replace("SETTINGS", repr(merged_student.defaults(trained)))
    return merged_student.as_evaluated(text, trained)


def on_cpu(network: ModelMixin) -> ModelMixin:
    """The teacher's network on the CPU in float32: `network` itself where it is, else a copy."""
    parameter = next(network.parameters())
    if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
        return network
    copy = type(network).from_config(network.config)
    copy.load_state_dict({key: value.float().cpu() for key, value in network.state_dict().items()})
    return copy


def trained_pairs(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """(up, down) of every trained adapter by layer; alpha equals the rank, so that their scale is 1."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    pairs = {}
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            up, down = (getattr(module, key)["default"].weight.detach().cpu().float() for key in ("lora_B", "lora_A"))
            pairs[name] = (up, down)
    return pairs


def extracted_pairs(base: nn.Module, tuned: nn.Module, rank: int) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """The best factors of every layer's change, and the norm of the remainder relative to that of all changes."""
    before = dict(base.named_parameters())
    layers = {f"{name}.weight" for name, module in base.named_modules() if type(module) in KINDS}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    lost = total = 0.0
    with progress("extract", len(layers), unit="layers") as advance:
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
            if up.shape[1] < rank:  # PEFT has one rank for all layers
                up = torch.cat([up, up.new_zeros(up.shape[0], rank - up.shape[1])], dim=1)
                down = torch.cat([down, down.new_zeros(rank - down.shape[0], *down.shape[1:])])
            pairs[key.removesuffix(".weight")] = (up.reshape(*up.shape, *[1] * (delta.ndim - 2)), down)
            lost += error
            advance()
    return pairs, (lost / total) ** 0.5 if total else 0.0


def with_pairs(base: nn.Module, tuned: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy of the tuned network whose weights are the base's plus the factors."""
    import copy

    merged = copy.deepcopy(tuned)
    state = {**merged.state_dict(), **base.state_dict()}
    for name, (up, down) in pairs.items():
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    merged.load_state_dict(state)
    return merged


def _config(pairs: dict[str, Any], rank: int) -> dict[str, Any]:
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(pairs), modules_to_save=[COND]).to_dict()
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return {**values, "inference_mode": True, "peft_type": "LORA"}
