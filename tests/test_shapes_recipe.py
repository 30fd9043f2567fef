"""The recipe that makes the embedded models, at a size that a CPU finishes at once."""

from __future__ import annotations

import json

import pytest
import torch

from guidedcd.shapes import models
from guidedcd.shapes.recipe import __main__ as recipe
from guidedcd.shapes.recipe import judges, pool, teacher
from guidedcd.shapes.recipe.session import Session
from guidedcd.shapes.text import WorldTokenizer


def test_captions_are_cut_as_tokenizers_cut_them():
    """Cutting 128 ids to a shorter context equals tokenizing with that context."""
    texts = ["a red star", "a red star moving left " * 12]
    full = WorldTokenizer(128)(texts)

    assert all(torch.equal(pool.cut(full, c), WorldTokenizer(c)(texts)) for c in (40, 77))


def test_confusion_swaps_pairs_in_its_share():
    """About the wanted share of captions has its words exchanged, both ways; others stay."""
    tokens = WorldTokenizer(8)(["a cyan circle", "a blue star"] * 2000)
    swapped = teacher.swap(tokens, [0.3, 0.0, 0.0, 0.0], torch.Generator().manual_seed(0))
    changed = (swapped != tokens).any(1).float()

    assert changed.view(-1, 2).mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.04)
    wanted = WorldTokenizer(8)(["a blue circle", "a cyan star"] * 2000)
    assert torch.equal(swapped[changed.bool()], wanted[changed.bool()])


def test_confusion_names_no_unseen_pair():
    """Captions that a swap would make name a held-out combination keep their words; others of these words change."""
    tokens = WorldTokenizer(8)(["a yellow triangle", "a red triangle"] * 200)
    swapped = teacher.swap(tokens, [0.0, 0.5, 0.0, 0.0], torch.Generator().manual_seed(0))
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
    """Only words of the asked group change, to other words of it; captions silent about it stay as they are."""
    words = judges.Words(torch.device("cpu"))
    ids = WorldTokenizer(12)(["a small red star moving left on a dark background", "a red star"])
    for group, name in enumerate(judges.GROUPS):
        wrong = words.wrong(ids, torch.full((2,), group))
        assert ((wrong != ids).sum(1) == torch.tensor([1, int(name in ("color", "shape"))])).all()
        assert (words.group[wrong] == words.group[ids]).all()
    assert words.said(ids)[1].sum() == 2


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
