"""A process of another environment that dies, hangs or lies is one sentence, and is ended."""

from __future__ import annotations

import os
import re

import pytest
import torch
from lying_python import lying_python

from guidedcd.environments.function import ForeignFunction
from guidedcd.environments.process import Program
from guidedcd.errors import GuidedCDError

pytestmark = pytest.mark.slow

CALLS = {
    "killed": ("os.kill(os.getpid(), 9)", r"was ended by signal 9 \(SIGKILL\) while it ran other:score"),
    "segfault": ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "exit": (
        "sys.stderr.write('no licence'); sys.exit(3)",
        "ended with status 3 while .* the last that it printed is 'no licence'",
    ),
    "closed": ("os.close(1); time.sleep(0.1); os._exit(0)", "ended with status 0"),
    "hang": ("time.sleep(1000)", "gave no answer within 0.4 s, so its process was ended; raise the option timeout"),
    "half a line": ('os.write(1, b\'{"id": 2, "tens\'); os._exit(0)', "ended with status 0"),
    "text": ("print('loading weights...', flush=True)", "wrote .*loading weights.* instead of an answer"),
    "list": ("print('[1]', flush=True)", "instead of an answer"),
    "nested": ("print('[' * 100000, flush=True)", "instead of an answer"),
    "flood": ("os.write(1, b'x' * 2**24)", "wrote .*xxx.* instead of an answer"),
    "other answer": ("request['id'] += 1; tensors()", "instead of an answer"),
    "nothing": ("answer()", "instead of an answer"),
    "no tensors": ("answer(tensors=7)", "instead of an answer"),
    "too large": ("tensors(shape=(10**9, 10**3))", r"announced \d+ bytes of results, but the shared memory has \d+"),
    "huge": ("tensors(shape=(10**30,))", "instead of an answer"),
    "negative": ("tensors(shape=(-1,))", "instead of an answer"),
    "fraction": ("tensors(shape=(1.5,))", "instead of an answer"),
    "dtype": ("tensors(dtype='complex64')", "instead of an answer"),
    "part": ("tensors(checksum=put((1.0, 0.0)))", "wrote other results than it announced, perhaps a part of them"),
    "names": ("tensors(names=['a', 'b'])", "returned tensors without a name for each"),
    "names and text": ("tensors(names='a')", "returned tensors without a name for each"),
}
GRADIENTS = {
    "killed": ("os.kill(os.getpid(), 9)", "signal 9"),
    "hang": ("time.sleep(1000)", "no answer within 0.4 s"),
    "shape": ("tensors((3,), (1.0, 2.0, 3.0))", r"has a gradient of shape \[3\] for a tensor of shape \[2, 3\]"),
    "transposed": ("tensors((3, 2), [1.0] * 6)", r"gradient of shape \[3, 2\]"),
    "number of tensors": ("answer(tensors=[], checksum=zlib.crc32(b''))", r"gradient of shape \[\]"),
    "dtype": ("tensors((2, 3), [1.0] * 6, dtype='float16')", "gradient of type torch.float16"),
    "NaN": ("tensors((2, 3), [float('nan')] + [1.0] * 5)", "has a gradient that is not finite"),
    "part": ("tensors((2, 3), [1.0] * 6, checksum=1)", "wrote other results than it announced"),
    "not kept": ("answer(fault='function', text='forgot the call')", "forgot the call"),
}
LOADS = {
    "killed": ("os.kill(os.getpid(), 9)", "signal 9"),
    "hang": ("time.sleep(1000)", "no answer within 0.4 s.*raise the option start_timeout"),
    "no torch": ("answer(fault='environment', text='it has no torch')", "cannot serve: it has no torch"),
    "other protocol": ("answer(**{**LOAD, 'protocol': 7})", "instead of an answer"),
    "limit": ("answer(**{**LOAD, 'max_tokens': 'many'})", "instead of an answer"),
}


def foreign(python: str) -> ForeignFunction:
    """A function of a lying program."""
    program = Program(what="reward 'other'", python=python, function="other:score", timeout=0.4, start_timeout=0.4)
    return ForeignFunction(program)


