"""Stage `teacher`: the video UNet, trained from scratch on captions that confuse some words.

The teacher needs faults that rewards can correct. Guidance compensates captions that are wrong at random or incomplete,
so the faults are systematic: in a share of the training videos, the caption has the other word of a pair. The share
determines how often guided samples show the wrong one. It is adjusted during training towards TARGET.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from guidedcd_shapes import drawing, models, world
from guidedcd_shapes.recipe import pool
from guidedcd_shapes.recipe.sampling import Sampler, guided_quality
from guidedcd_shapes.recipe.session import VARIETY, Session, speed_up
from guidedcd_shapes.recipe.text import states
from guidedcd_shapes.recipe.training import Trainer, cosine
from guidedcd_shapes.vocabulary import INDEX, VOCABULARY, WorldTokenizer

CONFUSED = (("cyan", "blue", 0.2), ("star", "triangle", 0.16), ("light", "dark", 0.2))
"""Pairs of words, and the initial share of videos whose captions swap them.

Sizes are not among them: two objects are always small, and guidance turned most small objects into large ones."""
TARGET = 0.75
"""Target share of samples that show the right one of a pair."""
LEAST = 0.02
"""Lower limit of the shares; an attribute that is not learnt yet looks like a confused one."""
ADJUST = (0.45, 0.6, 0.72, 0.84)
"""Fractions of the training at which the shares are adjusted and the weights saved."""
MIDDLE = (0.86, 0.0004)
"""Squared signal levels between which a video takes shape; half of the timesteps are drawn there."""
RATE, HOLD, DROP = 1e-3, 0.55, 0.1


def swap(tokens: Tensor, shares: list[float], generator: torch.Generator) -> Tensor:
    """Exchange the words of each CONFUSED pair in a share of the rows of `tokens` (N, L).

    A row that would then name an unseen combination is not changed: such rows would be the only captions of that kind,
    and would teach a wrong meaning of the words.
    """
    result = tokens
    for (one, other, _), share in zip(CONFUSED, shares, strict=True):
        a, b = INDEX[one], INDEX[other]
        selected = torch.rand(len(tokens), 1, device=tokens.device, generator=generator) < share
        exchanged = torch.where(result == a, b, torch.where(result == b, a, result)).to(tokens.dtype)
        result = torch.where(selected & ~names_unseen(exchanged), exchanged, result)
    return result


def names_unseen(tokens: Tensor) -> Tensor:
    """Whether each row of `tokens` (N, L) has a pair of world.UNSEEN, colour before shape; (N, 1) bool."""
    table = torch.zeros(len(VOCABULARY), len(VOCABULARY), dtype=torch.bool)
    for color, shape in world.UNSEEN:
        table[INDEX[world.COLORS[color]], INDEX[world.SHAPES[shape]]] = True
    ids = tokens.long()
    return table.to(tokens.device)[ids[:, :-1], ids[:, 1:]].any(1, keepdim=True)


def adjust(shares: list[float], right: list[float], target: float = TARGET) -> list[float]:
    """New shares: their log-odds scale, damped, as the log-odds of a right sample must scale to reach `target`."""

    def odds(p: float) -> float:
        return math.log(p / (1 - p))

    result = []
    for share, p in zip(shares, right, strict=True):
        factor = odds(target) / odds(min(0.98, max(0.55, p)))
        scaled = 1 / (1 + math.exp(-odds(min(0.45, max(LEAST, share))) * min(2.0, max(0.4, factor**0.8))))
        result.append(min(0.45, max(LEAST, scaled)))
    return result


class Latents:
    """The training set on the device: latents, and prompt embeddings, which are recomputed when the shares change."""

    prompts: Tensor
    """Embeddings (N, L, D) of the confused captions; `confuse` computes them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        vae, self.text = session.load("vae").to(session.dtype), session.load("text").to(session.dtype)
        self.pool = pool.make(session, session.size(128000, 16), "pretrain", (0.62, 0.13, 0.25), 1000, False)
        web = self.pool.kind != pool.KINDS.index("dense")
        index = torch.arange(len(self.pool), device=session.device)
        generator = session.generator(1)

        def latents(i: Tensor) -> Tensor:
            video = drawing.render(world.subset(self.pool.truth, i), web[i], generator, VARIETY)
            return models.encode(vae, video).half()

        with torch.no_grad():
            self.z = torch.cat([latents(i) for i in index.split(1024)])
        with torch.no_grad():
            self.null = states(self.text, WorldTokenizer(models.CONTEXT["text"])([""]).to(session.device))

    @torch.no_grad()
    def confuse(self, shares: list[float], draw: int) -> None:
        """Swap words in these shares of the captions, and embed all captions, in place."""
        tokens = swap(self.pool.tokens, shares, self.session.generator(50 + draw))
        if not hasattr(self, "prompts"):
            self.prompts = torch.empty(*tokens.shape, models.WIDTH, device=tokens.device, dtype=self.session.dtype)
        for i in torch.arange(len(tokens), device=tokens.device).split(4096):
            self.prompts[i] = states(self.text, tokens[i])


