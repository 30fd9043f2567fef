"""Stages `clip`, `hps` and `internv2`: train judges of alignment and quality, small versions of released networks."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from guidedcd_shapes import captions, drawing, models, world
from guidedcd_shapes.recipe import judges
from guidedcd_shapes.recipe.judges import GROUPS, LOOKS, Words
from guidedcd_shapes.recipe.pool import cut
from guidedcd_shapes.recipe.session import VARIETY, Session
from guidedcd_shapes.recipe.tracking import ALONE, Tracker, initialize_positions
from guidedcd_shapes.recipe.training import Trainer, cosine
from guidedcd_shapes.vocabulary import PAD, WorldTokenizer

SCALE, NEGATIVES = 12.0, 3
RATES = {"clip": 1e-3, "hps": 3e-4, "internv2": 1e-3}
PICK = {"clip": (0.3, 0.3, 0.2, 0.2, 0.0), "hps": (0.3, 0.3, 0.2, 0.2, 0.0), "internv2": (0.2, 0.15, 0.15, 0.15, 0.35)}
"""Share of negatives in which each of GROUPS is wrong."""
SECOND = "second"
"""The attribute "colour or shape of the second object"."""
_galleries: dict[int, judges.Gallery] = {}


def normalised(name: str, model: nn.Module, video: Tensor) -> Tensor:
    """Frames (B, T, 3, H, W) in [0, 1], normalised for a judge, in its dtype."""
    statistics = models.NORMALISE["internv2" if name == "internv2" else "clip"]
    mean, std = (world.constant(x, video.device)[:, None, None] for x in statistics)
    return ((video - mean) / std).to(next(model.parameters()).dtype)


def look(name: str, model: Any, video: Tensor) -> Tensor:
    """Unit vectors (B, E) of frames (B, T, 3, H, W) in [0, 1]; image judges read the first frame.

    `model` is open_clip's `CLIP`, which has no types, or an `InternVideo2`.
    """
    pixels = normalised(name, model, video)
    features = model.encode_video(pixels) if name == "internv2" else model.encode_image(pixels[:, 0])
    return nnf.normalize(features.float(), dim=-1)


def read(name: str, model: Any, ids: Tensor) -> Tensor:
    """Unit vectors (N, E) of token ids (N, L); `model` as for `look`."""
    features = model.encode_text(ids, (ids != PAD).long()) if name == "internv2" else model.encode_text(ids)
    return nnf.normalize(features.float(), dim=-1)


def run(session: Session, name: str) -> None:
    """Train one judge. `hps` begins as `clip` and learns quality too; `internv2` learns to follow objects too."""
    torch.manual_seed(session.seed)
    if 0 not in _galleries:
        with session.timed(name, "gallery"):
            _galleries[0] = judges.gallery(session, session.size(48000, 32), 5000)
    shown, words = _galleries[0], Words(session.device)
    model: Any = session.load("clip") if name == "hps" else models.build(name).to(session.device)  # as for `look`
    model.requires_grad_(True)
    heads: list[nn.Module] = []
    gate = torch.zeros((), device=session.device)
    if name == "internv2":
        initialize_positions(model.vision_encoder)
        heads.append(Tracker(model.vision_encoder, model.vision_proj.in_features).to(session.device, session.dtype))
    else:
        model.logit_scale.requires_grad_(False).fill_(torch.tensor(SCALE).log())
    live = copy.deepcopy(model).to(session.dtype)
    context, edges = models.CONTEXT[name], torch.tensor(PICK[name][:-1], device=session.device).cumsum(0)
    batch = session.size(256, 4)
    visible = torch.arange(len(judges.VALUES) + 1, device=session.device) < (
        len(judges.VALUES) if name == "internv2" else LOOKS
    )

    def loss() -> Tensor:
        half = 2 * torch.randint(0, len(shown.video) // 2, (batch // 2,), device=session.device)
        index = torch.cat([half, half + 1])
        if name == "internv2":
            start = torch.randint(0, 2, (batch, 1), device=session.device)
            frames = start + 2 * torch.arange(4, device=session.device)
        else:
            frames = torch.randint(0, world.FRAMES, (batch, 1), device=session.device)
        video = shown.video[index[:, None], frames].float() / 255
        ids = cut(shown.tokens[index], context)
        group = (torch.rand(NEGATIVES * batch, 1, device=session.device) >= edges).sum(1)
        wrong = words.wrong(ids.repeat(NEGATIVES, 1), group)
        usable = (wrong != ids.repeat(NEGATIVES, 1)).any(1).view(NEGATIVES, batch).T
        text = read(name, live, torch.cat([ids, wrong]))
        negative = text[batch:].view(NEGATIVES, batch, -1).transpose(0, 1)
        false = words.named(ids) * visible @ (~shown.values[index]).float().T
        if name == "internv2":
            tokens = live.vision_encoder.tokens(normalised(name, live, video))
            pooled = live.vision_encoder.clip_projector(tokens)
            picture = nnf.normalize(live.vision_proj(pooled).float(), dim=-1)
            target = shown.center[index[:, None], frames], shown.truth["motion"][index], shown.truth["objects"][index]
            follow = heads[0](tokens, pooled, *target)
        else:
            picture = look(name, live, video)
        result = judges.contrast(picture, text[:batch], negative, usable, false.T < 0.5, SCALE)
        if name == "hps":
            return result + preference(live, video, picture, text[:batch])
        return follow + gate * result if name == "internv2" else result

    try:
        trainer = Trainer([live, *heads], loss)
    except RuntimeError as error:  # some versions of transformers build masks that cannot be captured
        session.log(name, eager=str(error)[:200])
        session.synchronize()
        trainer = Trainer([live, *heads], loss, graph=False)
    for fraction in session.ticks(name):
        gate.fill_(float(fraction >= ALONE))
        trainer.step(cosine(fraction, trainer.steps, RATES[name]))
        if trainer.steps % 500 == 0:
            session.log(name, steps=trainer.steps, loss=round(trainer.last.item(), 4))
    trainer.finish(model, *heads)
    model.eval().requires_grad_(False)
    session.save(name, model)
    quality = measure(session, name, model)
    session.log(name, steps=trainer.steps, **quality)
    session.record(name, {"steps": trainer.steps, "scale": SCALE, "pairs": quality})


def preference(model: Any, video: Tensor, picture: Tensor, text: Tensor) -> Tensor:
    """Loss of preferring a frame to a degraded or ghosted copy, given the caption; `model` as for `look`."""
    worse = drawing.degrade(video)
    ghost = 0.5 * (video + video.roll(5, -1))
    pick = torch.rand(len(video), device=video.device).view(-1, 1, 1, 1, 1)
    worse = torch.where(pick < 0.7, worse, ghost)
    gap = ((picture - look("hps", model, worse)) * text).sum(-1)
    return nnf.softplus(-2 * SCALE * gap).mean()


@cache
def minimal_pairs(
    count: int, attribute: str, dense: bool
) -> tuple[list[world.Scene], list[world.Scene], list[str], list[str]]:
    """Scenes, copies with one attribute changed, and the captions of both, from seeds that no training uses."""
    rng = random.Random(f"pairs {attribute} {dense}")
    scenes: list[world.Scene] = []
    others: list[world.Scene] = []
    right: list[str] = []
    wrong: list[str] = []
    while len(scenes) < count:
        scene = world.sample_scene(rng, "uniform", two=float(attribute == SECOND), unseen=None)
        if attribute == "motion" and not 1 <= scene.motion <= 4:
            continue
        caption = captions.dense_caption(scene, rng) if dense else captions.full_caption(scene, rng)
        name = rng.choice(("color", "shape")) if attribute == SECOND else attribute
        values, sentence = GROUPS[name], caption.split()
        position = max(i for i, word in enumerate(sentence) if word in values)  # the second object is named last
        other = rng.choice([word for word in values if word != sentence[position]])
        value, first, current = values.index(other), int(name == "motion"), getattr(scene, name)
        change: dict[str, Any] = {name: first + value}
        if isinstance(current, tuple):
            change = {name: (current[0], value) if attribute == SECOND else (value, current[1])}
        scenes.append(scene)
        others.append(attrs.evolve(scene, **change))
        right.append(caption)
        wrong.append(" ".join([*sentence[:position], other, *sentence[position + 1 :]]))
    return scenes, others, right, wrong


@torch.no_grad()
def measure(session: Session, name: str, model: Any) -> dict[str, dict[str, float]]:
    """Pairwise accuracy by attribute, where ties count one half; `model` as for `look`.

    The rows `clean` and `decoded` compare two captions of one picture, `dense` two dense captions of a clean one, and
    `pictures` two decoded pictures for one caption.
    """
    vae, tokenize = session.load("vae"), WorldTokenizer(models.CONTEXT[name])
    table: dict[str, dict[str, float]] = {}
    every = slice(0, None, 2) if name == "internv2" else slice(3, 4)

    def accuracy(good: Tensor, bad: Tensor) -> float:
        return round(((good > bad).float() + 0.5 * (good == bad).float()).mean().item(), 4)

    for attribute in (*GROUPS, SECOND):
        for dense in (False, True):
            scenes, others, right, wrong = minimal_pairs(session.size(400, 4), attribute, dense)
            video, changed = (
                drawing.render(
                    world.to(world.pack(s), session.device), generator=session.generator(11), variety=VARIETY
                )
                for s in (scenes, others)
            )
            texts = [read(name, model, tokenize(t).to(session.device)) for t in (right, wrong)]
            kinds: dict[str, Callable[[Tensor], Tensor]] = {"dense": lambda v: v}
            if not dense:
                kinds = {"clean": lambda v: v, "decoded": lambda v: models.decode(vae, models.encode(vae, v))}
            for kind, change in kinds.items():
                picture = look(name, model, change(video)[:, every])
                good, bad = ((picture * t).sum(-1) for t in texts)
                table.setdefault(kind, {})[attribute] = accuracy(good, bad)
                if kind == "decoded":
                    bad = (look(name, model, change(changed)[:, every]) * texts[0]).sum(-1)
                    table.setdefault("pictures", {})[attribute] = accuracy(good, bad)
            if not dense and attribute == "shape":
                worse = look(name, model, drawing.degrade(video, generator=session.generator(12))[:, every])
                table["quality"] = {
                    "clean over web": accuracy(
                        (look(name, model, video[:, every]) * texts[0]).sum(-1), (worse * texts[0]).sum(-1)
                    )
                }
                table["score"] = {"right": round(good.mean().item(), 3), "wrong shape": round(bad.mean().item(), 3)}
    return table
