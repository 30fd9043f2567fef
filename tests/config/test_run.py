"""The run: how flags, files and profiles combine, and the errors for mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guidedcd.config.from_python import evaluation_of
from guidedcd.config.kinds import Chosen
from guidedcd.config.old_names import MOVED, check_flags
from guidedcd.config.resolve import resolve, run_from_dict
from guidedcd.config.run import Run
from guidedcd.config.sampling import SampleConfig
from guidedcd.config.sections import EvaluateConfig
from guidedcd.config.selection import select
from guidedcd.config.sources import Layer, profiles, read_config, read_profile, split_names
from guidedcd.config.structure import Value, changed, options_of
from guidedcd.errors import GuidedCDError, on_command_line
from guidedcd.plugins.configs import DEFAULT_RELATIVE, EnergyConfig
from guidedcd.plugins.registry import load_plugins

BASE = {"teacher": "toy", "data": ["toy"]}


@pytest.fixture
def registry(toys):
    """The installed plugins and the toys."""
    return load_plugins()


def of(registry, *layers: dict) -> Run:
    """The run of some files over a minimal one."""
    return resolve([Layer.of_file(layer, f"file{i}") for i, layer in enumerate([BASE, *layers])], registry)


def test_a_run_survives_json(registry):
    """to_dict and from_dict are inverse, through JSON text, with every kind of value."""
    run = of(
        registry,
        {
            "teacher": {"toy": {"path": "weights.ckpt"}},
            "data": [{"toy": {"path": "a", "captions": ["x", "y"], "mirror": True}}, {"toy": {"path": "b"}}],
            "energy": {"shake": {"scale": 1, "scale_range": [1, 2], "top": 3}},
            "rewards": {"smile": {"weight": 0.5}},
            "routes": {"keep": {}},
            "metrics": {"count": {}},
            "train": {"optimizer": {"lr": 3e-5}, "reward_batch": 2},
            "seed": 7,
        },
    )

    assert run_from_dict(json.loads(json.dumps(run.to_dict())), registry) == run


def test_run_json_contains_the_version(registry):
    """run.json names the version, and is read as a --config file."""
    described = of(registry).to_dict()

    assert described["guidedcd"]
    assert resolve([Layer.of_file(described, "run.json")], registry) == of(registry)


def test_a_run_json_of_an_older_version_is_read(registry):
    """The key was `energy` before it was spelled like flag and attribute."""
    run = of(registry, {"energies": {"shake": {"top": 3}}})
    described = run.to_dict()
    older = {"energy" if key == "energies" else key: value for key, value in described.items()}

    assert described["energies"]["shake"]["top"] == 3
    assert run_from_dict(older, registry) == run


def test_a_component_mentioned_in_a_file_is_selected(registry):
    """A table of a component selects it, and replaces what was selected below."""
    assert list(of(registry, {"energy": {"shake": {"top": 2}}}).energies) == ["shake"]
    assert list(of(registry, {"energy": "shake"}, {"energy": {"rattle": {}}}).energies) == ["rattle"]
    assert of(registry, {"energy": "shake"}, {"energy": {}}).energies == {}


def test_options_in_a_profile_wait_for_selection(registry):
    """A profile's table gives defaults to a component, and its select table chooses."""
    profile = Layer.of_file(
        {
            "select": {"teacher": "toy", "data": ["toy"], "rewards": ["smile"]},
            "energy": {"shake": {"top": 5}, "none-such": {}},
        },
        "profile",
        profile=True,
    )

    plain = resolve([profile], registry)
    shaken = resolve([profile, Layer.of_file({"energy": "shake"}, "file")], registry)

    assert plain.energies == {}
    assert list(plain.rewards) == ["smile"]
    assert shaken.energies["shake"].top == 5


def flags(name: str | None, *components: str) -> Layer:
    """The layer of flags that select `name`, if any, and set an option of each of `components`."""
    select = {} if name is None else {"rewards": split_names([name], "--rewards")}
    options = [(one, {"weight": Value("2", f"--rewards.{one}.weight")}) for one in components]
    return Layer(select=select, options={"rewards": options})


