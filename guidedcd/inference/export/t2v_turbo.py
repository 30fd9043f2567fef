"""A student in T2V-Turbo-v2's layout: one PyTorch file with the UNet's original names."""

from __future__ import annotations

from pathlib import Path

import torch

from guidedcd.console import console
from guidedcd.errors import GuidedCDError
from guidedcd.files import write_json
from guidedcd.inference.export import merged_student
from guidedcd.inference.export.self_test import assert_close, run_clean
from guidedcd.inference.pipeline import StudentPipeline
from guidedcd.models.checkpoints.lvdm_unet import lvdm_config
from guidedcd.models.checkpoints.unet import lvdm_state

_SCRIPT = """
from pathlib import Path
from guidedcd.models.checkpoints.reading import open_state
from guidedcd.models.checkpoints.videocrafter2 import load_unet
from guidedcd.inference.export.few_step_pipeline import FewStepPipeline
from diffusers import DDIMScheduler
unet = load_unet(options["config"], open_state(Path(folder, options["file"])), fps=options["fps"])
unet.time_embedding.cond_proj.requires_grad_(False)
scheduler = DDIMScheduler(trained_betas=options["betas"], prediction_type=options["prediction"], clip_sample=False)
pipe = FewStepPipeline(unet, None, None, None, scheduler, **options["settings"])
pipe.set_progress_bar_config(disable=True)
out["latents"] = pipe(num_inference_steps=options["steps"], output_type="latent", **inputs).frames
"""

USAGE = """
# guidedcd sample --student FOLDER/unet_mg.pt --teacher videocrafter2:model.ckpt PROMPT
import torch

state = torch.load("FOLDER/unet_mg.pt", weights_only=True)      # load_state_dict(state) of T2V-Turbo's UNetModel
"""


def write_turbo(trained: StudentPipeline, folder: Path) -> str:
    """Write `unet_mg.pt`, or `unet_no_mg.pt` of a student without energies, and test it.

    Returns:
        A clause about the test, for the console and the model card.

    Raises:
        GuidedCDError: The network is no 3D UNet, or the self-test fails.
    """
    teacher, student = trained.teacher, trained.student
    network = merged_student.merged_network(student)
    merged_student.projection(network)
    if type(network).__name__ != "UNet3DConditionModel":
        raise GuidedCDError(f"T2V-Turbo's layout is for 3D UNets only, not for {type(network).__name__}")
    arch = getattr(teacher, "arch", None)
    config = dict(arch.unet) if arch is not None else lvdm_config(network.config)
    weights = getattr(teacher, "fps_weights", None)
    fps = getattr(teacher, "fps", None)
    state = lvdm_state(config, network, fps=fps, fps_weights=weights or None)
    widths = {f"{name}.weight": f"{name}_dim" for name in ("time_cond_proj", "motion_cond_proj")}
    config |= {name: state[key].shape[1] for key, name in widths.items() if key in state}
    name = "unet_mg.pt" if student.energies else "unet_no_mg.pt"
    with open(folder / name, "wb") as handle:  # torch hides the error of a full disk of its own files
        torch.save(state, handle)
    fps = fps or max(1, round(teacher.geometry.fps))
    write_json(folder / "config.json", {"params": config, "fps_used": [fps], "energies": list(student.energies)})
    differences = [
        *([f"{network.config.norm_num_groups} norm groups"] if network.config.norm_num_groups != 32 else []),
        *([f"{teacher.schedule.prediction} prediction"] if teacher.schedule.prediction != "eps" else []),
    ]
    if differences:
        console.print(
            f"export   note: T2V-Turbo's own code supports only 32 norm groups and eps prediction; this student has "
            f"{' and '.join(differences)}, so only guidedcd loads it"
        )
    sample = merged_student.short_sample(trained)
    betas = _betas(teacher.schedule.alphas_cumprod)
    options = {
        "config": config,
        "file": name,
        "fps": fps,
        "steps": merged_student.STEPS,
        "settings": merged_student.defaults(trained),
        "betas": betas,
        "prediction": {"eps": "epsilon", "v": "v_prediction"}[teacher.schedule.prediction],
    }
    results = run_clean(_SCRIPT, folder, sample.inputs, options, alone=False)
    error = assert_close({"latents": sample.result}, results, 1e-3)
    return f"a fresh process reads {name} and samples the same latents, largest relative error {error:.1g}"


def usage(trained: StudentPipeline) -> str:
    """A command and Python code that read the file, for the model card."""
    text = merged_student.as_evaluated(USAGE, trained)
    return text if trained.student.energies else text.replace("unet_mg.pt", "unet_no_mg.pt")


def _betas(abar: torch.Tensor) -> list[float]:
    """The betas of a table of alphas_cumprod (T,)."""
    exact = abar.cpu().double()
    return (1 - torch.cat([exact[:1], exact[1:] / exact[:-1]])).tolist()
