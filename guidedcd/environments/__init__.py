"""A function of tensors in the Python of another environment: its values, and its gradient.

In: a Python program, the name of a function there, a tensor and texts. Out: the function's tensors, differentiable to
the tensor. `server` runs in the other environment and needs nothing but Python and torch. `process` starts and ends
it, `messages` exchanges lines of JSON with it, `memory` describes tensors in shared memory, `function` is what callers
use. `command` runs a program to its end, with files as the interface. Open `function` first.
"""