def test_flags_replace_a_selection_and_their_options_change_it(registry):
    """Naming components replaces what was selected below; an option alone changes a component that is selected."""
    below = Layer.of_file(BASE | {"rewards": {"clip": {"frames": 3}}}, "file")

    changed_ = resolve([below, flags(None, "clip")], registry)
    named = resolve([below, flags("smile")], registry)
    none = resolve([below, flags("none")], registry)

    assert (changed_.rewards["clip"].weight, changed_.rewards["clip"].frames) == (2, 3)
    assert list(named.rewards) == ["smile"]
    assert none.rewards == {}


@pytest.mark.parametrize("selected", ["clip", "none", None])
def test_an_option_of_an_unselected_component_is_an_error(registry, selected):
    """A flag of a component that the run does not select is refused; the error states how it is selected."""
    both = {"clip": "clip,smile", "none": "smile", None: "smile"}[selected]
    with (
        on_command_line(),
        pytest.raises(GuidedCDError, match=rf"--rewards.smile.weight is an option of .*--rewards {both},"),
    ):
        resolve(
            [Layer.of_file(BASE, "file"), flags(selected, *(["clip"] if selected == "clip" else []), "smile")], registry
        )


def test_a_file_that_selects_a_component_is_shared_by_runs_that_deselect_it(registry):
    """Options wait where the file or a profile has them; a file that itself leaves the component out is refused."""
    shared = Layer.of_file(BASE | {"rewards": {"clip": {"weight": 2}, "smile": {"weight": 3}}}, "file")
    wrong = BASE | {"select": {"rewards": ["clip"]}, "rewards": {"smile": {"weight": 3}}}

    assert {name: one.weight for name, one in resolve([shared, flags("smile")], registry).rewards.items()} == {
        "smile": 3
    }
    assert list(resolve([Layer.of_file(wrong, "profile", profile=True)], registry).rewards) == ["clip"]
    assert resolve([Layer.of_file(wrong, "file"), flags("smile")], registry).rewards["smile"].weight == 3
    with pytest.raises(GuidedCDError, match="rewards.smile.weight in file is an option of reward 'smile'"):
        resolve([Layer.of_file(wrong, "file")], registry)


def test_a_program_selects_what_it_gives_options(registry):
    """In Python, options are given with the component, so that they never lack it."""
    run = Run.from_profile(teacher="toy", data="toy", rewards=["clip", {"smile": {"weight": 2}}])

    assert (list(run.rewards), run.rewards["smile"].weight) == (["clip", "smile"], 2)


def test_a_scale_replaces_a_relative_scale_below(registry):
    """An absolute scale replaces the profile's relative strength; one source may set only one of the two."""
    relative = {"energy": {"shake": {"relative": 0.3}}}

    assert of(registry, relative, {"energy": {"shake": {"scale": 9}}}).energies["shake"].relative is None
    assert of(registry, {"energy": {"shake": {"scale": 9}}}, relative).energies["shake"].relative == 0.3
    with pytest.raises(GuidedCDError, match=r"shake.scale in file1 and energy.shake.relative in file1 are both stated"):
        of(registry, {"energy": {"shake": {"scale": 9, "relative": 0.2}}})
    both = {"teacher": "toy", "data": "toy", "energies": {"shake": {"scale": 9, "relative": 0.2}}}
    recorded = run_from_dict(both, registry).energies["shake"]
    assert (recorded.scale, recorded.relative) == (9, 0.2)


def test_a_range_of_strengths_has_a_unit(registry):
    """A `scale_range` needs a `scale` or a `relative`, because the default `relative` would change its meaning."""
    with pytest.raises(GuidedCDError, match="energy 'shake' has a scale_range, but neither scale nor relative"):
        of(registry, {"energy": {"shake": {"scale_range": [100, 1000]}}})

    for unit in ("scale", "relative"):
        config = of(registry, {"energy": {"shake": {"scale_range": [1, 2], unit: 1}}}).energies["shake"]
        assert config.scale_range == (1, 2) and config.is_relative == (unit == "relative")


