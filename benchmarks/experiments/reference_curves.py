"""Write the reference curves of a profile from a finished run, over which reports lay the curves of other runs.

guidedcd train --energy pta --rewards hps,clip,internv2 --out runs/reference
python benchmarks/experiments/reference_curves.py runs/reference guidedcd/config/profiles/shapes.reference.jsonl
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from guidedcd.evaluation.report.health import reference
from guidedcd.evaluation.report.page import command
from guidedcd.evaluation.report.run_files import RunFiles
from guidedcd.files import replacing


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="the JSON Lines file")
    arguments = parser.parse_args()
    files = RunFiles.read(arguments.run)
    date = datetime.date.fromtimestamp((arguments.run / "log.jsonl").stat().st_mtime)
    lines = reference(files, {"command": command(files.folder, files.run), "date": date.isoformat()})
    with replacing(arguments.out) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
