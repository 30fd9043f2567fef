"""Programs that answer as the process of another environment does, without torch, and lie at one place."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

HEAD = """import json, os, signal, struct, sys, time, zlib
fd = int(sys.argv[3])  # of PROGRAM -I server.py FD SECONDS

def answer(**values):
    print(json.dumps({{"id": request["id"], **values}}), flush=True)

def put(numbers):
    data = struct.pack(f"{{len(numbers)}}f", *numbers)
    data += bytes(-len(data) % 64)
    if os.fstat(fd).st_size < len(data):
        os.ftruncate(fd, len(data))
    os.pwrite(fd, data, 0)
    return zlib.crc32(data)

def tensors(shape=(2,), numbers=(1.0, 2.0), dtype="float32", **changes):
    result = {{"tensors": [{{"shape": list(shape), "dtype": dtype}}], "checksum": put(numbers), "names": None}}
    answer(**{{**result, "differentiable": True, **changes}})

LOAD = dict(protocol=1, max_tokens=None, counts=False)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "load":
        {load}
    elif request["do"] == "call":
        {call}
    else:
        {gradient}
"""


def lying_python(
    folder: Path, *, call: str = "tensors()", gradient: str = "os._exit(9)", load: str = "answer(**LOAD)"
) -> str:
    """Write the program with these statements for each kind of request; its path."""
    path, script = folder / "python", folder / "answers.py"
    script.write_text(HEAD.format(load=load, call=call, gradient=gradient))
    # A shell starts Python: the path in a script's first line may neither be long nor have a space.
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I {shlex.quote(str(script))} "$@"\n')
    path.chmod(0o755)
    return str(path)
