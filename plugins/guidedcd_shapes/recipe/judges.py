"""Training data of the stages `clip`, `hps` and `internv2`: videos, hard negatives and the contrastive loss.

The judges are trained on clean labels, and on videos like those of a student: decoded latents, and the teacher's
predictions after one step. Legend: N captions, B images or videos, L tokens, A attribute values.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as nnf
from torch import Tensor

from guidedcd_shapes import captions, drawing, models, world
from guidedcd_shapes.recipe import pool
from guidedcd_shapes.recipe.sampling import Sampler
from guidedcd_shapes.recipe.session import VARIETY, Session
from guidedcd_shapes.recipe.text import states
from guidedcd_shapes.vocabulary import INDEX, VOCABULARY

QUALITIES = ("clean", "web", "decoded", "predicted")
GROUPS = {
    "color": world.COLORS,
    "shape": world.SHAPES,
    "size": world.SIZES,
    "background": world.BACKGROUNDS,
    "motion": world.MOTIONS[1:5],
}
"""Groups of words; exchanging a word for another one of its group makes a caption wrong."""
_FORMS = {
    **{word: [word] for words in list(GROUPS.values())[:4] for word in words},
    **{motion: [motion] for motion in world.MOTIONS[:5]},
    "orbit": ["orbiting", "orbits"],
    **dict(zip(world.SPEEDS, map(list, captions.ADVERBS), strict=True)),
}
VALUES = tuple(_FORMS)
"""The attribute values."""
EVERY = 0
"""Selects all words of a group; 1 and 2 select the first or the second one."""
LOOKS = len(VALUES) - len(world.MOTIONS) - len(world.SPEEDS)
"""Number of VALUES that are visible in a single frame; the others are motion and speed."""


@attrs.define
class Gallery:
    """Videos and captions on the device, in pairs: 2i and 2i + 1 differ in one attribute and its word."""

    video: Tensor
    """(N, F, 3, H, W), uint8."""
    tokens: Tensor
    """(N, 128)."""
    values: Tensor
    """(N, A + 1) bool: the values that are true of the video; the last column is unused."""
    quality: Tensor
    """(N,), index of QUALITIES."""
    truth: dict[str, Tensor]
    center: Tensor
    """(N, F, 2), center of the first object, in pixels."""


@torch.no_grad()
def gallery(session: Session, count: int, seed: int) -> Gallery:
    """Videos of all combinations in all qualities, each followed by one that differs in a single attribute."""
    generator = session.generator(seed)
    scenes = paired(pool.make(session, count // 2, "uniform", (0.4, 0.45, 0.15), seed, None), generator)
    vae, text = session.load("vae").to(session.dtype), session.load("text").to(session.dtype)
    sampler = Sampler(session, session.load("unet"))
    rand = torch.rand(len(scenes) // 2, device=session.device, generator=generator)
    quality = choose((0.25, 0.2, 0.15, 0.4), rand).repeat_interleave(2)
    middle = ((sampler.abar < 0.93) & (sampler.abar > 0.002)).nonzero()[:, 0]
    videos, centers = [], []
    for index in torch.arange(len(scenes), device=session.device).split(512):
        kind = quality[index]
        truth = world.subset(scenes.truth, index)
        path = drawing.trajectories(truth, generator, VARIETY)
        video = drawing.render(truth, kind == 1, generator, VARIETY, path)
        z = models.encode(vae, video)
        t = middle[torch.randint(len(middle), (len(index),), device=session.device, generator=generator)]
        abar = sampler.abar[t].view(-1, 1, 1, 1, 1)
        noisy = abar.sqrt() * z + (1 - abar).sqrt() * torch.randn(z.shape, device=z.device, generator=generator)
        prediction, _ = sampler.split(noisy, sampler.run(noisy, t, states(text, scenes.tokens[index])), abar)
        z = torch.where((kind == 3).view(-1, 1, 1, 1, 1), prediction, z)
        video = torch.where((kind >= 2).view(-1, 1, 1, 1, 1), models.decode(vae, z), video)
        videos.append((video * 255 + 0.5).to(torch.uint8))
        centers.append(path[0][:, 0])
    values = true_values(scenes.truth)
    return Gallery(torch.cat(videos), scenes.tokens.long(), values, quality, scenes.truth, torch.cat(centers))


@torch.no_grad()
def paired(scenes: pool.Pool, generator: torch.Generator) -> pool.Pool:
    """Insert after each scene a copy with one attribute changed, with its caption changed to match.

    A judge that only learns to choose among captions need not prefer the right one of two videos. It may prefer all
    large objects, for example, and a student that it trains then draws no others.
    """
    truth, device = scenes.truth, scenes.kind.device
    n, names = len(scenes), list(GROUPS)
    moves = (truth["motion"] >= 1) & (truth["motion"] <= 4)
    allowed = torch.ones(n, len(names), device=device)
    allowed[:, names.index("size")] = 1.5 * (truth["objects"] == 1)  # the attribute that is hardest to see
    allowed[:, names.index("motion")] = (moves & (truth["objects"] == 1)).float()  # two objects have fixed positions
    group = torch.multinomial(allowed, 1, generator=generator)
    count = torch.tensor([len(words) for words in GROUPS.values()], device=device)[group]
    shift = 1 + (torch.rand(n, 1, device=device, generator=generator) * (count - 1)).long()
    second = (torch.rand(n, 1, device=device, generator=generator) < 0.6).long()
    belongs = (truth["objects"] == 2)[:, None] & (group <= names.index("shape"))
    # Of two objects one changes, more often the one that captions name last.
    which = torch.where(belongs, 1 + second, EVERY)
    other = {name: value.clone() for name, value in truth.items()}
    for g, name in enumerate(names):
        value, selected, first = truth[name], group == g, int(name == "motion")
        if value.ndim == 1:
            selected, by = selected[:, 0], shift[:, 0]
        else:
            number, by = torch.arange(1, 3, device=device), shift
            selected = selected & ((which == EVERY) | (which == number))
        other[name] = torch.where(selected, first + (value - first + by) % len(GROUPS[name]), value)
    tokens = Words(device).exchange(scenes.tokens.long(), group, shift, which).to(scenes.tokens.dtype)

    def mix(one: Tensor, two: Tensor) -> Tensor:
        return torch.stack([one, two], 1).flatten(0, 1)

    return pool.Pool(
        {name: mix(truth[name], other[name]) for name in truth},
        mix(scenes.tokens, tokens),
        scenes.kind.repeat_interleave(2),
    )


def choose(weights: tuple[float, ...], rand: Tensor) -> Tensor:
    """Indices drawn with `weights`, which sum to 1, from uniform numbers `rand` of any shape."""
    edges = torch.tensor(weights[:-1], device=rand.device).cumsum(0)
    return (rand[..., None] >= edges).sum(-1)


def true_values(truth: dict[str, Tensor]) -> Tensor:
    """The values that are true of packed scenes, (N, A + 1) bool."""
    device = truth["objects"].device
    hot = torch.zeros(len(truth["objects"]), len(VALUES) + 1, dtype=torch.bool, device=device)
    rows, two = torch.arange(len(hot), device=device), truth["objects"] == 2

    def mark(words: tuple[str, ...], which: Tensor, where: Tensor | None = None) -> None:
        column = torch.tensor([VALUES.index(word) for word in words], device=device)[which]
        hot[rows, column if where is None else torch.where(where, column, len(VALUES))] = True

    for name, words in (("color", world.COLORS), ("shape", world.SHAPES), ("size", world.SIZES)):
        mark(words, truth[name][:, 0])
        mark(words, truth[name][:, 1], two)
    mark(world.BACKGROUNDS, truth["background"])
    mark(world.MOTIONS, truth["motion"])
    mark(world.SPEEDS, truth["speed"], truth["motion"] > 0)
    hot[:, -1] = False
    return hot


class Words:
    """Lookup tables from tokens to attribute values, on one device."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((len(VOCABULARY),), len(VALUES), device=device)
        for i, value in enumerate(VALUES):
            for form in _FORMS[value]:
                self.value[INDEX[form]] = i
        self.group = torch.full((len(VOCABULARY),), -1, device=device)
        self.position = torch.zeros(len(VOCABULARY), dtype=torch.long, device=device)
        self.member = torch.zeros(len(GROUPS), 6, dtype=torch.long, device=device)
        for g, words in enumerate(GROUPS.values()):
            for i, word in enumerate(words):
                self.group[INDEX[word]], self.position[INDEX[word]], self.member[g, i] = g, i, INDEX[word]
        self.count = torch.tensor([len(words) for words in GROUPS.values()], device=device)

    def named(self, ids: Tensor) -> Tensor:
        """The values that captions (N, L) name: (N, A + 1), float, the last column is 0."""
        hot = torch.zeros(len(ids), len(VALUES) + 1, device=ids.device)
        hot.scatter_(1, self.value[ids], 1.0)
        hot[:, -1] = 0
        return hot

    def wrong(self, ids: Tensor, group: Tensor) -> Tensor:
        """Captions (N, L) with words of one group per row (N,) exchanged at random; unchanged if they have none.

        If a caption has two words of the group, for two objects, usually one of them is exchanged.
        """
        rand = torch.rand(2, len(ids), 1, device=ids.device)
        shift = 1 + (rand[0] * (self.count[group] - 1)[:, None]).long()
        two = (self.group[ids] == group[:, None]).sum(1, keepdim=True) == 2
        return self.exchange(ids, group[:, None], shift, torch.where(two, (4 * rand[1]).long().clamp(max=2), EVERY))

    def exchange(self, ids: Tensor, group: Tensor, shift: Tensor, which: Tensor) -> Tensor:
        """Captions (N, L) with words of `group` (N, 1) replaced by those `shift` (N, 1) positions later in the group.

        `which` (N, 1) selects the words: EVERY one, the first (1) or the second (2).
        """
        other = (self.position[ids] + shift) % self.count[group]
        matches = self.group[ids] == group
        matches = matches & ((which == EVERY) | (matches.cumsum(1) == which))
        return torch.where(matches, self.member[group, other], ids)


def contrast(picture: Tensor, caption: Tensor, negative: Tensor, usable: Tensor, agree: Tensor, scale: float) -> Tensor:
    """Contrastive loss with hard negatives.

    Args:
        picture: Unit vectors (B, E).
        caption: Unit vectors (B, E) of their captions.
        negative: Unit vectors (B, K, E) of wrong captions.
        usable: (B, K) bool, false if the negative is not wrong.
        agree: (B, B) bool, caption j (column) is true of picture i (row).
        scale: Inverse temperature.
    """
    eye = torch.eye(len(picture), dtype=torch.bool, device=picture.device)
    logits = (scale * picture @ caption.T).masked_fill(agree & ~eye, -1e4)
    hard = (scale * (picture[:, None] * negative).sum(-1)).masked_fill(~usable, -1e4)
    goal = torch.arange(len(picture), device=picture.device)
    return nnf.cross_entropy(torch.cat([logits, hard], 1), goal) + nnf.cross_entropy(logits.T, goal)
