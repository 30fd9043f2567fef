"""Stage `text`: train the teacher's text encoder to encode all attributes, at <eos> and the padding after it."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from guidedcd_shapes import models
from guidedcd_shapes.recipe import pool
from guidedcd_shapes.recipe.session import Session
from guidedcd_shapes.recipe.training import Trainer, cosine
from guidedcd_shapes.vocabulary import PAD

RATE = 2e-3
CLASSES = (6, 6, 2, 6, 3, 5, 2, 2, 6, 6)
"""Number of classes: colour, shape, size, motion, speed, background, objects, relation, second colour and shape."""


def targets(truth: dict[str, Tensor]) -> Tensor:
    """Class of each attribute (N, 10); -100 if it does not apply."""
    two, nothing = truth["objects"] == 2, torch.full_like(truth["objects"], -100)
    rows = [truth[name][:, 0] for name in ("color", "shape", "size")]
    rows += [truth["motion"], torch.where(truth["motion"] > 0, truth["speed"], nothing), truth["background"]]
    rows += [truth["objects"] - 1]
    rows += [
        torch.where(two, value, nothing) for value in (truth["relation"], truth["color"][:, 1], truth["shape"][:, 1])
    ]
    return torch.stack(rows, 1)


def states(text: nn.Module, ids: Tensor) -> Tensor:
    """Hidden states (B, L, D) of ids (B, L)."""
    return text(input_ids=ids.long()).last_hidden_state


def run(session: Session) -> None:
    """Train on captions that name all attributes, and on short ones."""
    torch.manual_seed(session.seed)
    captions = pool.make(session, session.size(60000, 16), "uniform", (0.4, 0.35, 0.25), 300, None)
    classes, tokens = targets(captions.truth), captions.tokens
    length = (tokens != PAD).sum(1)
    text = models.build("text").to(session.device)
    head = nn.Linear(models.WIDTH, sum(CLASSES)).to(session.device)
    live, live_head = (copy.deepcopy(m).to(session.dtype) for m in (text, head))
    batch = session.size(512, 4)

    def logits(encoder: nn.Module, out: nn.Module, index: Tensor) -> tuple[Tensor, ...]:
        hidden, end = states(encoder, tokens[index]), length[index] - 1
        later = end + (torch.rand(len(index), device=session.device) * (tokens.shape[1] - end)).long()
        positions = torch.cat([end, later.clamp(max=tokens.shape[1] - 1)])
        rows = torch.arange(len(index), device=session.device).repeat(2)
        return out(hidden[rows, positions]).float().split(CLASSES, 1)

    def loss() -> Tensor:
        index = torch.randint(0, len(captions), (batch,), device=session.device)
        goal = classes[index].repeat(2, 1)
        total = torch.zeros((), device=session.device)
        for j, scores in enumerate(logits(live, live_head, index)):
            total = total + nnf.cross_entropy(scores, goal[:, j], ignore_index=-100, reduction="sum") / len(goal)
        return total

    trainer = Trainer([live, live_head], loss, graph=False)
    for fraction in session.ticks("text"):
        trainer.step(cosine(fraction, trainer.steps, RATE, warmup=100))
    trainer.finish(text, head)
    text.eval().requires_grad_(False)
    session.save("text", text)
    index = torch.arange(min(4096, len(captions)), device=session.device)
    quality = {}
    with torch.no_grad():
        predictions = logits(text, head, index)
    for kind, name in enumerate(pool.KINDS):
        of_kind = (captions.kind[index] == kind).repeat(2)
        goal = classes[index].repeat(2, 1)
        hits = [
            ((scores.argmax(1) == goal[:, j])[of_kind & (goal[:, j] >= 0)]).float().mean().item()
            for j, scores in enumerate(predictions)
        ]
        quality[name] = [round(hit, 3) for hit in hits]
    session.log("text", steps=trainer.steps, accuracy=quality)
    session.record("text", {"steps": trainer.steps, "accuracy": quality})
