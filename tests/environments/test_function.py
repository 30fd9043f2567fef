"""A function in another process has the values and gradients of the same function here."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from guidedcd.environments import server
from guidedcd.environments.memory import anonymous_file
from guidedcd.errors import GuidedCDError


@pytest.fixture(scope="module")
def here(functions):
    """The functions of the file, in this process."""
    return runpy.run_path(str(functions))


def compare(foreign, here, calls: int, shape=(2, 3, 4)) -> None:
    """The same bits of values and gradients, in `calls` calls with random tensors and vectors."""
    generator = torch.Generator().manual_seed(0)
    for number in range(calls):
        tensor = torch.randn(shape, generator=generator, requires_grad=True)
        vector = torch.randn(shape[0], generator=generator)
        texts = ["a" * (number % 7), "héllo\n"]
        results = [function(tensor, texts) for function in (foreign, here)]
        gradients = [torch.autograd.grad(result, tensor, vector)[0] for result in results]
        assert torch.equal(*results) and torch.equal(*gradients)


def test_values_and_gradients_are_those_of_the_function(foreign, here):
    """Values and vector-Jacobian products are bit-equal, in every floating dtype, for tensors that grow and shrink."""
    function = foreign("score")
    compare(function, here["score"], 5)
    compare(function, here["score"], 2, (2, 5, 3, 40, 50))
    compare(function, here["score"], 2)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        tensor = torch.rand(2, 3, dtype=dtype, requires_grad=True)
        results = [f(tensor, ["a", "bb"]) for f in (function, here["score"])]
        assert torch.equal(*results)
        assert torch.equal(*(torch.autograd.grad(result.sum(), tensor)[0] for result in results))
    with torch.no_grad():
        assert not function(tensor, ["a", "bb"]).requires_grad


@pytest.mark.slow
def test_a_thousand_calls_leak_nothing(own_process, here):
    """A thousand calls give the same bits, and leave neither open files nor graphs in the other process."""
    function = own_process("score")
    compare(function, here["score"], 10, (2, 2, 3, 16, 20))
    process, descriptors = function.process(), len(os.listdir("/proc/self/fd")) if os.path.exists("/proc") else 0

    compare(function, here["score"], 990, (2, 2, 3, 16, 20))

    assert function.process() is process and len(process.released) < 5
    assert not os.path.exists("/proc") or len(os.listdir("/proc/self/fd")) == descriptors


def test_a_gradient_can_be_taken_again(foreign, shared_process):
    """Several calls may wait for their gradient, in any order, and a kept graph here gives the same gradient again."""
    function, tensor = foreign("random"), torch.rand(2, 5, requires_grad=True)
    first, second = (function(tensor, ["a", "b"], seed=seed) for seed in (1, 2))

    again = [torch.autograd.grad(first.sum(), tensor, retain_graph=True)[0] for _ in range(2)]
    other = torch.autograd.grad(second.sum(), tensor)[0]

    assert torch.equal(*again) and not torch.equal(again[0], other)
    assert torch.equal(first, (tensor * again[0]).sum(1))
    del first, second
    gc.collect()
    assert len(shared_process.process().released) == 2


def test_random_numbers_depend_on_the_seed_alone(foreign):
    """The same seed gives the same result, whatever was called before."""
    function, tensor = foreign("random"), torch.rand(2, 5)
    results = [function(tensor, [], seed=seed) for seed in (3, 4, 3)]
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_results_may_have_names(foreign, here):
    """A dict of tensors arrives with its names, shapes and dtypes, without a gradient."""
    tensor = torch.rand(2, 5, requires_grad=True)
    results, expected = (function(tensor, []) for function in (foreign("several"), here["several"]))
    assert list(results) == ["mean", "count", "nothing"]
    for name, value in results.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=0, atol=0)


def test_output_of_the_function_is_no_answer(foreign):
    """A function may print, and reads an empty standard input."""
    tensor = torch.rand(2, 5)
    assert torch.equal(foreign("chatter")(tensor, []), tensor.mean(1))


FAULTS = {
    "fails": r"raised ValueError: no such caption \(functions.py, line \d+\)",
    "lists": "returned a value of type list; it must return a tensor",
}


@pytest.mark.parametrize(("name", "message"), FAULTS.items(), ids=FAULTS)
def test_a_fault_of_the_function_is_one_sentence(foreign, name, message):
    """An exception or a result of another type is the function's fault, and names it."""
    with pytest.raises(GuidedCDError, match=rf"^test: .*{message}.*\.$"):
        foreign(name)(torch.rand(2, 5), ["a", "b"])


def test_a_function_without_a_gradient_is_detached(foreign):
    """A function without a gradient is detached here; one whose backward pass fails is one sentence."""
    tensor = torch.rand(2, 5, requires_grad=True)
    assert not foreign("constant")(tensor, ["a", "b"]).requires_grad
    for name, message in {
        "fails_backward": "raised RuntimeError: no backward",
        "unrelated": "no gradient with",
    }.items():
        with pytest.raises(GuidedCDError, match=message):
            torch.autograd.grad(foreign(name)(tensor, ["a", "b"]).sum(), tensor)


def test_the_tensor_here_is_not_changed(foreign):
    """A function that changes its argument in place changes a copy, and its gradient is that of the whole."""
    tensor = torch.ones(2, 5, requires_grad=True)
    result = foreign("overwrites")(tensor, [])
    assert result.tolist() == [10, 10] and tensor.tolist() == torch.ones(2, 5).tolist()
    assert (torch.autograd.grad(result.sum(), tensor)[0] == 2).all()


