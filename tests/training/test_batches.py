"""The samples of a step and their routes."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_plugin import make

from guidedcd.data.routing import Sample
from guidedcd.plugins.configs import EnergyConfig
from guidedcd.preprocessing.preprocess import preprocess
from guidedcd.preprocessing.store import Draw, LatentStore
from guidedcd.training.batches import Batches


def test_clips_of_two_datasets_may_have_one_id(toy, tmp_path):
    """A route belongs to the clip and its caption, not to the id that a dataset gives it."""
    run = make()
    store = LatentStore(preprocess(run, store_folder=tmp_path / "s"))
    rule = {"readers": {}, "rules": [], "energies": run.energies, "size": 2, "omega": (1.0, 4.0), "seed": 0}
    batches = Batches(store, **rule)
    routes = [batches.routed(Sample(id="0", dataset=name, caption=name))[1] for name in ("one", "other", "one")]

    assert [route.caption for route in routes] == ["one", "other", "one"]


def test_a_route_switches_one_of_two_energies(toy, tmp_path):
    """The strength of the excluded energy is 0 for the sample, that of the other is unchanged."""
    store = LatentStore(preprocess(make(preprocess={"fraction": 1.0}), store_folder=tmp_path / "s"))
    energies = {name: EnergyConfig(relative=0.3, fraction=1.0) for name in ("toy", "other")}
    rules = [lambda sample, route: attrs.evolve(route, without_energies=sample.energies - {"toy"})]
    options = {"readers": {}, "energies": energies, "size": 2, "omega": (1.0, 4.0), "seed": 0}
    strengths = {len(some): Batches(store, rules=some, **options)(0).strengths for some in (rules, [])}

    assert (strengths[0][:, 0] > 0).any()
    assert (strengths[1][:, 0] == strengths[0][:, 0]).all() and (strengths[1][:, 1] == 0).all()


class Draws:
    """Draws of several sizes, each its own position; the latents of the n-th size have n + 1 channels."""

    identity: ClassVar = {"steps": 10}
    scores: ClassVar = {}

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return sum(self.sizes)

    def __getitem__(self, position):
        kind, first = 0, 0
        while position >= first + self.sizes[kind]:
            kind, first = kind + 1, first + self.sizes[kind]
        z0 = torch.full((kind + 1, 1, 1, 1), float(position))
        sample = Sample(id=str(position), dataset="d", caption="c")
        return Draw(
            sample=sample, number=0, index=5, z0=z0, noise=z0, cond={}, cond_output=z0, uncond_output=z0, scores={}
        )


def batches_of(draws, **options):
    """The batches of a run without energies, of `size` samples."""
    return Batches(draws, readers={}, rules=[], energies={}, omega=(1.0, 4.0), seed=3, **options)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), total=st.integers(1, 6), epoch=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_batch_has_one_size_and_an_epoch_all_sizes(sizes, total, epoch):
    """Batches have draws of one size; an epoch has every draw at most once, and all but less than a batch a size."""
    batches, counts = batches_of(Draws(*sizes), size=total), [max(1, size // total) for size in sizes]
    if len(sizes) == 1:
        return  # its epochs do not end with a batch
    numbers = range(epoch * sum(counts), (epoch + 1) * sum(counts))
    drawn = [batches(number) for number in numbers]  # torch.stack refuses draws of several sizes
    for kind, size in enumerate(sizes):
        ids = [one for batch in drawn if batch.z0.shape[1] == kind + 1 for one in batch.ids]
        assert len(ids) == counts[kind] * total
        assert len(set(ids)) == (len(ids) if size >= total else size)


def test_two_processes_have_the_batches_of_one():
    """With several sizes too, two processes with half of a batch each train on the samples of one process."""
    draws = Draws(9, 5, 2)
    whole = batches_of(draws, size=4)
    halves = [batches_of(draws, size=2, process=number, processes=2) for number in range(2)]
    for number in range(12):
        assert whole(number).ids == [*halves[0](number).ids, *halves[1](number).ids]
        assert torch.equal(whole(number).omega, torch.cat([half(number).omega for half in halves]))
