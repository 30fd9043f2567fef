"""What must not wait for torch: help, versions, lists, and every plugin's offer."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "diffusers", "transformers", "open_clip", "numpy"]


def run(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["plugins", "list"], ["train", "--help"], ["trian"]], ids=str
)
def test_a_command_that_computes_nothing_imports_nothing_heavy(argv):
    """Help, version, lists and mistakes come without torch."""
    code = f"""
import sys
from guidedcd.cli import main
try:
    main({argv!r})
except SystemExit:
    pass
print("loaded:", *[m for m in {HEAVY!r} if m in sys.modules])
"""
    assert run(code).strip().splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    "module",
    [
        "guidedcd",
        "guidedcd.config.run",
        "guidedcd.config.resolve",
        "guidedcd.testing",
        "guidedcd.testing.pytest_plugin",
        "guidedcd.files",
    ],
)
def test_the_light_layer_imports_nothing_heavy(module):
    """Everything that plugins and the command line import at start is light."""
    assert run(f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])").strip() == ""


def test_importing_seen_imports_torch():
    """`from guidedcd import Seen` works, and is what brings torch."""
    assert run("import sys; from guidedcd import Seen; print(Seen.__name__, 'torch' in sys.modules)").split() == [
        "Seen",
        "True",
    ]


def test_help_loads_few_modules():
    """`guidedcd --help` loads about 330 modules, so that it is quick; time itself depends on the machine."""
    code = """
import sys
from guidedcd.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print(len(sys.modules))
"""
    assert int(run(code).splitlines()[-1]) < 500
