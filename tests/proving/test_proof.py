"""Proofs: the shipped one, small versions, authors' components, and malformed files."""

import pytest
from proofs import with_change

from guidedcd.config.from_python import components
from guidedcd.errors import GuidedCDError
from guidedcd.plugins.registry import load_plugins
from guidedcd.proving.authors import with_components
from guidedcd.proving.proof import merged, read_proof
from guidedcd.proving.prove import chosen_arms


def shipped(**options):
    """The proof of the default teacher."""
    return read_proof(load_plugins().get("teacher", "shapes").config.proof, **options)


def test_every_arm_of_the_shipped_proof_is_a_run():
    """All options of all arms exist, and every claim compares arms of the proof on its metrics."""
    proof, registry = shipped(), load_plugins()
    runs = {arm: proof.run(proof.trained(arm) or arm, 3, "cpu", registry) for arm in proof.arms}

    assert {run.seed for run in runs.values()} == {3}
    assert set(runs["v2"].rewards) == {"hps", "clip", "internv2"} and set(runs["v2"].energies) == {"pta"}
    assert not runs["cd"].rewards and not runs["cd"].energies
    assert [chosen.config.motion for chosen in runs["cd-ovwv"].data] == ["pretrain", "dynamic"]
    assert list(runs["reward-everywhere"].routes) == ["all"]
    assert proof.claims_of(list(proof.arms)) == list(proof.claims)


def test_the_arms_have_all_subsets_of_the_rewards():
    """With motion guidance there is one arm for each of the eight subsets of the three rewards."""
    proof, registry = shipped(), load_plugins()
    runs = [proof.run(arm, 0, "cpu", registry) for arm in proof.arms if proof.trained(arm) == arm]
    alike = [run for run in runs if set(run.energies) == {"pta"} and run.data == runs[0].data]

    assert len({frozenset(run.rewards) for run in alike}) == 8


def test_the_arms_of_one_seed_share_stores():
    """The quick version needs one store, and arms on the same data share one."""
    proof, registry = shipped(quick=True), load_plugins()
    runs = [proof.run(arm, 0, "cpu", registry) for arm in proof.arms]

    assert len(runs) == 4 and len(proof.seeds) == 1
    assert len({(run.data, run.preprocess, run.solver) for run in runs}) == 1
    assert proof.claims and all(set(claim.arms) <= set(proof.arms) for claim in proof.claims)


def test_claims_choose_their_arms(proof_file):
    """Arms and claims together choose arms in the order of the proof; nothing chooses all."""
    proof = read_proof(proof_file)

    assert chosen_arms(proof, None, ["B"]) == ["teacher", "slow", "slow-3"]
    assert chosen_arms(proof, ["plain"], ["B"]) == ["teacher", "plain", "slow", "slow-3"]
    assert chosen_arms(proof, None, None) == list(proof.arms)
    with pytest.raises(GuidedCDError, match="no arm 'plan'. Did you mean 'plain'?"):
        chosen_arms(proof, ["plan"], None)
    with pytest.raises(GuidedCDError, match="no claim 'C'"):
        chosen_arms(proof, None, ["C"])


def test_an_authors_component_is_added_to_the_arms(proof_file):
    """The proof then has the arms without the component and with it, and a claim for each metric."""
    proof = with_components(read_proof(proof_file), components("energies", {"dynamics": {"relative": 0.2}}, "here"))

    assert list(proof.arms) == ["plain", "dynamics"]
    assert [claim.criteria[0].text for claim in proof.claims] == ["misfit: dynamics > plain", "both: dynamics > plain"]
    run = proof.run("dynamics", 0, "cpu", load_plugins())
    assert run.energies["dynamics"].relative == 0.2


def test_tables_are_merged_option_by_option():
    """Later options win, others stay, and a component's singular and plural are one key."""
    one = {"train": {"steps": 1, "optimizer": {"lr": 1}}, "energy": {"a": {}}}
    other = {"train": {"optimizer": {"lr": 2}}, "energies": {"b": {}}}

    assert merged(one, other) == {
        "train": {"steps": 1, "optimizer": {"lr": 2}},
        "energies": {"a": {}, "b": {}},
    }
    assert one["train"]["optimizer"] == {"lr": 1}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("misfit: slow > plain", "misfit: slow > plane", "claim A: arm 'plane' does not exist. Did you mean 'plain'?"),
        ("misfit: slow > plain", "fit: slow > plain", "claim A: metric 'fit' does not exist"),
        ('groups = ["slow"]', 'groups = ["slaw"]', "group of arm 'slow' 'slaw' does not exist"),
        ('student = "slow"', 'student = "fast"', "student of arm 'slow-3' 'fast' does not exist"),
        ('arms = ["plain", "slow"]', 'arms = ["plan"]', r"\[quick\] arm 'plan' does not exist"),
        ("steps = 1\n", 'steps = "one"\n', "steps is 'one'; it must be a whole number"),
        ('title = "Tiny"', "", "title is missing"),
        ("misfit: slow > plain", "misfit: slow", "is malformed"),
    ],
)
def test_mistakes_in_a_proof_are_one_sentence(proof_file, old, new, sentence):
    """A name that does not exist, or a value of another form, is named."""
    with_change(proof_file, old, new)
    with pytest.raises(GuidedCDError, match=sentence):
        read_proof(proof_file, quick=True)


def test_an_unknown_option_names_the_arm(proof_file):
    """An option that does not exist is an error that names the arm and suggests another."""
    with_change(proof_file, "relative = 0.05", "relativ = 0.05")
    with pytest.raises(GuidedCDError, match="relativ in arm 'slow'"):
        read_proof(proof_file).run("slow", 0, "cpu", load_plugins())