def test_an_energy_that_states_no_strength_is_relative(registry):
    """Without `scale` and `relative`, a run records the default relative strength; `pta` states its published scale."""
    silent = of(registry, {"energy": {"shake": {}}}).energies["shake"]
    stated = of(registry, {"energy": {"shake": {"scale": 9}}}).energies["shake"]
    pta = of(registry, {"energy": {"pta": {}}}).energies["pta"]

    assert (silent.scale, silent.relative, silent.is_relative) == (None, DEFAULT_RELATIVE, True)
    assert (stated.strength, stated.is_relative) == (9, False)
    assert (pta.strength, pta.is_relative) == (500, False)
    assert EnergyConfig().strength == DEFAULT_RELATIVE


def test_value_after_a_colon_fills_the_positional_field(registry):
    """NAME:VALUE is short for one option; a colon in the value is kept."""
    run = of(registry, {"teacher": "toy:weights.ckpt", "data": ["toy:s3://bucket/a,b", "toy:c"]})

    assert str(run.teacher.config.path) == "weights.ckpt"
    assert [chosen.config.path for chosen in run.data] == ["s3://bucket/a,b", "c"]


def test_a_value_is_part_of_the_name_if_the_option_states_so(registry):
    """`wrap:x` keeps its value in the run, in whatever form it is selected; `sized:x` is called `sized`."""
    forms = ["wrap:x", ["wrap:x"], {"wrap:x": {}}, {"wrap": {"of": "x"}}]
    runs = [of(registry, {"rewards": form}) for form in forms]

    assert all(run == runs[0] for run in runs)
    assert list(runs[0].rewards) == ["wrap:x"]
    assert run_from_dict(json.loads(json.dumps(runs[0].to_dict())), registry) == runs[0]
    assert str(runs[0].component("reward", "wrap:x", registry)).startswith("reward 'wrap:x' of ")
    assert list(of(registry, {"rewards": "sized:x"}).rewards) == ["sized"]
    with pytest.raises(GuidedCDError, match="reward 'wrap' needs its of: write wrap:VALUE."):
        of(registry, {"rewards": "wrap"})


def test_two_values_of_a_component_have_own_options(registry):
    """Each has a name and options of its own, beside those of both; the same value twice is refused."""
    options = {"wrap": {"weight": 3, "frames": 5}, "wrap:y": {"weight": 4}}
    profile = Layer.of_file({"rewards": options}, "profile", profile=True)
    run = resolve([profile, Layer.of_file(BASE | {"rewards": "wrap:x,wrap:y,sized:a.pt,sized:b.pt"}, "file")], registry)

    assert list(run.rewards) == ["wrap:x", "wrap:y", "sized:a.pt", "sized:b.pt"]
    assert [(one.weight, one.frames) for one in run.rewards.values()] == [(3, 5), (4, 5), (1, 2), (1, 2)]
    assert run.rewards["sized:b.pt"].path == "b.pt"
    assert run_from_dict(json.loads(json.dumps(run.to_dict())), registry) == run
    with pytest.raises(GuidedCDError, match="reward 'wrap:x' is named twice"):
        of(registry, {"rewards": "wrap:x,wrap:x"})


def test_names_are_split_where_a_name_can_begin():
    """Commas separate names, but may occur in values."""
    names = [(name, value) for name, value, _ in split_names(["pta, jerk", "reward:hps,x:/a,b/c,y"], "flag")]

    assert names == [("pta", None), ("jerk", None), ("reward", "hps"), ("x", "/a,b/c"), ("y", None)]


def test_an_alias_is_the_same_word(registry):
    """Singular and plural are one."""
    assert of(registry, {"reward": "smile", "energies": "shake", "route": "keep"}) == of(
        registry, {"rewards": "smile", "energy": "shake", "routes": "keep"}
    )


