"""The conformance kit: what is right passes, and each way of being wrong is caught by its rule."""

from __future__ import annotations

import pytest

from guidedcd import Run
from guidedcd.energies.traits import Traits, stored_part, traits
from guidedcd.plugins.requirements import requirements
from guidedcd.preprocessing.estimates import reference_kinds
from guidedcd.testing import checks, run_checks

pytestmark = pytest.mark.slow

HEAD = """
import attrs
import torch
from guidedcd import *
"""
OFFER = """
@attrs.frozen(kw_only=True)
class Config({kind}Config):
    "Options."

@hookimpl
def register_{hook}(register):
    register("odd", "acme_odd:Odd", config=Config)
"""
ENERGIES = {
    "ascends": ("return -(seen.x0 - reference.x0).square().flatten(1).mean(1)", "energy_is_least_at_its_reference"),
    "wrong-gradient": (
        "x = (seen.x0 - reference.x0).square().flatten(1).mean(1); return 2 * x.detach() - x",
        "energy_falls_along_its_score",
    ),
    "detached": ("return (seen.x0.detach() - reference.x0).square().flatten(1).mean(1)", "energy_has_a_gradient"),
    "scalar": ("return (seen.x0 - reference.x0).square().mean()", "energy_is_one_number_per_sample"),
    "mixes": (
        "return (seen.x0.mean(0, keepdim=True) - reference.x0).square().flatten(1).mean(1)",
        "energy_treats_samples_alone",
    ),
    "draws": (
        "torch.rand(1); return (seen.x0 - reference.x0).square().flatten(1).mean(1)",
        "energy_is_one_number_per_sample",
    ),
    "half-detached": (
        "x = seen.x0 - reference.x0; return (x.detach() * x).flatten(1).mean(1)",
        "energy_has_the_right_gradient",
    ),
    "device": (
        "return ((seen.x0 - reference.x0) * torch.ones(seen.x0.shape)).square().flatten(1).mean(1)",
        "energy_follows_the_device",
    ),
    "threads": (
        "import time; self.x = seen.x0; time.sleep(0.02); return (self.x - reference.x0).square().flatten(1).mean(1)",
        "energy_is_safe_in_threads",
    ),
    "network": (
        "import socket; socket.create_connection(('127.0.0.1', 9), 0.1); return seen.x0.flatten(1).mean(1)",
        "energy_is_one_number_per_sample",
    ),
    "not-finite": ("return (seen.x0 / 0).flatten(1).sum(1)", "energy_is_one_number_per_sample"),
}
OUTPUT = {
    "reads-noise": (
        "return (seen.guided * seen.z - reference.guided).square().flatten(1).mean(1)",
        "energy_of_the_output_reads_the_prediction_alone",
    ),
    "half-detached": (
        "x = seen.guided - reference.guided; return (x.detach() * x).flatten(1).mean(1)",
        "energy_has_the_right_gradient",
    ),
    "ascends": (
        "x = (seen.guided - reference.guided).square().flatten(1).mean(1); return 2 * x.detach() - x",
        "energy_falls_along_its_score",
    ),
    "detached": ("return (seen.guided.detach() - 1).square().flatten(1).mean(1)", "energy_has_a_gradient"),
    "mixes": ("return (seen.guided.mean(0, keepdim=True) - seen.x0).flatten(1).mean(1)", "energy_treats_samples_alone"),
    "device": (
        "return (seen.guided * torch.ones(seen.x0.shape)).square().flatten(1).mean(1)",
        "energy_follows_the_device",
    ),
}
REWARDS = {
    "detached": ("return video.detach().flatten(1).mean(1)", "reward_has_a_gradient"),
    "mixes": ("return video.flatten(1).mean(1) - video.mean()", "reward_treats_samples_alone"),
    "scalar": ("return video.mean()", "reward_is_one_number_per_sample"),
    "changes": ("return video.mul_(2).flatten(1).mean(1)", "reward_leaves_its_frames"),
    "limit": (
        "return video.flatten(1).mean(1) * torch.tensor([float(sum(map(ord, c.split()[0]))) for c in captions])",
        "reward_reads_up_to_its_limit",
    ),
    "threads": (
        "import time; self.v = video; time.sleep(0.02); return self.v.flatten(1).mean(1)",
        "reward_is_safe_in_threads",
    ),
}
ROUTES = {
    "nothing": ("return None", "route_is_total"),
    "unknown-reward": ("return attrs.evolve(route, rewards=frozenset({'zzz'}))", "route_is_total"),
    "invents": ("return attrs.evolve(route, caption='a masterpiece')", "route_invents_no_caption"),
    "threads": (
        "import time; self.c = sample.caption; time.sleep(0.02); return attrs.evolve(route, caption=self.c)",
        "route_is_safe_in_threads",
    ),
    "remembers": (
        "self.n = getattr(self, 'n', 0) + 1; return attrs.evolve(route, guided=self.n % 2 == 0)",
        "route_is_pure",
    ),
}


