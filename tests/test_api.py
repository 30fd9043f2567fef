"""The Python API: its names, its lazy imports, and components given as objects."""

from __future__ import annotations

import ast
import json
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import guidedcd
from guidedcd.config.resolve import run_from_dict
from guidedcd.errors import on_command_line, with_option_names
from guidedcd.training.run_folder import run_folder

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "reference" / "python-api.md"

SMALL = {
    "train": {"steps": 2, "batch_size": 2, "checkpoint": {"every": 1}},
    "preprocess": {"videos": 2, "draws_per_video": 1},
    "evaluate": {"prompts": 2, "videos": 0, "steps": 2},
}


def pull(seen, reference):
    """Squared distance to the reference's prediction, (B,)."""
    return ((seen.x0 - reference.x0) ** 2).mean(dim=(1, 2, 3, 4))


def push(seen, reference):
    """The opposite of `pull`, (B,)."""
    return -((seen.x0 - reference.x0) ** 2).mean(dim=(1, 2, 3, 4))


def test_every_public_name_is_importable_and_documented():
    """`__all__`, the table of modules and the reference page list the same names."""
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert sorted(listed) == sorted(guidedcd.__all__)
    assert all(getattr(guidedcd, name) is not None for name in guidedcd.__all__)
    assert set(guidedcd.__all__) <= set(dir(guidedcd))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        guidedcd.nothing  # noqa: B018


def test_type_checkers_read_the_same_names():
    """The imports for type checkers have the names and modules of the table that is used at run time."""
    tree = ast.parse(Path(guidedcd.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {name: place.partition(":")[::2] for name, place in guidedcd._PLACES.items()}

    assert imported == {name: (module, attribute or name) for name, (module, attribute) in table.items()}


def test_describing_a_run_imports_no_torch():
    """The package, a run from a profile and the base classes of plugins work without torch."""
    script = (
        "import sys, guidedcd; guidedcd.Run.from_profile('shapes', seed=1); guidedcd.EnergyConfig; guidedcd.Sample;"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


WITH_FIELDS = [name for name in guidedcd.__all__ if attrs.has(getattr(guidedcd, name))]


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_help_lists_the_fields_of_every_public_class(name):
    """`help(guidedcd.NAME)` has each field with its docstring, so that nobody needs to read the source."""
    cls = getattr(guidedcd, name)
    page = pydoc.plain(pydoc.render_doc(cls))

    for field in attrs.fields(cls):
        assert re.search(rf"^ \|      {field.name}: \S+", page, flags=re.MULTILINE), f"no docstring of {field.name}"


def test_a_run_is_described_in_python_as_in_a_file():
    """Names, lists, options and nested settings give the same run as a table of a file would."""
    run = guidedcd.Run.from_profile(
        "shapes", energies={"pta": {"relative": 1.6}}, rewards=["hps", "clip"], train={"steps": 7}, seed=3, name="mine"
    )

    assert run.energies["pta"].relative == 1.6
    assert list(run.rewards) == ["hps", "clip"]
    assert (run.train.steps, run.seed, run.name, run.profile) == (7, 3, "mine", "shapes")
    assert run_from_dict(json.loads(json.dumps(run.to_dict()))) == run
    assert not guidedcd.Run.from_profile("shapes", energies=[], rewards="none").energies


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energie": ["pta"]}, "unknown key 'energie'.*energ"),
        ({"energies": {"pta": {"relativ": 1}}}, "energies.pta.relativ in Run.from_profile.*relative"),
        ({"train": {"steps": 0}}, "train.steps in Run.from_profile"),
        ({"energies": {"pta": pull}}, "an installed energy is called 'pta' already"),
        ({"energies": {"mine": 3}}, "energy 'mine' must be a name, a table of options, or callable"),
        ({"energies": 3}, "energy: expected a name, an object, a list of these, or a table"),
    ],
)
def test_mistakes_in_a_description_are_one_sentence(options, message):
    """The message names the option and where it was written."""
    with pytest.raises(guidedcd.GuidedCDError, match=message):
        guidedcd.Run.from_profile("shapes", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energies": {"pta": {"fraction": 0.9}}}, "Set `preprocess.fraction=0.9` or lower it."),
        ({"train": {"batch_siz": 2}}, "Did you mean 'batch_size'? Known: steps, batch_size, accumulate"),
        ({"energies": {"mine": (pull, {"relativ": 1})}}, "Known: scale, relative, scale_range, fraction, reference."),
        ({"trane": {}}, "energies, rewards, routes, metrics."),
    ],
)
def test_messages_spell_options_as_python_does(options, message):
    """No flag, no "-" in a name, and no key that the engine alone uses."""
    with pytest.raises(guidedcd.GuidedCDError, match=re.escape(message)):
        guidedcd.Run.from_profile("shapes", **options)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Use --student.kind lora.", 'Use `student.kind="lora"`.'),
        ("It needs less with --train.batch-size 2 --train.fast no", 'less with `train.batch_size=2` `train.fast="no"`'),
        ("Raise --energies.my-own.scale-range or --out.", "Raise `energies.my-own.scale_range` or `out`."),
        ("Use --plugin mine.py.", "Use `GUIDEDCD_PLUGINS=mine.py`."),
        ("--fast must be one of a, b (got '--c-d')", "`fast` must be one of a, b (got '--c-d')"),
        (
            "`guidedcd train --out x` finishes it; --new starts another",
            "`guidedcd train --out x` finishes it; `new=True` starts another",
        ),
        ("Type python -m guidedcd_shapes.recipe --out X", "Type python -m guidedcd_shapes.recipe --out X"),
    ],
)
def test_flags_in_messages_become_names(written, read):
    """Commands and values stay as they are; on the command line, flags do too."""
    assert with_option_names(written).endswith(read)
    with on_command_line():
        assert str(guidedcd.GuidedCDError(written)) == written


