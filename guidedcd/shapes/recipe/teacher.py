"""Stages `teacher` and `polish`: the video UNet, trained from nothing, then further.

It draws everything, but its captions confuse fixed pairs of words.

Guidance undoes captions that are wrong at random or silent, so the faults are systematic: in a share of the training
videos a caption names the other one of a pair. The share decides how often guided samples show the wrong one; it is
adjusted during training, so that the finished teacher draws the right one as often as TARGET says.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
from torch import Tensor, nn

from guidedcd.shapes import models, world
from guidedcd.shapes.recipe import pool
from guidedcd.shapes.recipe.sampling import Sampler, guided_quality
from guidedcd.shapes.recipe.session import Session, speed_up
from guidedcd.shapes.recipe.text import states
from guidedcd.shapes.recipe.training import Trainer, cosine
from guidedcd.shapes.text import INDEX, WorldTokenizer

CONFUSED = (("cyan", "blue", 0.45), ("star", "triangle", 0.44), ("light", "dark", 0.42))
"""Pairs of words, and the share of videos whose caption swaps them, at the start."""
TARGET = {"teacher": 0.80, "polish": 0.84}
"""How often the right one of a pair should be drawn, at the best guidance."""
ADJUST = {"teacher": (0.40, 0.60, 0.80), "polish": (0.0, 0.35, 0.65)}
"""Fractions of a stage's training at which the shares are adjusted."""
RATE = {"teacher": 1e-3, "polish": 8e-4}
HOLD, DROP = 0.45, 0.1


def swap(tokens: Tensor, shares: list[float], generator: torch.Generator) -> Tensor:
    """Exchange the words of each CONFUSED pair in a share of the rows of `tokens` (N, L)."""
    result = tokens
    for (one, other, _), share in zip(CONFUSED, shares, strict=True):
        a, b = INDEX[one], INDEX[other]
        hit = torch.rand(len(tokens), 1, device=tokens.device, generator=generator) < share
        exchanged = torch.where(result == a, b, torch.where(result == b, a, result)).to(tokens.dtype)
        result = torch.where(hit, exchanged, result)
    return result


def adjust(shares: list[float], right: list[float], target: float) -> list[float]:
    """New shares: their log-odds scale as those of drawing the right one must change to reach `target`, damped."""

    def odds(p: float) -> float:
        return math.log(p / (1 - p))

    result = []
    for share, p in zip(shares, right, strict=True):
        factor = odds(target) / odds(min(0.98, max(0.55, p)))
        result.append(1 / (1 + math.exp(-odds(share) * min(2.0, max(0.4, factor**0.8)))))
    return result


class Latents:
    """The training set on the device: latents, and prompt embeddings that are renewed when the shares change."""

    def __init__(self, session: Session) -> None:
        self.session = session
        vae, self.text = session.load("vae").to(session.dtype), session.load("text").to(session.dtype)
        self.pool = pool.make(
            session, session.size(128000, 16), "pretrain", (0.62, 0.13, 0.25), 1000 + 10**6 * session.rank, False
        )
        web = self.pool.kind != pool.KINDS.index("dense")
        index = torch.arange(len(self.pool), device=session.device)
        generator = session.generator(1 + session.rank)
        with torch.no_grad():
            self.z = torch.cat(
                [
                    models.encode(vae, world.render(world.subset(self.pool.truth, i), web[i], generator)).half()
                    for i in index.split(1024)
                ]
            )
        self.prompts: Tensor | None = None
        with torch.no_grad():
            self.null = states(self.text, WorldTokenizer(models.CONTEXT["text"])([""]).to(session.device))

    @torch.no_grad()
    def confuse(self, shares: list[float], draw: int) -> None:
        """Embed all captions anew, in place."""
        tokens = swap(self.pool.tokens, shares, self.session.generator(50 + draw))
        if self.prompts is None:
            self.prompts = torch.empty(*tokens.shape, models.WIDTH, device=tokens.device, dtype=self.session.dtype)
        for i in torch.arange(len(tokens), device=tokens.device).split(4096):
            self.prompts[i] = states(self.text, tokens[i])


def objective(network: nn.Module, data: Latents, batch: int, abar: Tensor) -> Tensor:
    """v-prediction on a random batch; timesteps are drawn uniformly, and half of them from the middle [120, 880)."""
    device, dtype = data.z.device, data.session.dtype
    index = torch.randint(0, len(data.z), (batch,), device=device)
    z, rand = data.z[index].float(), torch.rand(3, batch, device=device)
    prompts = torch.where((rand[0] < DROP)[:, None, None], data.null, data.prompts[index])
    t = torch.where(rand[1] < 0.5, 1000 * rand[2], 120 + 760 * rand[2]).long().clamp(0, 999)
    alpha, sigma = (x.view(-1, 1, 1, 1, 1) for x in (abar[t].sqrt(), (1 - abar[t]).sqrt()))
    noise = torch.randn_like(z)
    output = network((alpha * z + sigma * noise).to(dtype), t, prompts, return_dict=False)[0].float()
    return (output - (alpha * noise - sigma * z)).square().mean()


def run(session: Session, stage: str) -> None:
    """Train, adjusting the shares of confused captions on the way; `polish` goes on where `teacher` ended."""
    torch.manual_seed(session.seed)
    network, shares = models.build("unet").to(session.device), [share for *_, share in CONFUSED]
    if stage == "polish":
        network.load_state_dict(session.load("unet").state_dict())
        shares = session.meta()["teacher"]["final_shares"]
    with session.timed(stage, "latents and prompts"):
        data = Latents(session)
        data.confuse(shares, 0)
    abar = models.alphas_cumprod().to(session.device)
    live = speed_up(session, copy.deepcopy(network).to(session.dtype))
    batch = session.size(128, 2)
    torch.manual_seed(1000 * session.seed + session.rank)
    with session.timed(stage, "capture of the step"):
        trainer = Trainer([live], lambda: objective(live, data, batch, abar))
    history, pending = [], list(ADJUST[stage])

    def check(fraction: float) -> list[float]:
        if session.rank:
            return []
        middle = copy.deepcopy(network)
        trainer.finish(middle)
        pairs = [pair[:2] for pair in CONFUSED]
        quality = guided_quality(session, Sampler(session, middle), session.load("vae"), session.load("text"), pairs)
        best = max(quality.values(), key=lambda row: row["look"])
        history.append({"at": fraction, "shares": [round(s, 4) for s in shares], "quality": quality})
        session.log(stage, steps=trainer.steps, **history[-1])
        return adjust(shares, [best["/".join(pair)] for pair in pairs], TARGET[stage])

    for fraction in session.ticks(stage):
        if pending and fraction >= pending[0]:
            pending.pop(0)
            shares = session.agree(session.aside(lambda at=fraction: check(round(at, 2))))
            session.aside(partial(data.confuse, shares, trainer.steps + 1))
        trainer.step(cosine(fraction, trainer.steps, RATE[stage], warmup=300, hold=HOLD))
        if trainer.steps % 500 == 0 or trainer.steps == 40:
            session.log(stage, steps=trainer.steps, fraction=round(fraction, 3), loss=round(trainer.last.item(), 4))
    trainer.finish(network)
    if session.rank:
        return
    models.save("unet", network, session.out)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    constants = {"confused": CONFUSED, "final_shares": [round(s, 4) for s in shares], "target": TARGET[stage]}
    constants |= {"steps": trainer.steps, "batch": batch * ranks}
    session.log(stage, **constants)
    session.record(stage, constants | {"checks": history})