def failing(kind: str) -> set[str]:
    """Names of the rules that the installed component `odd` breaks."""
    broken = set()
    for check in checks(kind, "odd"):
        if check.rule.__name__ == "offering_is_light":
            continue  # these components are in the module that registers them
        try:
            check()
        except Exception:
            broken.add(check.rule.__name__)
    return broken


@pytest.mark.parametrize(("body", "rule"), ENERGIES.values(), ids=ENERGIES)
def test_a_wrong_energy_is_caught(install, body, rule):
    """Each rule of energies finds its fault."""
    code = (
        f"class Odd:\n    def __init__(self, config): ...\n    def __call__(self, seen, reference):\n        {body}\n"
    )
    install("acme-odd", HEAD + OFFER.format(kind="Energy", hook="energies") + code)

    assert rule in failing("energy")


def test_an_energy_on_latents_passes(install):
    """The template's energy breaks no rule."""
    body = "return (seen.x0 - reference.x0).square().flatten(1).mean(1)"
    code = (
        f"class Odd:\n    def __init__(self, config): ...\n    def __call__(self, seen, reference):\n        {body}\n"
    )
    install("acme-odd", HEAD + OFFER.format(kind="Energy", hook="energies") + code)

    assert failing("energy") == set()


def output_energy(body: str, through: str = "output") -> str:
    """A plugin with an energy of the output."""
    code = f"class Odd:\n    through = {through!r}\n    def __init__(self, config): ...\n"
    code += f"    def __call__(self, seen, reference):\n        {body}\n"
    return HEAD + OFFER.format(kind="OutputEnergy", hook="energies") + code


@pytest.mark.parametrize(("body", "rule"), OUTPUT.values(), ids=OUTPUT)
def test_a_wrong_energy_of_the_output_is_caught(install, body, rule):
    """Each rule of energies finds its fault in one of the output, the rule for these energies among them."""
    install("acme-odd", output_energy(body))

    assert rule in failing("energy")


@pytest.mark.parametrize(
    "body",
    [
        "return (seen.guided - reference.guided).square().flatten(1).mean(1)",
        "return (seen.guided.abs().flatten(1).mean(1) - reference.x0.abs().flatten(1).mean(1)).relu().square()",
        "return (reference.x0.var(2).flatten(1).mean(1) - seen.x0.var(2).flatten(1).mean(1)).relu().square()",
    ],
)
def test_an_energy_of_the_output_passes(install, body):
    """Energies of the predicted clean latents, one-sided ones too, break no rule."""
    install("acme-odd", output_energy(body))

    assert failing("energy") == set()


def test_a_misspelt_path_and_wrong_options_are_caught(install):
    """`through` must be one of two words, and an energy of the output has the options of one."""
    body = "return (seen.x0 - reference.x0).square().flatten(1).mean(1)"
    install("acme-odd", output_energy(body, through="ouput"))
    assert failing("energy") == {"energy_states_what_it_is"}


def test_the_options_of_other_energies_are_caught(install):
    """The default reference of an energy through the network takes passes, which training does not have."""
    body = "return (seen.x0 - reference.x0).square().flatten(1).mean(1)"
    install("acme-odd", output_energy(body).replace("OutputEnergyConfig", "EnergyConfig"))
    assert failing("energy") == {"energy_states_what_it_is"}


def test_attributes_that_the_constructor_sets_count(install):
    """`through` and `reference_free` may be attributes of the object, which the checks and the estimates read."""
    code = (
        "class Odd:\n    def __init__(self, config):\n        self.through, self.reference_free = 'output', True\n"
        "    def __call__(self, seen, reference):\n        assert reference is None\n"
        "        return (seen.guided.diff(dim=2).square().flatten(1).mean(1) - 1).square()\n"
    )
    install("acme-odd", HEAD + OFFER.format(kind="OutputEnergy", hook="energies") + code)
    run = Run.from_profile("shapes", energies=["odd"])

    assert failing("energy") == set()
    assert traits(run, "odd") == Traits(is_of_output=True, is_reference_free=True)
    assert stored_part(run).energies == {} and reference_kinds(run) == {}


def test_a_reference_free_energy_passes(install):
    """A `reference_free` energy, which compares with nothing, is checked without a reference."""
    body = "assert reference is None; return (seen.x0.diff(dim=2).abs().flatten(1).mean(1) - 0.5).square()"
    code = (
        "class Odd:\n    reference_free = True\n    def __init__(self, config): ...\n"
        f"    def __call__(self, seen, reference):\n        {body}\n"
    )
    install("acme-odd", HEAD + OFFER.format(kind="Energy", hook="energies") + code)

    assert failing("energy") == set()


