"""Virtual environments with every package of this one but guidedcd: folders of links, so that they cost no space."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def clean_environment(folder: Path, package_folders: Sequence[Path]) -> Path:
    """Make a virtual environment in `folder`, with links to all packages; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    command = [interpreter, "-I", "-c", query]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    for packages in package_folders:
        for entry in packages.iterdir():
            # A .pth file may lead to an editable guidedcd.
            if entry.suffix != ".pth" and "guidedcd" not in entry.name.lower() and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return interpreter