def test_a_missing_student_or_teacher_is_reported_before_torch_is_imported(tmp_path):
    """A misspelt path or name costs no import of torch."""
    script = (
        "import sys, guidedcd\n"
        "for load, name in ((guidedcd.load_student, sys.argv[1]), (guidedcd.load_teacher, 'shape')):\n"
        "    try: load(name)\n"
        "    except guidedcd.GuidedCDError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "nothing"], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "no folder of a run and no file" in done.stdout and "Did you mean 'shapes'?" in done.stdout


def test_an_energy_may_be_a_function_with_the_engines_options():
    """It is built as it is, and the run records its name and source."""
    run = guidedcd.Run.from_profile("shapes", energies={"mine": (pull, {"relative": 0.1, "reference": "clean"})})
    recorded = run.to_dict()["energies"]["mine"]

    assert recorded["relative"] == 0.1
    assert recorded["python_object"].endswith("test_api.pull")
    assert "def pull" in recorded["source"]
    assert run.build("energy")["mine"].needs == ()
    assert run_from_dict(run.to_dict()) == run


def test_an_attribute_gives_an_object_its_options():
    """An object with an attribute `config` needs no further table."""

    class Mine:
        needs = ("temporal-attention:official",)
        config = guidedcd.EnergyConfig(relative=0.2)

        def __call__(self, seen, reference):
            return pull(seen, reference)

    energy = Mine()
    run = guidedcd.Run.from_profile("shapes", energies={"mine": energy})

    assert run.energies["mine"].relative == 0.2
    assert run.build("energy")["mine"] is energy


def test_a_value_that_a_function_captured_is_part_of_its_source():
    """Two functions of the same text with other captured numbers are different runs."""

    def weighted(weight):
        return lambda seen, reference: weight * pull(seen, reference)

    one, other = (guidedcd.Run.from_profile("shapes", energies={"mine": weighted(weight)}) for weight in (1.0, 2.0))

    assert one != other


def test_a_changed_function_does_not_continue_a_run(tmp_path):
    """The sentence names the energy, its function, and what to do."""
    runs = [guidedcd.Run.from_profile("shapes", energies={"mine": energy}) for energy in (pull, push)]
    (tmp_path / "run.json").write_text(json.dumps(runs[0].to_dict()))

    assert run_folder(runs[0], tmp_path, new=False) == tmp_path
    with pytest.raises(guidedcd.GuidedCDError, match=r"energy 'mine' \(.*push\) has changed since this run began"):
        run_folder(runs[1], tmp_path, new=False)


def test_a_run_read_without_its_function_refuses_to_build_it(tmp_path):
    """Another process reads the run.json, and learns from one sentence where the function comes from."""
    run = guidedcd.Run.from_profile("shapes", energies={"mine": pull})
    (tmp_path / "run.json").write_text(json.dumps(run.to_dict()))
    script = (
        "import json, sys; from guidedcd.config.resolve import run_from_dict; from guidedcd import GuidedCDError\n"
        "run = run_from_dict(json.load(open(sys.argv[1])))\n"
        "try: run.build('energy')\nexcept GuidedCDError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "run.json"], capture_output=True, text=True)

    assert re.search(r"energy 'mine' is the Python object .*pull.* start from the program", done.stdout), done.stderr


def test_an_unguided_teacher_samples_as_the_evaluation_does():
    """`load_teacher(...).sample` gives the frames of the engine's own sampler, bit for bit."""
    import torch

    from guidedcd.inference.pipeline import teacher_videos

    teacher = guidedcd.load_teacher("shapes", device="cpu")
    videos = teacher.sample(["a red circle", "a blue square"], steps=3, seeds=[4, 5], omega=2.0)

    prompts = ["a red circle", "a blue square"]
    assert torch.equal(videos, teacher_videos(teacher.teacher, prompts, [4, 5], steps=3, omega=2.0))


@pytest.mark.slow
def test_an_energy_steers_the_teacher_towards_the_reference():
    """With the distance to a reference as energy, the sampled latents come closer to the reference's."""
    teacher = guidedcd.load_teacher("shapes", device="cpu")
    reference = teacher.sample("a red circle moving left", steps=4, seeds=[9])
    plain = teacher.sample("a blue square", steps=6, seeds=[1])
    energies = {"pull": (pull, {"relative": 0.5, "fraction": 1.0, "reference": "clean"})}
    guided = teacher.sample("a blue square", energies=energies, reference=reference, steps=6, seeds=[1])
    encode = teacher.teacher.encode

    assert guided.shape == reference.shape
    assert (encode(guided) - encode(reference)).norm() < (encode(plain) - encode(reference)).norm()
    with pytest.raises(guidedcd.GuidedCDError, match="needs a reference"):
        teacher.sample("a blue square", energies="pta")


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "examples").glob("*.py")))
def test_an_example_runs(script, tmp_path):
    """Each script of `examples/` runs to its end with --quick, in an empty folder."""
    file: Path = REPOSITORY / "examples" / script
    done = subprocess.run([sys.executable, file, "--quick"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr[-3000:]