def test_a_group_of_options_is_merged_option_by_option(registry):
    """A file that sets one option of a group leaves the others as the layers below set them."""
    run = of(registry, {"train": {"optimizer": {"lr": 1.0, "max_grad_norm": 2}}}, {"train": {"optimizer": {"lr": 3}}})

    assert (run.train.optimizer.lr, run.train.optimizer.max_grad_norm) == (3.0, 2.0)


def test_a_loaded_teacher_has_its_profiles_guidance():
    """The guidance strength of a loaded teacher is that of the profile which selects it, or the default."""
    assert evaluation_of("shapes").omega == Run.from_profile("shapes").evaluate.omega == 2.0
    assert evaluation_of("videocrafter2").omega == 7.5
    assert evaluation_of("another") == EvaluateConfig()


def test_commands_sample_a_teacher_with_its_profiles_options(registry):
    """Without --profile, the defaults of sampling are those of the profile of the chosen teacher."""
    for teacher, omega in (("shapes", 2.0), ("shapes-dit", 2.0), ("videocrafter2", 7.5), ("toy", 7.5)):
        assert select([Layer.of_file({"teacher": teacher}, "flags")], registry).evaluate.omega == omega


def test_changed_keeps_what_it_does_not_name(registry):
    """`changed` takes options as a program does, groups of options included, and does not change the original."""
    run = of(registry)
    other = changed(run, train={"steps": 5, "optimizer": {"lr": 1.0}})

    assert (other.train.steps, other.train.optimizer.lr) == (5, 1.0)
    assert (other.train.optimizer.max_grad_norm, run.train.optimizer.lr) == (1.0, 1e-5)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_answered_with_the_new_one(registry, old):
    """Every option that was renamed is refused in files, in Python and as a flag, and the new name exists."""
    section, _, name = old.partition(".")
    with pytest.raises(GuidedCDError, match=f"{old} in file1 is now {MOVED[old]}"):
        of(registry, {section: {name: 1}})
    with pytest.raises(GuidedCDError, match=f"{old} in Run.from_profile is now {MOVED[old]}"):
        Run.from_profile("shapes", **{section: {name: 1}})
    new = MOVED[old].replace("_", "-")
    for word in (f"--{old.replace('_', '-')}", f"--{old}=1"):
        with on_command_line(), pytest.raises(GuidedCDError, match=f"^{word.partition('=')[0]} is now --{new}"):
            check_flags(["train", word, "1"])

    described = Run.from_profile("shapes").to_dict()
    for key in MOVED[old].split("."):
        described = described[key]


def test_an_old_switch_is_answered_with_its_value(registry):
    """`gradient_checkpointing` was true or false and is now one of several values, which the sentence contains."""
    with pytest.raises(GuidedCDError, match='layers = "all"'):
        of(registry, {"train": {"gradient_checkpointing": True}})
    with pytest.raises(GuidedCDError, match='layers = "none"'):
        of(registry, {"train": {"gradient_checkpointing": False}})
    with on_command_line():
        with pytest.raises(GuidedCDError, match="is now --train.activation-checkpoint.layers all.$"):
            check_flags(["--train.gradient-checkpointing"])
        with pytest.raises(GuidedCDError, match="is now --train.activation-checkpoint.layers none.$"):
            check_flags(["--train.no-gradient-checkpointing"])


def test_strengths_are_one_number_or_several_by_name():
    """`scale` is read from a flag's text and from a table alike."""
    assert options_of(SampleConfig, {"scale": "0.3"}, "sampling") == {"scale": 0.3}
    for scale in ("pta=0.3,calm=0", {"pta": 0.3, "calm": 0}):
        assert options_of(SampleConfig, {"scale": scale}, "sampling") == {"scale": {"pta": 0.3, "calm": 0.0}}
    for scale, message in (
        ("x", "numbers by name such as pta=0.3"),
        ("pta=x", "`scale` pta is 'x'; it must be a number"),
    ):
        with pytest.raises(GuidedCDError, match=f"^`scale`.*{message}|^{message}"):
            options_of(SampleConfig, {"scale": scale}, "sampling", mark="--")


