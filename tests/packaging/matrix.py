"""The tests in an environment of their own, with the lowest or the newest versions that pyproject.toml admits.

    python tests/packaging/matrix.py --python python3.11 --versions lowest --slow

It creates the environment in build/, installs guidedcd with the extras of `EXTRAS`, runs the fast tests, and the slow
ones with `--slow`, and prints one table of the declared and the installed versions, with the results below it. Words
after `--` are passed to pytest. The exit code is that of the first tests that failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

REPOSITORY = Path(__file__).parents[2]
EXTRAS = ("dev", "flow")
"""The extras that the tests use; `dev` contains `docs`."""
WORKERS = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")
"""Processes of the tests, as in the Makefile; a later `-n` overrides them."""
FAST = "not slow and not gpu and not campaign"
SLOW = "slow and not gpu"


def main() -> int:
    """Create the environment, run the tests in it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment (default: this one)")
    parser.add_argument("--versions", choices=("lowest", "newest"), default="lowest")
    parser.add_argument("--slow", action="store_true", help="also run the slow tests")
    parser.add_argument("--install-only", action="store_true", help="run no tests")
    parser.add_argument("--pip", default="", metavar="OPTIONS", help="options of pip install, such as an index")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    options = parser.parse_args()
    requirements = declared(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"])
    python = environment(options.python, options.versions, requirements, options.pip.split())
    suites = {} if options.install_only else {"fast": FAST} | ({"slow": SLOW} if options.slow else {})
    results = {name: tested(python, marks, options.pytest) for name, marks in suites.items()}
    print()
    print(table(requirements, installed(python)))
    print(f"\n{version_of(python)}, {options.versions} versions, in {python.parents[1]}")
    for name, (_, line) in results.items():
        print(f"{name} tests: {line}")
    return next((code for code, _ in results.values() if code), 0)


def declared(project: Mapping) -> list[Requirement]:
    """The requirements of the package and of `EXTRAS`, sorted by name; of extras within extras, their requirements."""
    own, extras = canonicalize_name(project["name"]), project["optional-dependencies"]
    texts, pending = list(project["dependencies"]), list(EXTRAS)
    for extra in pending:  # it grows
        for text in extras[extra]:
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) == own:
                pending += [name for name in sorted(requirement.extras) if name not in pending]
            else:
                texts.append(text)
    return sorted(map(Requirement, dict.fromkeys(texts)), key=lambda requirement: requirement.name.lower())


def lowest(requirement: Requirement, available: Iterable[str], installs: Callable[[str], bool]) -> str:
    """The lowest of the available versions that a requirement admits and that `installs`.

    Raises:
        SystemExit: There is none.
    """
    versions = sorted({version for text in available if (version := parsed(text))})
    for version in requirement.specifier.filter(versions):
        if installs(str(version)):
            return str(version)
    newest = versions[-1] if versions else "none"
    sys.exit(f"no version of {requirement.name} with a wheel satisfies {requirement.specifier}; the newest is {newest}")


def parsed(text: str) -> Version | None:
    """A version, or None for a text such as "2013-12-31", which old releases have."""
    try:
        return Version(text)
    except InvalidVersion:
        return None


def environment(interpreter: str, versions: str, requirements: Sequence[Requirement], pip_options: list[str]) -> Path:
    """The Python of an environment with guidedcd and these versions; an earlier one with the same versions is kept."""
    folder = REPOSITORY / "build" / f"{versions}-{version_of(interpreter).replace(' ', '-').lower()}"
    python, constraints, complete = folder / "bin" / "python", folder / "constraints.txt", folder / "complete"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
    lines: list[str] = []
    if versions == "lowest":
        print(f"looking up the lowest versions of {len(requirements)} packages", flush=True)
        with ThreadPoolExecutor(4) as threads:
            lines = list(threads.map(partial(pinned, python), requirements))
    text = "".join(f"{line}\n" for line in lines)
    if complete.exists() and constraints.read_text() == text and versions == "lowest":
        return python
    if complete.exists():
        shutil.rmtree(folder)
        return environment(interpreter, versions, requirements, pip_options)
    constraints.write_text(text)
    target = f"{REPOSITORY}[{','.join(EXTRAS)}]"
    command = [python, "-m", "pip", "install", "--only-binary", ":all:", "-c", constraints, *pip_options, "-e", target]
    subprocess.run(command, check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    complete.touch()
    return python


def pinned(python: Path, requirement: Requirement) -> str:
    """The requirement at its lowest version of which this Python has a wheel, as a line of a constraints file.

    A wheel is required, because old source archives seldom build with present tools.
    """
    pip, name = [python, "-m", "pip", "--disable-pip-version-check"], requirement.name
    process = subprocess.run([*pip, "index", "versions", name], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"pip lists no versions of {name}: {process.stderr.strip()}")
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("Available versions:"))

    def installs(version: str) -> bool:
        command = [*pip, "install", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:"]
        return subprocess.run([*command, f"{name}=={version}"], capture_output=True).returncode == 0

    return f"{name}=={lowest(requirement, line.partition(':')[2].replace(',', ' ').split(), installs)}"


def installed(python: Path) -> dict[str, str]:
    """The versions of all distributions of an environment, by normalised name."""
    command = [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {canonicalize_name(one["name"]): one["version"] for one in listed}


def version_of(interpreter: str | Path) -> str:
    """The version of an interpreter, such as "Python 3.11.7"."""
    return subprocess.run([interpreter, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def tested(python: Path, marks: str, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code and the last line of the tests with these marks, whose output is also printed."""
    command = [python, "-m", "pytest", *WORKERS, "-q", "-m", marks, *arguments]
    print("+", *command, flush=True)
    last = ""
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last.strip("= ")


def table(requirements: Sequence[Requirement], versions: Mapping[str, str]) -> str:
    """One line per requirement: name, declared range, installed version."""
    rows = [("package", "declared", "installed")]
    rows += [(one.name, str(one.specifier), versions.get(canonicalize_name(one.name), "-")) for one in requirements]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