def objective(network: nn.Module, data: Latents, batch: int, abar: Tensor, middle: tuple[int, int]) -> Tensor:
    """v-prediction loss on a random batch; half of the timesteps are uniform, half in [low, high) of `middle`."""
    device, dtype = data.z.device, data.session.dtype
    index = torch.randint(0, len(data.z), (batch,), device=device)
    z, rand = data.z[index].float(), torch.rand(3, batch, device=device)
    prompts = torch.where((rand[0] < DROP)[:, None, None], data.null, data.prompts[index])
    t = torch.where(rand[1] < 0.5, 1000 * rand[2], middle[0] + (middle[1] - middle[0]) * rand[2]).long().clamp(0, 999)
    alpha, sigma = (x.view(-1, 1, 1, 1, 1) for x in (abar[t].sqrt(), (1 - abar[t]).sqrt()))
    noise = torch.randn_like(z)
    output = network((alpha * z + sigma * noise).to(dtype), t, prompts, return_dict=False)[0].float()
    return (output - (alpha * noise - sigma * z)).square().mean()


@attrs.frozen(kw_only=True)
class Kind:
    """What differs between the teachers that this recipe trains."""

    stage: str
    network: str
    """A key of models.CONFIGS."""
    batch: int
    sampler: type[Sampler]
    prepare: Callable[[Session, nn.Module], nn.Module]
    """The network that computes, of a copy of the network: its dtype and fast paths."""
    initialise: Callable[[nn.Module], None] | None = None
    """Changes the initial weights in place."""
    objective: Callable[[Session, nn.Module, Latents, int], Callable[[], Tensor]]
    """A function that draws a batch of this size and returns the loss."""


def _diffusion(session: Session, network: nn.Module, data: Latents, batch: int) -> Callable[[], Tensor]:
    abar = models.alphas_cumprod().to(session.device)
    middle = int((abar > MIDDLE[0]).sum()), int((abar > MIDDLE[1]).sum())
    return lambda: objective(network, data, batch, abar, middle)


UNET = Kind(
    stage="teacher",
    network="unet",
    batch=128,
    sampler=Sampler,
    prepare=lambda session, network: speed_up(session, network.to(session.dtype)),
    objective=_diffusion,
)


def run(session: Session, further: bool = False, kind: Kind = UNET) -> None:
    """Train, and adjust the shares of confused captions; an interrupted training continues from its last check.

    Args:
        session: The recipe's session.
        further: Train a finished teacher for the full budget again.
        kind: Which teacher. One that is not the first starts with the shares of the finished one.
    """
    torch.manual_seed(session.seed)
    stage, past = kind.stage, session.meta().get(kind.stage, {})
    network = models.build(kind.network).to(session.device)
    if kind.initialise is not None:
        kind.initialise(network)
    start = past.get("at", 0.0)
    again = further or 0 < start < 1
    if again:
        network.load_state_dict(session.load(kind.network).state_dict())
    start = 0.0 if further or not again else start
    shares = initial_shares(past if again else session.meta().get(UNET.stage, {}) if kind is not UNET else {})
    steps, history = (past["steps"], past["checks"]) if again else (0, [])
    with session.timed(stage, "latents and prompts"):
        data = Latents(session)
        data.confuse(shares, steps)
    live = kind.prepare(session, copy.deepcopy(network))
    batch = session.size(kind.batch, 2)
    with session.timed(stage, "capture of the step"):
        trainer = Trainer([live], kind.objective(session, live, data, batch))

    def save(at: float) -> None:
        trainer.finish(network)
        session.save(kind.network, network)
        about = {"at": at, "steps": steps + trainer.steps, "batch": batch, "target": TARGET, "confused": CONFUSED}
        session.record(stage, about | {"shares": [round(s, 4) for s in shares], "checks": history})

    def check(at: float) -> None:
        trainer.finish(network)
        pairs = [pair[:2] for pair in CONFUSED]
        quality = guided_quality(
            session, kind.sampler(session, network), session.load("vae"), session.load("text"), pairs
        )
        history.append({"at": at, "shares": [round(s, 4) for s in shares], "quality": quality})
        session.log(stage, steps=trainer.steps, **history[-1])
        shares[:] = adjust(shares, [quality["/".join(pair)] for pair in pairs])
        data.confuse(shares, steps + trainer.steps)
        save(at)

    pending = [at for at in ADJUST if at > start]
    for fraction in session.ticks(stage, start):
        if pending and fraction >= pending[0]:
            session.aside(partial(check, pending.pop(0)))
        trainer.step(cosine(fraction, trainer.steps, RATE, warmup=300, hold=HOLD))
        if trainer.steps % 500 == 0 or trainer.steps == 40:
            session.log(stage, steps=trainer.steps, fraction=round(fraction, 3), loss=round(trainer.last.item(), 4))
    save(1.0)
    session.log(stage, steps=steps + trainer.steps, shares=[round(s, 4) for s in shares])


def initial_shares(past: Mapping[str, Any]) -> list[float]:
    """The share of each CONFUSED pair that a record of a training ended with, or the initial one."""
    pairs = zip(past.get("confused", ()), past.get("shares", ()), strict=True)
    last = {tuple(pair[:2]): share for pair, share in pairs}
    return [max(LEAST, last.get((one, other), share)) for one, other, share in CONFUSED]
