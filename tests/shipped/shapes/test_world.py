"""The proving ground: measurements of the oracle, contents of captions, and tokenizers."""

from __future__ import annotations

import random

import pytest
import torch
from guidedcd_shapes import captions, drawing, models, prompts, world
from guidedcd_shapes.oracle import ATTRIBUTES, Oracle, summarise
from guidedcd_shapes.recipe import session as recipe
from guidedcd_shapes.vocabulary import BEGIN, END, INDEX, PAD, UNKNOWN, VOCABULARY, WorldTokenizer

from guidedcd.errors import GuidedCDError


def scenes(count: int, seed: int = 0, **options) -> list[world.Scene]:
    """Scenes of one seed."""
    rng = random.Random(seed)
    return [world.sample_scene(rng, "uniform", **options) for _ in range(count)]


@pytest.mark.parametrize("variety", [world.Variety(), recipe.VARIETY], ids=["plain", "varied"])
@pytest.mark.parametrize(("web", "bar"), [(False, 0.98), (True, 0.95)])
def test_the_oracle_measures_the_drawn_attributes(web, bar, variety):
    """The oracle measures every attribute of drawn videos correctly: 98 % of clean and 95 % of degraded ones."""
    truth = world.pack(scenes(64, unseen=None))
    video = drawing.render(truth, web, torch.Generator().manual_seed(0), variety)
    means = summarise(Oracle().score(video, truth))

    assert video.shape == (64, world.FRAMES, 3, world.SIZE, world.SIZE)
    assert video.min() >= 0 and video.max() <= 1
    assert all(means[name] >= bar for name in (*ATTRIBUTES, "speed-class", "all", "direction")), means


def test_the_oracle_rejects_videos_of_other_scenes():
    """Videos of other scenes are not accepted, and an empty video shows no object."""
    truth, other = world.pack(scenes(32)), world.pack(scenes(32, seed=1))
    scores = Oracle().score(drawing.render(other, generator=torch.Generator().manual_seed(0)), truth)
    nothing = Oracle().score(torch.full((2, 8, 3, 48, 48), 0.5), world.subset(truth, torch.arange(2)))

    assert scores["all"].mean() == 0
    assert nothing["shape"].sum() == nothing["speed"].sum() == 0


def test_drawing_depends_on_nothing_but_its_seed():
    """The same generator seed draws the same videos, another one does not."""
    truth = world.pack(scenes(3))
    first, again, other = (drawing.render(truth, True, torch.Generator().manual_seed(s)) for s in (4, 4, 5))
    varied = drawing.render(truth, True, torch.Generator().manual_seed(4), recipe.VARIETY)

    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, varied)


def test_training_never_shows_the_unseen_pairs():
    """Scenes of the teacher's training and of the datasets have none of the held-out pairs of colour and shape."""
    pairs = {(c, s) for scene in scenes(3000) for c, s in zip(scene.color, scene.shape, strict=True)}

    assert not pairs & world.UNSEEN
    assert len(pairs | world.UNSEEN) == len(world.COLORS) * len(world.SHAPES)
    assert {(s.color[0], s.shape[0]) for s in scenes(50, unseen=True)} == world.UNSEEN


def test_captions_use_one_vocabulary():
    """No caption has an unknown word; ids round-trip; <eos> has the highest id."""
    rng = random.Random(0)
    tokenizer = WorldTokenizer(128)
    for scene in scenes(300, unseen=None):
        for write in (captions.short_caption, captions.full_caption, captions.dense_caption):
            text = write(scene, rng)
            ids = tokenizer.encode(text)
            assert UNKNOWN not in ids
            assert " ".join(VOCABULARY[i] for i in ids) == text
    assert max(INDEX.values()) == END


def test_captions_fit_the_rewards_that_they_are_for():
    """Short captions fit every reward; dense ones hide half the objects from InternV2 and all directions from all."""
    rng, counts, positions = random.Random(0), {}, {"object": [], "direction": []}
    count = WorldTokenizer(128).count
    position = WorldTokenizer(128).position
    for scene in scenes(400):
        for kind in ("short", "full", "dense"):
            text = getattr(captions, f"{kind}_caption")(scene, rng)
            counts.setdefault(kind, []).append(count(text))
        first = text.split().index(world.SHAPES[scene.shape[0]]) + 2
        positions["object"].append(first)
        if 1 <= scene.motion <= 4:
            positions["direction"].append(position(text, world.MOTIONS[scene.motion]))
    for name, values in {**counts, **positions}.items():
        print(f"{name}: tokens {min(values)} to {max(values)}")
    late = sum(position > models.CONTEXT["internv2"] for position in positions["object"]) / len(positions["object"])

    assert max(counts["short"] + counts["full"]) <= models.CONTEXT["internv2"]
    assert models.CONTEXT["clip"] < min(counts["dense"]) and max(counts["dense"]) <= models.CONTEXT["text"]
    assert min(positions["direction"]) > models.CONTEXT["clip"]
    assert max(positions["object"]) < models.CONTEXT["clip"] and 0.4 < late < 0.6


def test_the_tokenizer_cuts_and_pads():
    """Long texts keep <eos> as their last token, short ones are padded; case and foreign signs do not matter."""
    tokenizer = WorldTokenizer(6)
    ids = tokenizer(["A RED star!", "a red star moving left on a dark background"])
    a, red, star, moving = (INDEX[word] for word in ("a", "red", "star", "moving"))

    assert ids.tolist() == [[BEGIN, a, red, star, END, PAD], [BEGIN, a, red, star, moving, END]]
    assert tokenizer.mask(ids).sum(1).tolist() == [5, 6]
    assert tokenizer.count("a red star moving left") == 7
    assert tokenizer.encode("a zebra") == [a, UNKNOWN]


def test_prompts_are_paired_and_named():
    """Prompts repeat with their seed; longer lists begin with shorter ones; some name no motion; some are unseen."""
    few, many = (prompts.evaluation_prompts(n, 3, "mixed") for n in (4, 60))
    fresh = [(p.scene["color"][0], p.scene["shape"][0]) in world.UNSEEN for p in many]

    assert few == many[:4]
    assert ["motion" in p.named for p in few] == [True, False, True, False]
    assert not any(word in many[1].text for word in (*world.MOTIONS, "moving", "slowly"))
    assert 0 < sum(fresh) < len(fresh) / 2
    assert len({p.id for p in many}) == len(many)
    with pytest.raises(GuidedCDError, match="no 'odd' prompts"):
        prompts.evaluation_prompts(1, kind="odd")


def test_prompts_survive_json():
    """A prompt whose scene went through JSON packs to the same truth."""
    import json

    (prompt,) = prompts.evaluation_prompts(1)
    import attrs

    again = attrs.evolve(prompt, scene=json.loads(json.dumps(prompt.scene)))
    one, two = prompts.truth([prompt]), prompts.truth([again])

    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(GuidedCDError, match="known scene"):
        prompts.truth([attrs.evolve(prompt, scene=None)])