LOADS = {
    "nothing": (AttributeError, "nothing"),
    "not_callable": (server.Fault, "is a int, which cannot be called"),
    "score": (server.Fault, "takes no options, because it is no class"),
}


@pytest.mark.parametrize(("name", "fault"), LOADS.items(), ids=LOADS)
def test_a_name_without_a_function_is_refused(functions, name, fault):
    """A missing attribute, one that cannot be called, and options of a function are refused."""
    error, message = fault
    with pytest.raises(error, match=message):
        server.build(f"{functions}:{name}", {"factor": 3.0} if name == "score" else {})


def test_an_environment_without_the_function_is_at_fault():
    """A name of a reward, where guidedcd is not installed, is a fault of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "guidedcd.plugins.registry", None)
        with pytest.raises(server.Fault, match="it has no guidedcd, and 'hps' is neither") as error:
            server.build("hps", {})
    assert error.value.whose == "environment"


def test_a_class_is_built_with_options(functions):
    """A class gets the options, its module is frozen and in eval mode, and states its limit of tokens."""
    one = server.Server(server.Memory(anonymous_file()))
    threads = torch.get_num_threads()
    answer = one.load({"function": f"{functions}:Scaled", "options": {"factor": 3.0}, "threads": threads})

    assert (answer["max_tokens"], answer["counts"]) == (12, True)
    assert one.count({"text": "a cat"})["count"] == 4
    assert one.function(torch.ones(2, 5), []).tolist() == [15, 15] and not one.function.factor.requires_grad


@pytest.mark.slow
def test_copies_and_forks_start_their_own_process(own_process, monkeypatch):
    """A copy, a pickled function and a fork start processes of their own, which are no part of a launch."""
    monkeypatch.setenv("RANK", "1")
    function, tensor = own_process("process"), torch.rand(1)
    pids = [function(tensor, [])[0].item() for _ in range(2)]
    read, write = os.pipe()
    if not os.fork():
        try:
            os.write(write, str(function(tensor, [])[0].item()).encode())
        finally:
            function.end()
            os._exit(0)
    forked = int(os.read(read, 100))
    os.wait()
    copies = [copy.deepcopy(function), pickle.loads(pickle.dumps(function))]
    others = [one(tensor, []) for one in copies]

    assert pids[0] == pids[1]
    assert len({pids[0], forked, *(int(other[0]) for other in others)}) == 4
    assert all(other[1:].tolist() == [1, 0] for other in others)
    assert function(tensor, [])[0] == pids[0]
    for one in copies:
        one.end()


def test_calls_from_threads_receive_their_own_results(foreign, here):
    """Calls from several threads are answered with their own results."""
    function = foreign("score")
    wrong = []

    def work(number):
        tensor = torch.full((2, 3 + number), float(number), requires_grad=True)
        results = [f(tensor, ["a", "bb"]) for f in (function, here["score"]) for _ in range(5)]
        gradients = [torch.autograd.grad(result.sum(), tensor)[0] for result in results]
        wrong.extend(
            1 for r, g in zip(results, gradients, strict=True) if (r != results[-1]).any() or (g != gradients[-1]).any()
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PARENT = """
import os, subprocess, sys, time
pipe = subprocess.PIPE
command = [sys.executable, "-I", sys.argv[1], "0", "100"]
server = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
if not os.fork():
    os.close(1)
    time.sleep(4)  # holds the other end of the server's input
    os._exit(0)
print(server.pid, flush=True)
time.sleep(100)
"""
HOLDS = """
import ctypes, os, queue, sys, threading, time
sys.path.insert(0, sys.argv[1])
import server
threading.Thread(target=server.watch, args=(0, queue.Queue(), 2), daemon=True).start()
time.sleep(0.3)
ctypes.PyDLL(None).sleep(100)  # with the interpreter's lock
"""


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether the process ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text():
            return True  # it ended, and the first process of this machine does not wait for it
        time.sleep(0.02)
    return False


def test_the_process_ends_with_a_killed_parent():
    """A process whose parent was killed ends, also while a fork of the parent keeps the pipe open."""
    with subprocess.Popen([sys.executable, "-c", PARENT, server.__file__], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert not gone(pid, 0.2)
        parent.kill()
        assert gone(pid, 3.0)


def test_a_held_interpreter_ends_without_its_parent():
    """A process that code in another language holds forever is ended by its alarm."""
    command = [sys.executable, "-c", HOLDS, str(Path(server.__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(10) == -signal.SIGALRM


@pytest.mark.slow
def test_what_the_function_started_ends_too(own_process):
    """Processes of the function end when a hanging call is ended."""
    function = own_process("sleeps", timeout=1.0)
    with pytest.raises(GuidedCDError, match="no answer within 1 s") as error:
        function(torch.rand(2, 5), [])
    assert gone(int(str(error.value).rpartition("'")[0].rpartition("'")[2]))


def test_the_server_needs_nothing_of_ours():
    """The file that runs there is valid Python 3.8, and imports the standard library and torch at most."""
    import ast

    tree = ast.parse(Path(server.__file__).read_text(), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {*sys.stdlib_module_names, "torch", "guidedcd"}  # guidedcd only for its rewards, inside a function
    assert {name.partition(".")[0] for name in names} <= allowed
    top = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    assert not any(name.startswith(("guidedcd", "torch")) for name in top)