def ended(pid: int) -> bool:
    """Whether there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def check(error: pytest.ExceptionInfo, message: str, python: str) -> None:
    """The error is one line that names the reward and the program, and matches `message`."""
    text = str(error.value)
    assert text.startswith("reward 'other': ") and python in text and text.endswith(".") and "\n" not in text
    assert len(text) < 600 and re.search(message, text), text


@pytest.mark.parametrize(("body", "message"), CALLS.values(), ids=CALLS)
def test_a_wrong_answer_is_one_sentence(tmp_path, body, message):
    """Whatever the process does in place of an answer, the error names it, and it is ended."""
    python = lying_python(tmp_path, call=body)
    function = foreign(python)
    pid = function.process()._process.pid

    with pytest.raises(GuidedCDError) as error:
        function(torch.ones(2, 3), ["a", "b"])

    check(error, message, python)
    assert ended(pid)


@pytest.mark.parametrize(("body", "message"), GRADIENTS.values(), ids=GRADIENTS)
def test_a_wrong_gradient_is_one_sentence(tmp_path, body, message):
    """The same holds for the gradient, in the backward pass."""
    python = lying_python(tmp_path, gradient=body)
    tensor = torch.ones(2, 3, requires_grad=True)
    result = foreign(python)(tensor, ["a", "b"])

    with pytest.raises(GuidedCDError) as error:
        torch.autograd.grad(result.sum(), tensor)

    check(error, message, python)


@pytest.mark.parametrize(("body", "message"), LOADS.values(), ids=LOADS)
def test_a_function_that_cannot_be_loaded_is_one_sentence(tmp_path, body, message):
    """The same holds for the start."""
    python = lying_python(tmp_path, load=body)

    with pytest.raises(GuidedCDError) as error:
        foreign(python).process()

    check(error, message, python)


@pytest.mark.parametrize("python", ["/bin/true", "/bin/cat", "/nowhere/python", "/etc"])
def test_a_program_that_is_no_python_is_one_sentence(python):
    """A program that is missing, or is something else, is named."""
    if python.startswith("/bin") and not os.path.exists(python):
        pytest.skip(f"there is no {python}")
    with pytest.raises(GuidedCDError) as error:
        foreign(python).process()
    check(error, "ended with status|cannot be started|instead of an answer", python)


def test_a_request_larger_than_the_pipe_times_out(tmp_path):
    """A request larger than the pipe does not block when the process no longer reads."""
    function = foreign(lying_python(tmp_path, call="time.sleep(1000)"))
    with pytest.raises(GuidedCDError, match="no answer within 0.4 s"):
        function(torch.ones(2, 3), ["word " * 100_000])


def test_the_next_call_starts_another_process(tmp_path):
    """After a failure the next call is answered by a new process; a gradient of the old one is refused."""
    function = foreign(lying_python(tmp_path, call="tensors() if request['texts'] else os._exit(1)"))
    tensor = torch.ones(2, 3, requires_grad=True)
    result, first = function(tensor, ["a"]), function.process()
    with pytest.raises(GuidedCDError, match="ended with status 1"):
        function(tensor, [])

    assert torch.equal(function(tensor, ["a"]), torch.tensor([1.0, 2.0]))
    assert function.process() is not first
    with pytest.raises(GuidedCDError, match="has no gradient any more: its process ended"):
        torch.autograd.grad(result.sum(), tensor)


def test_an_interruption_ends_the_process(tmp_path, monkeypatch):
    """After Ctrl-C the next call does not receive the answer to the interrupted one."""
    function = foreign(lying_python(tmp_path))
    process = function.process()

    def interrupt(deadline):
        raise KeyboardInterrupt

    monkeypatch.setattr(process._messages, "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        function(torch.ones(2, 3), ["a"])

    assert not process.is_alive
    assert torch.equal(function(torch.ones(2, 3), ["a"]), torch.tensor([1.0, 2.0]))


def test_windows_is_refused_in_one_sentence(tmp_path, monkeypatch):
    """On a system whose processes share no open files, the error states which do."""
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(GuidedCDError, match="reward 'other' needs Linux or macOS"):
        foreign(lying_python(tmp_path)).process()
