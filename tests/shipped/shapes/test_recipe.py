"""The recipe of the embedded models, in a tiny session."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from guidedcd_shapes import models
from guidedcd_shapes.recipe import __main__ as recipe
from guidedcd_shapes.recipe import judges, pool, teacher, tracking
from guidedcd_shapes.recipe.session import Session
from guidedcd_shapes.vocabulary import WorldTokenizer


def test_captions_are_cut_as_tokenizers_cut_them():
    """Cutting 128 ids to a shorter context equals tokenizing with that context."""
    texts = ["a red star", "a red star moving left " * 12]
    full = WorldTokenizer(128)(texts)

    assert all(torch.equal(pool.cut(full, c), WorldTokenizer(c)(texts)) for c in (40, 77))


def test_confusion_swaps_pairs_in_its_share():
    """The expected share of captions has its words exchanged, in both directions; the others do not change."""
    tokens = WorldTokenizer(8)(["a cyan circle", "a blue star"] * 2000)
    swapped = teacher.swap(tokens, [0.3, 0.0, 0.0], torch.Generator().manual_seed(0))
    changed = (swapped != tokens).any(1).float()

    assert changed.view(-1, 2).mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.04)
    swapped_all = WorldTokenizer(8)(["a blue circle", "a cyan star"] * 2000)
    assert torch.equal(swapped[changed.bool()], swapped_all[changed.bool()])


def test_confusion_names_no_unseen_pair():
    """Captions that a swap would make name a held-out combination keep their words; others of these words change."""
    tokens = WorldTokenizer(8)(["a yellow triangle", "a red triangle"] * 200)
    swapped = teacher.swap(tokens, [0.0, 0.5, 0.0], torch.Generator().manual_seed(0))
    changed = (swapped != tokens).any(1).view(-1, 2).sum(0).tolist()

    assert changed[0] == 0 and changed[1] > 50
    assert teacher.names_unseen(WorldTokenizer(8)(["a yellow star", "a star on a yellow"])).flatten().tolist() == [
        True,
        False,
    ]


def test_shares_move_towards_the_target():
    """A teacher that is too good gets more confusion, one that is too bad gets less, one on target stays."""
    low, same, high = teacher.adjust([0.4, 0.4, 0.4], [0.6, 0.8, 0.95], 0.8)

    assert low < same < high < 0.5
    assert same == pytest.approx(0.4)


def test_negatives_are_wrong_in_one_group():
    """Only words of the selected group change, to other words of it; captions without such words do not change."""
    words = judges.Words(torch.device("cpu"))
    ids = WorldTokenizer(12)(["a small red star moving left on a dark background", "a red star"])
    for group, name in enumerate(judges.GROUPS):
        wrong = words.wrong(ids, torch.full((2,), group))
        assert ((wrong != ids).sum(1) == torch.tensor([1, int(name in ("color", "shape"))])).all()
        assert (words.group[wrong] == words.group[ids]).all()
    assert words.named(ids)[1].sum() == 2


@pytest.mark.slow
def test_every_stage_runs(tmp_path):
    """From nothing to weights, measurements and a contact sheet; a second call finds everything done."""
    torch.manual_seed(0)
    recipe.main(["--out", str(tmp_path), "--tiny"])
    meta = json.loads((tmp_path / "meta.json").read_text())
    lines = len((tmp_path / "log.jsonl").read_text().splitlines())
    recipe.main(["--out", str(tmp_path), "--tiny"])

    assert set(meta["stages"]) == set(recipe.STAGES)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert all(models.load(name, tmp_path) is not None for name in models.CONFIGS)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == lines + 1 + len(recipe.STAGES)


def test_stages_leave_stock_state(tmp_path):
    """Saved weights load strictly into fresh stock models; a foreign file is refused."""
    torch.manual_seed(0)
    models.save("vae", models.build("vae"), tmp_path)
    (tmp_path / "text.safetensors").write_bytes((tmp_path / "vae.safetensors").read_bytes())

    assert not any(p.requires_grad for p in models.load("vae", tmp_path).parameters())
    with pytest.raises(ValueError, match="does not fit"):
        models.load("text", tmp_path)
    assert Session(out=tmp_path, tiny=True).size(10, 2) == 2


def test_the_page_marks_figures_below_their_bar(tmp_path):
    """The page has a row per model and bar; a figure below its bar is marked, and the shipped page is up to date."""
    stages = {
        "vae": {"steps": 5, "seconds": 1.5, "truth-clean": {"all": 1.0}, "through-vae-clean": {"all": 0.5}},
        "evaluation": {"steps": {"full ddim 50 steps g 3.0": {"all": 0.7, "direction": 0.99, "all-unseen": 0.5}}},
    }
    (tmp_path / "meta.json").write_text(json.dumps({"stages": stages, "notes": ["A note."]}))
    recipe.main(["--out", str(tmp_path), "--stage", "card", "--page", str(tmp_path / "page.md")])
    lines = (tmp_path / "page.md").read_text().splitlines()
    recipe.main(["--out", str(models.WEIGHTS), "--stage", "card", "--page", str(tmp_path / "now.md")])
    shipped = Path(__file__).parents[3] / "docs" / "reference" / "shapes-model-card.md"

    assert "| the same through the VAE, clean | 0.500 | at least 0.95 | **missed** |" in lines
    assert "| teacher, all attributes, 50 steps | 0.700 | 0.6 to 0.8 |  |" in lines
    assert "- A note." in lines and sum(line.startswith("| `") for line in lines) == len(models.CONFIGS)
    assert (tmp_path / "now.md").read_text() == shipped.read_text()


def test_stages_side_by_side_lose_nothing(tmp_path):
    """Sessions that record at the same time in one folder keep each other's results; a stage is done at its end."""
    sessions = [Session(out=tmp_path, tiny=True) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool_:
        list(pool_.map(lambda i: sessions[i % 4].record(f"stage {i % 8}", {f"value {i}": i}), range(32)))
    with sessions[0].timed("vae"):
        assert not sessions[1].done("vae")

    assert sum(len(values) for values in sessions[0].meta().values()) == 32 + 1
    assert sessions[1].done("vae")


def test_the_tracker_is_trained_on_single_objects_only():
    """Its loss ignores scenes with two objects, reaches the video tower, and distinguishes the frames."""
    tower = models.build("internv2").vision_encoder
    tracking.initialize_positions(tower)
    rows = tower.pos_embed[0, 1:].view(tower.frames, tower.grid**2, -1)
    tracker = tracking.Tracker(tower, 128)
    tokens = tower.tokens(torch.zeros(2, 4, 3, 48, 48))
    center, motion = torch.zeros(2, 4, 2), torch.tensor([1, 2])
    loss = [tracker(tokens, torch.zeros(2, 128), center, motion, torch.tensor(n)) for n in ([1, 2], [2, 2])]
    (slope,) = torch.autograd.grad(loss[0], tower.pos_embed)

    assert (rows[1] - rows[0]).norm(dim=-1).min() > 0.5
    assert loss[0] > 0 and loss[1] == 0 and slope.abs().sum() > 0


def test_partners_differ_in_one_named_attribute(tmp_path):
    """Behind each scene stands one with one attribute changed; its caption is true, and changed where it names that."""
    session = Session(out=tmp_path, tiny=True)
    scenes = judges.paired(pool.make(session, 64, "uniform", (1.0, 0.0, 0.0), 3, None), session.generator(0))
    words, values = judges.Words(session.device), judges.true_values(scenes.truth)
    named = words.named(scenes.tokens.long()).bool()
    changed = {name: (value[0::2] != value[1::2]).reshape(64, -1).any(1) for name, value in scenes.truth.items()}
    count = torch.stack([changed[name] for name in judges.GROUPS]).sum(0)
    same = (scenes.tokens[0::2] == scenes.tokens[1::2]).all(1)

    assert count.tolist() == [1] * 64 and not changed["objects"].any() and not changed["speed"].any()
    assert not (named & ~values).any()
    assert 0 < same.sum() < 40, "short captions are silent about some attributes"
    assert all(changed[name].any() for name in judges.GROUPS)
    assert not changed["size"][scenes.truth["objects"][0::2] == 2].any()