def test_an_evaluation_has_a_count_of_prompts_or_a_file_and_a_count_of_seeds_or_seeds():
    """A number is a count; other texts are a file of prompts, or the seeds themselves."""
    options = options_of(EvaluateConfig, {"prompts": "@a.txt", "seeds": "5,7"}, "an evaluation")
    assert options == {"prompts": Path("a.txt"), "seeds": (5, 7)}
    assert EvaluateConfig(**options).each_seed == (5, 7)
    assert EvaluateConfig(**options_of(EvaluateConfig, {"seeds": "3"}, "an evaluation")).each_seed == (0, 1, 2)
    assert options_of(EvaluateConfig, {"prompts": "3"}, "an evaluation") == {"prompts": 3}


WRONG = {
    "unknown-key": ({"trian": {}}, "file1: unknown key 'trian'. Did you mean 'train'"),
    "unknown-option": ({"train": {"stepz": 1}}, "train.stepz in file1: .*Did you mean 'steps'"),
    "unknown-component": ({"energy": {"shakee": {}}}, "no energy named 'shakee'. Did you mean 'shake'"),
    "option-of-component": ({"energy": {"shake": {"topp": 1}}}, "energy.shake.topp in file1: .*Did you mean 'top'"),
    "out-of-range": (
        {"energy": {"shake": {"fraction": 1.5}}},
        "energy.shake.fraction in file1 is 1.5; it must be from 0 to 1",
    ),
    "not-a-choice": ({"student": {"kind": "big"}}, "student.kind in file1 is 'big'; it must be one of full, lora"),
    "not-a-number": (
        {"train": {"optimizer": {"lr": "fast"}}},
        "train.optimizer.lr in file1 is 'fast'; it must be a number",
    ),
    "not-finite": (
        {"train": {"optimizer": {"lr": float("nan")}}},
        "train.optimizer.lr in file1 is nan; it must be a finite number",
    ),
    "not-whole": ({"train": {"steps": 1.5}}, "train.steps in file1 is 1.5; it must be a whole number"),
    "a-boolean-is-no-number": ({"train": {"steps": True}}, "train.steps in file1 is True; it must be a whole number"),
    "not-a-boolean": ({"train": {"activation_checkpoint": {"decoder": 3}}}, "is 3; it must be true or false"),
    "not-text": ({"name": 3}, "name in file1 is 3; it must be text"),
    "too-many": ({"solver": {"omega": [1, 2, 3]}}, r"solver.omega in file1 has 3 values, \[1, 2, 3\]; it must have 2"),
    "descending": ({"solver": {"omega": [5, 1]}}, "it must be two numbers of at least 0, the lower one first"),
    "not-a-table": ({"train": 3}, "train in file1 is 3; it must be a table"),
    "group-is-no-table": ({"train": {"checkpoint": 3}}, "train.checkpoint in file1 is 3; it must be a table"),
    "option-of-group": (
        {"train": {"optimizer": {"lrr": 1}}},
        r"train.optimizer.lrr in file1: \[train.optimizer\] has no option 'lrr'. Did you mean 'lr'",
    ),
    "group-out-of-range": (
        {"train": {"optimizer": {"lr": -1}}},
        "train.optimizer.lr in file1 is -1.0; it must be more than 0",
    ),
    "of-a-plugin": ({"energy": {"shake": {"top": 13}}}, "energy 'shake': an unlucky number"),
    "negative-seed": ({"seed": -1}, "seed in file1 is -1; it must be a whole number from 0 to 2.63 - 1"),
    "name-with-a-slash": ({"name": "../x"}, "name in file1 is '../x'; it names a folder"),
    "device": ({"device": "gpu"}, "device in file1 is 'gpu'; it must be auto, cpu, cuda"),
    "no-value-taken": ({"routes": ["keep:x"]}, "route 'keep' takes no value after ':'"),
    "twice": ({"energy": ["shake", "shake"]}, "energy 'shake' is named twice"),
    "window": ({"energy": {"shake": {"fraction": 0.9}}}, "Set `preprocess.fraction=0.9`"),
    "two-teachers": ({"teacher": {"toy": {}, "shapes": {}}}, "teacher"),
    "select": ({"select": {"engines": []}}, "no kind 'engines' to select"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_errors_name_file_key_and_value(registry, content, message):
    """The message names file and key, the value and what is accepted."""
    with pytest.raises(GuidedCDError, match=message):
        of(registry, content)


@pytest.mark.parametrize("name", sorted(profiles()))
def test_a_profile_names_only_what_exists(name):
    """Every shipped profile is valid: its components are installed and take its options."""
    registry = load_plugins()
    layer = read_profile(name)
    unselected = {key for key in ("teacher", "data") if not layer.select.get(key)}
    more = Layer.of_file({key: "shapes" for key in unselected}, "file")
    mentioned = Layer.of_file(
        {"select": {key: [n for n, _ in options] for key, options in layer.options.items()}}, "file"
    )

    run = resolve([layer, more, mentioned], registry)

    assert run_from_dict(run.to_dict(), registry) == run


def test_the_papers_profile_has_the_papers_numbers(registry):
    """The profile of the paper has lambda 500 on the mean energy, tau 0.5, 0.2/0.2/0.5 and 200 solver steps."""
    run = resolve([read_profile("t2v-turbo-v2"), Layer.of_file({"data": ["toy"]}, "f")], registry)

    assert (run.energies["pta"].scale, run.energies["pta"].relative, run.energies["pta"].fraction) == (500, None, 0.5)
    assert [run.rewards[name].weight for name in ("hps", "clip", "internv2")] == [0.2, 0.2, 0.5]
    assert [run.rewards[name].frames for name in ("hps", "clip", "internv2")] == [2, 2, 4]
    assert (run.solver.steps, run.solver.omega, run.train.steps, run.train.optimizer.lr) == (200, (5, 15), 8000, 1e-5)


def test_an_unknown_profile_is_corrected():
    """A misspelt profile gets a suggestion."""
    with pytest.raises(GuidedCDError, match="no profile named 'shape'. Did you mean 'shapes'"):
        read_profile("shape")


def test_a_malformed_file_is_reported_with_its_line(tmp_path):
    """The message names file, line and column."""
    toml, json_ = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text("seed = 1\n[train\nlr = 1\n")
    json_.write_text('{"seed": 1,\n"train" 2}')

    with pytest.raises(GuidedCDError, match=r"a\.toml is .*: .*line 2"):
        read_config(toml)
    with pytest.raises(GuidedCDError, match=r"a\.json is .*: .*line 2"):
        read_config(json_)
    with pytest.raises(GuidedCDError, match="is missing"):
        read_config(tmp_path / "b.toml")


def test_a_run_folder_can_be_the_config(tmp_path, registry):
    """--config accepts the folder of a run, and repeats it exactly."""
    run = of(registry, {"seed": 3, "rewards": {"smile": {"weight": 0}}})
    (tmp_path / "run.json").write_text(json.dumps(run.to_dict()))

    assert resolve([read_profile("shapes"), read_config(tmp_path)], registry) == run


def test_a_chosen_component_builds_an_object_with_its_options(registry):
    """From a run to an object in one call; options arrive."""
    run = of(registry, {"energy": {"shake": {"top": 4}}})

    assert run.teacher.kind == "teacher"
    assert run.build("energy", registry)["shake"].config.top == 4
    assert [chosen.build(registry).config.path for chosen in run.chosen("dataset")] == ["here"]
    assert isinstance(run.data[0], Chosen)
