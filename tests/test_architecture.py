"""The rooms of guidedcd, and which of them may import which."""

import ast
import graphlib
import statistics
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "guidedcd"
# From the top: a room imports only rooms of a later line, never one beside it.
FLOORS = (
    "cli parity",
    "testing",  # `guidedcd plugins doctor` runs its checks
    "proving",
    "workflow trials",
    "evaluation planning",
    "training",
    "inference preprocessing",
    "energies rewards",
    "models",
    "data",
    "config",
    "environments",
    "plugins diffusion acceleration",
    "files console devices",
    "documents docstrings locks",
    "errors",
)
LIGHT = {
    "errors",
    "devices",
    "documents",
    "docstrings",
    "locks",
    "files",
    "console",
    "plugins",
    "config",
    "cli",
}
SLOW = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "open_clip"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
TREES = {path.relative_to(ENGINE): ast.parse(path.read_text()) for path in sorted(ENGINE.rglob("*.py"))}


def name_of(path: Path) -> str:
    """The dotted name of a module of the engine, below `guidedcd`; the package itself is `""`."""
    names = path.with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {name_of(path): path for path in TREES}


def room(module: str) -> str:
    """The room of a module: the first name of its path."""
    return module.split(".")[0]


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Absolute names that a module imports; without `everywhere` only those that run on import."""
    names: set[str] = set()
    nodes = [TREES[path]]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if everywhere or not (typing_only or lazy):
            nodes += ast.iter_child_nodes(node)
        elif typing_only:
            nodes += node.orelse
    return names


def arrows() -> set[tuple[str, str]]:
    """Pairs of engine modules, importer first. A package counts only where one of its own names is imported."""
    pairs = set()
    for importer, path in MODULES.items():
        names = {name.removeprefix("guidedcd.") for name in imports(path) if name.startswith("guidedcd.")}
        targets = {name for name in names if name in MODULES}
        attributes = {name.rpartition(".")[0] for name in names if name not in MODULES}
        parents = {name.rpartition(".")[0] for name in targets}
        pairs |= {(importer, target) for target in targets - (parents - attributes) if target != importer}
    return pairs


def circle(pairs: set[tuple[str, str]]) -> list[str]:
    """The modules of one circle of imports, [] where there is none."""
    graph: dict[str, set[str]] = {}
    for importer, imported in pairs:
        graph.setdefault(importer, set()).add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_rooms_import_only_rooms_below():
    """Every import between rooms goes to a lower floor, and every room has its floor."""
    pairs = {(a, b) for a, b in arrows() if a not in ("", "__main__")}
    between = {(room(a), room(b)) for a, b in pairs if b and room(a) != room(b)}
    wrong = sorted(f"{a} -> {b}" for a, b in pairs if b and room(a) != room(b) and FLOOR[room(a)] >= FLOOR[room(b)])
    wrong += sorted(f"{a} -> the top package" for a, b in pairs if not b)
    print(f"{len(FLOOR)} rooms, {len(between)} arrows between rooms, {len(MODULES)} modules, {len(pairs)} arrows,")
    print(f"{len(wrong)} upward arrows, circle: {circle(pairs) or 'none'}")
    assert {room(module) for module in MODULES} - {"", "__main__"} == set(FLOOR)
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself():
    """No module imports itself through others, imports inside functions included."""
    assert not circle(arrows())


def test_the_rule_finds_a_circle():
    """`circle` finds a circle of three modules, and nothing where there is none."""
    assert set(circle({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")})) == {"a", "b", "c"}
    assert circle({("a", "b"), ("b", "c"), ("a", "c")}) == []


def test_few_modules_at_the_top():
    """At most ten modules lie in guidedcd/ itself."""
    assert len(list(ENGINE.glob("*.py"))) <= 10


def test_engine_imports_no_plugin():
    """Only the parity command imports packages `guidedcd_*`, and only inside functions."""
    wrong = []
    for path in TREES:
        names = imports(path, everywhere=path.parts[0] != "parity")
        wrong += [f"{path}: {name}" for name in names if name.startswith("guidedcd_")]
    assert not wrong


# Words that mean something else than the component of that name.
OTHER_MEANINGS = {
    ("config/kinds.py", "shapes"),  # the default profile
    ("inference/published.py", "pta"),  # what the strength input of T2V-Turbo-v2's published students is called
    ("data/prompts.py", "motion"),  # the prompts that name a motion
    ("trials/teacher.py", "motion"),  # the same
}


def test_engine_names_no_component():
    """No string of the engine is the name of a component that a shipped package registers."""
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["guidedcd"]
    packages = {"metrics", "videos", "unets", "routes", "adapters"}  # of several components, which have other names
    components = set(shipped) - packages
    wrong = []
    for path, tree in TREES.items():
        if path.parts[0] in ("parity", "testing"):
            continue
        for node in ast.walk(tree):
            named = isinstance(node, ast.Constant) and node.value in components
            if named and (path.as_posix(), node.value) not in OTHER_MEANINGS:
                wrong.append(f"{path}:{node.lineno}: {node.value!r}")
    assert not wrong, "\n".join(wrong)


def test_light_rooms_import_no_torch():
    """Importing a module of a light room, or the package itself, imports torch neither directly nor through others."""
    names = {module: imports(path, everywhere=False) for module, path in MODULES.items()}
    slow = {module for module in MODULES if {name.split(".")[0] for name in names[module]} & SLOW}
    ours = {module: {n.removeprefix("guidedcd.") for n in names[module]} & MODULES.keys() for module in MODULES}
    while through := {module for module in MODULES.keys() - slow if ours[module] & slow}:
        slow |= through
    assert len(slow) > 50
    assert not [module for module in slow if room(module) in LIGHT | {""}]


@pytest.mark.parametrize("package", sorted({p.parent for p in TREES if p.name == "__init__.py" and len(p.parts) == 2}))
def test_rooms_introduce_themselves(package):
    """A room's `__init__.py` has a docstring."""
    assert ast.get_docstring(TREES[package / "__init__.py"])


def test_modules_and_functions_are_short():
    """Modules have at most 350 lines, 130 in the median, and functions at most 80."""
    lines = {path: len((ENGINE / path).read_text().splitlines()) for path in TREES}
    middle = statistics.median(lines.values())
    functions = {
        f"{path}: {node.name}": node.end_lineno - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    too_long = {name for name, length in functions.items() if length > 80}
    longest = max(functions, key=functions.get)
    largest = max(lines, key=lines.get)
    print(f"largest module {largest} {lines[largest]}, median {middle}, longest {longest} {functions[longest]}")
    assert lines[largest] <= 350 and middle <= 130
    assert not too_long
