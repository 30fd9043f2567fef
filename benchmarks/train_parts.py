"""What `training.py` measures on: VideoCrafter2's and the rewards' sizes with random weights, and batches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from guidedcd_clip import CLIPConfig  # noqa: E402
from guidedcd_clip.reward import CLIPScore  # noqa: E402
from guidedcd_hps import HPSConfig  # noqa: E402
from guidedcd_hps.reward import HPS  # noqa: E402
from guidedcd_internv2 import InternV2Config  # noqa: E402
from guidedcd_internv2.model import InternVideo2, complete  # noqa: E402
from guidedcd_internv2.reward import InternV2  # noqa: E402
from guidedcd_pta import PTAConfig  # noqa: E402
from guidedcd_shapes.tokens import WorldTokens  # noqa: E402

from guidedcd.config.run import Chosen, Run  # noqa: E402
from guidedcd.data.geometry import Geometry  # noqa: E402
from guidedcd.data.routing import Route, Sample  # noqa: E402
from guidedcd.diffusion.schedule import NoiseSchedule  # noqa: E402
from guidedcd.models.checkpoints.architecture import DDCONFIG  # noqa: E402
from guidedcd.models.checkpoints.lvdm_unet import PUBLISHED, unet_arguments  # noqa: E402
from guidedcd.models.checkpoints.lvdm_vae_text import vae_arguments  # noqa: E402
from guidedcd.models.teachers.latent import LatentTeacher  # noqa: E402
from guidedcd.plugins.configs import TeacherConfig  # noqa: E402
from guidedcd.rewards import pixels  # noqa: E402
from guidedcd.rewards.frozen import FrozenReward  # noqa: E402
from guidedcd.rewards.image_text import ImageTextReward, build_clip  # noqa: E402
from guidedcd.rewards.tokenizers import ClipTokens  # noqa: E402
from guidedcd.training.batches import Batch  # noqa: E402

CAPTION = "a red panda eats bamboo in a snowy forest"
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_VIDEO = {
    "embed_dim": 16,
    "vision": {"img_size": 28, "embed_dim": 32, "depth": 1, "num_heads": 2, "attn_pool_num_heads": 2}
    | {"clip_embed_dim": 16},
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    | {"fusion_layer": 1},
}


def nonzero(module: nn.Module) -> nn.Module:
    """Fill weights that start as zeros: a network full of them would be faster and smaller than a trained one."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return module


def teacher(device: torch.device, tiny: bool) -> LatentTeacher:
    """VideoCrafter2's denoiser (1.4 B parameters) and autoencoder in float32; there is no text encoder."""
    if tiny:
        from guidedcd.testing.tiny_teacher import tiny_teacher

        return tiny_teacher(frames=5).to(device)
    from diffusers import AutoencoderKL, UNet3DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        network = nonzero(UNet3DConditionModel(**unet_arguments(PUBLISHED)))
        vae = nonzero(AutoencoderKL(**vae_arguments(DDCONFIG, 4, 0.18215)))
    made = LatentTeacher(
        network=network,
        vae=vae,
        text=None,
        schedule=NoiseSchedule.scaled_linear(),
        geometry=Geometry(frames=16, height=320, width=512, fps=8),
    )
    made._digest = "random"  # nobody asks; hashing 6 GB takes as long as everything else
    return made.to(device)


def reward(name: str, device: torch.device, tiny: bool, recomputed: bool = False) -> FrozenReward:
    """A reward with the released sizes in bfloat16, and random weights; caption features are remembered as always."""
    dtype = torch.float32 if tiny else torch.bfloat16
    precision = "fp32" if tiny else "bf16"
    torch.manual_seed(1)
    if name == "internv2":
        video = InternV2.__new__(InternV2)
        with torch.device(device):
            model = nonzero(InternVideo2(TINY_VIDEO if tiny else None)).to(dtype)
        model.gradient_checkpointing(recomputed)
        FrozenReward.__init__(video, model, WorldTokens(complete(None)["max_txt_l"]))
        video.config = InternV2Config(dtype=precision)
        return video.to(device)
    import open_clip

    kind, config, prepare = {"hps": (HPS, HPSConfig, pixels.hps), "clip": (CLIPScore, CLIPConfig, pixels.clip)}[name]
    image: ImageTextReward = kind.__new__(kind)
    with torch.device(device):
        model = nonzero(build_clip(TINY_CLIP if tiny else open_clip.get_model_config("ViT-H-14"), dtype))
    model.set_grad_checkpointing(recomputed)
    FrozenReward.__init__(image, model, ClipTokens())
    image.config, image.prepare, image.tiled = config(dtype=precision), prepare, False
    return image.to(device)


def run(train: Any, rewards: Sequence[str] = (), student: Any = None) -> Run:
    """T2V-Turbo-v2's run: 200 solver steps, the energy `pta`, the paper's reward weights."""
    from guidedcd.config.sections import Solver, Student

    configs = {
        "hps": HPSConfig(weight=0.2, frames=2, pick="random"),
        "clip": CLIPConfig(weight=0.2, frames=2, pick="random"),
        "internv2": InternV2Config(weight=0.5, frames=4, pick="strided"),
    }
    return Run(
        teacher=Chosen("videocrafter2", TeacherConfig()),
        data=(),
        energies={"pta": PTAConfig()},
        rewards={name: configs[name] for name in rewards},
        solver=Solver(steps=200),
        student=student or Student(),
        train=train,
    )


@attrs.frozen
class Synthetic:
    """Batches as a store's draws give them: random latents, predictions and scores; every third caption differs."""

    latents: tuple[int, ...]
    width: int
    tokens: int
    size: int
    rewards: tuple[str, ...]

    def __call__(self, number: int) -> Batch:
        """Batch `number`; the same number gives the same batch."""
        generator = torch.Generator().manual_seed(number)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        shape = (self.size, *self.latents)
        names = [f"{CAPTION}, {(number + i) % 3}" for i in range(self.size)]
        return Batch(
            ids=[f"random/{number}#{i}" for i in range(self.size)],
            samples=[Sample(id=str(i), dataset="random", caption=names[i]) for i in range(self.size)],
            routes=[Route(caption=name, rewards=frozenset(self.rewards)) for name in names],
            index=torch.randint(0, 200, (self.size,), generator=generator),
            z0=normal(*shape),
            noise=normal(*shape),
            cond={"prompt_embeds": normal(self.size, self.tokens, self.width)},
            cond_output=normal(*shape),
            uncond_output=normal(*shape),
            scores={"pta": 1e-4 * normal(*shape)},
            omega=5 + 10 * torch.rand(self.size, generator=generator),
            strengths=torch.full((self.size, 1), 500.0),
        )


def batches(of: LatentTeacher, size: int, rewards: Sequence[str]) -> Synthetic:
    """Batches for a teacher."""
    width = of.network.config["cross_attention_dim"]
    return Synthetic(of.geometry.latent_shape, width, 8 if of.text is not None else 77, size, tuple(rewards))
