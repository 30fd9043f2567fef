"""Stage `vae`: an autoencoder of single frames, whose latents have mean 0 and standard deviation 1 per channel."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd_shapes import drawing, models, world
from guidedcd_shapes.oracle import Oracle, summarise
from guidedcd_shapes.recipe import pool
from guidedcd_shapes.recipe.session import VARIETY, Session
from guidedcd_shapes.recipe.training import Trainer, cosine

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

RATE, KL = 2e-3, 2e-5


def run(session: Session) -> None:
    """Train, normalise and save the autoencoder, and measure its reconstructions with the oracle."""
    torch.manual_seed(session.seed)
    scenes = pool.make(session, session.size(24000, 16), "uniform", (1, 0, 0), 100, None)
    frames = torch.cat(
        [_frames(world.subset(scenes.truth, i)) for i in torch.arange(len(scenes), device=session.device).split(512)]
    )
    vae = models.build("vae").to(session.device)
    live = copy.deepcopy(vae).to(session.dtype)
    batch = session.size(256, 8)

    def loss() -> Tensor:
        index = torch.randint(0, len(frames), (batch,), device=session.device)
        return objective(live, frames[index].float() / 127.5 - 1, session.dtype)

    trainer = Trainer([live], loss)
    for fraction in session.ticks("vae"):
        trainer.step(cosine(fraction, trainer.steps, RATE))
    trainer.finish(vae)
    vae.eval().requires_grad_(False)
    normalise(vae, frames[torch.randint(0, len(frames), (min(len(frames), 8192),), device=session.device)])
    session.save("vae", vae)
    session.log("vae", steps=trainer.steps, loss=trainer.last.item())
    session.record("vae", {"steps": trainer.steps, **measure(session, vae)})


def _frames(truth: dict[str, Tensor]) -> Tensor:
    """Frames (N, 3, H, W), uint8, half of them clean and half degraded."""
    web = torch.arange(len(truth["objects"]), device=truth["objects"].device) % 2 == 0
    return (drawing.render(truth, web, variety=VARIETY)[:, ::3].flatten(0, 1) * 255 + 0.5).to(torch.uint8)


def objective(vae: AutoencoderKL, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Reconstruction loss of `x` (B, 3, H, W) in [-1, 1]; colour edges weigh five times, as they define the shape."""
    posterior = vae.encode(x.to(dtype)).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    error = vae.decode(z.to(dtype)).sample.float() - x
    with torch.no_grad():
        color = x - x.mean(1, keepdim=True)
        across = nnf.pad((color[..., 1:] - color[..., :-1]).abs().amax(1, keepdim=True), (0, 1))
        down = nnf.pad((color[..., 1:, :] - color[..., :-1, :]).abs().amax(1, keepdim=True), (0, 0, 0, 1))
        weight = 1 + 4 * nnf.max_pool2d((across + down > 0.35).float(), 3, 1, 1)
    edges = (weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).mean()
    edges = edges + (weight[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()).mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (weight * error.abs()).mean() + 2 * (weight * error.square()).mean() + 0.5 * edges + KL * kl


@torch.no_grad()
def normalise(vae: AutoencoderKL, frames: Tensor) -> None:
    """Fold the mean and standard deviation of the latents, per channel, into the convolutions around them."""
    z = models.encode(vae, frames[:, None].float() / 255)
    mean, std = z.mean((0, 2, 3, 4)), z.std((0, 2, 3, 4))
    before, after, c = vae.quant_conv, vae.post_quant_conv, len(mean)
    before.weight[:c] /= std.view(-1, 1, 1, 1)
    before.bias[:c] = (before.bias[:c] - mean) / std
    before.bias[c:] -= 2 * std.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std.view(1, -1, 1, 1)


def measure(session: Session, vae: AutoencoderKL) -> dict[str, dict[str, float]]:
    """The oracle's means on ground truth and on reconstructions, clean and degraded."""
    rng, oracle = random.Random(5), Oracle(session.device)
    count = session.size(512, 4)
    truth = world.to(
        world.pack([world.sample_scene(rng, "uniform", unseen=None) for _ in range(count)]), session.device
    )
    result = {}
    for name, web in (("clean", False), ("web", True)):
        video = drawing.render(truth, web, session.generator(5), VARIETY)
        with torch.no_grad():
            decoded = models.decode(vae, models.encode(vae, video))
        psnr = -10 * (decoded - video).square().mean((1, 2, 3, 4)).log10()
        result[f"truth-{name}"] = summarise(oracle.score(video, truth))
        result[f"through-vae-{name}"] = {
            "psnr": round(psnr.mean().item(), 2),
            **summarise(oracle.score(decoded, truth)),
        }
        for key in (f"truth-{name}", f"through-vae-{name}"):
            session.log("vae", on=key, **result[key])
    return result