def test_an_energy_with_a_float32_network_passes(install):
    """The rule in float64 is skipped; the rule about devices leaves the network on its own for the rules after it."""
    code = """
class Odd:
    reference_free = True

    def __init__(self, config):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Conv3d(4, 1, 1).requires_grad_(False)

    def __call__(self, seen, reference):
        values = self.net.to(seen.x0.device)(seen.x0).square().flatten(1).mean(1)
        values.detach().numpy()  # a TypeError on the meta device
        return values
"""
    install("acme-odd", HEAD + OFFER.format(kind="Energy", hook="energies") + code)

    results = {r.check.rule.__name__: r for r in run_checks(checks("energy", "odd")[1:])}

    skipped = results.pop("energy_has_the_right_gradient")
    assert (skipped.status, skipped.reason) == ("skipped", "it computes in float32 only")
    assert {name: r.reason for name, r in results.items() if r.status != "passed"} == {}


REWARD = """
class Odd(torch.nn.Module):
    max_tokens = 9

    def __init__(self, config):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.eval()

    def count_tokens(self, text):
        return len(text.split()) + 2

    def forward(self, video, captions):
        {body}
"""


@pytest.mark.parametrize(("body", "rule"), REWARDS.values(), ids=REWARDS)
def test_a_wrong_reward_is_caught(install, body, rule):
    """Each rule of rewards finds its fault."""
    code = REWARD.format(body=body)
    install("acme-odd", HEAD + OFFER.format(kind="Reward", hook="rewards") + code)

    assert rule in failing("reward")


def test_a_reward_that_would_be_trained_is_caught(install):
    """Parameters that gather gradients, and dropout left on, are faults."""
    code = REWARD.format(body="return video.flatten(1).mean(1)").replace(", requires_grad=False", "")
    install("acme-odd", HEAD + OFFER.format(kind="Reward", hook="rewards") + code)

    assert failing("reward") == {"reward_is_frozen"}


@pytest.mark.parametrize(("body", "rule"), ROUTES.values(), ids=ROUTES)
def test_a_wrong_route_is_caught(install, body, rule):
    """Each rule of routes finds its fault."""
    code = f"class Odd:\n    def __init__(self, config): ...\n    def __call__(self, sample, route):\n        {body}\n"
    install("acme-odd", HEAD + OFFER.format(kind="Route", hook="routes") + code)

    assert rule in failing("route")


@pytest.mark.slow
def test_an_offer_that_imports_torch_is_caught(install):
    """Help must not wait for a plugin."""
    install("acme-odd", HEAD + OFFER.format(kind="Route", hook="routes") + "class Odd: ...")
    light = next(check for check in checks("route", "odd") if check.rule.__name__ == "offering_is_light")

    with pytest.raises(AssertionError, match="acme_odd imports torch"):
        light()


def test_an_option_without_docstring_is_caught(install):
    """An option without a docstring, which --help would show, fails a check."""
    offer = OFFER.format(kind="Route", hook="routes").replace('"Options."', "many: int = 1")
    install("acme-odd", HEAD + offer + "class Odd: ...")
    sound = next(check for check in checks("route", "odd") if check.rule.__name__ == "config_is_sound")

    with pytest.raises(AssertionError, match="Config.many has no docstring"):
        sound()


MISSPELT = {
    "option": ("fractoin: float = 0.1\n    'Share.'", "", "Config.fractoin. Did you mean 'fraction'"),
    "attribute": ("", "record_only = True", "Odd.record_only. Did you mean 'records_only'"),
}


@pytest.mark.parametrize(("option", "attribute", "message"), MISSPELT.values(), ids=MISSPELT)
def test_a_misspelt_name_is_one_failing_check(install, option, attribute, message):
    """A near match of a name that the engine reads fails one check, which suggests the right name."""
    code = (
        f"class Odd:\n    needs = (); {attribute}\n    def __init__(self, config): ...\n"
        "    def __call__(self, seen, reference): return (seen.x0 - reference.x0).square().flatten(1).mean(1)\n"
    )
    offer = OFFER.format(kind="Energy", hook="energies").replace('"Options."', f'"Options."\n    {option}')
    install("acme-odd", HEAD + offer + code)

    (rule,) = failing("energy")
    with pytest.raises(AssertionError, match=message):
        next(check for check in checks("energy", "odd") if check.rule.__name__ == rule)()


@pytest.mark.parametrize(
    "check", [*checks("energy", "pta"), *checks("route", "short-caption"), *checks("route", "all")], ids=str
)
def test_shipped_components_conform(check):
    """Shipped components pass the checks."""
    check()


def test_requirements_are_those_of_the_distribution(install):
    """Missing and too old packages are found; extras and other platforms do not count."""
    install("acme-odd", "", requires="no-such-package\nRequires-Dist: attrs>=1\nRequires-Dist: x; extra == 'y'")

    assert requirements(["acme-odd/acme_odd"]) == {"acme-odd": ["no-such-package is not installed"]}
