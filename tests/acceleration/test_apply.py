"""Fast paths of a student and its teacher."""

from __future__ import annotations

import pytest
import torch

from guidedcd import acceleration
from guidedcd.config import sections
from guidedcd.models.student import Student


def test_a_student_of_a_fast_teacher_is_fast_and_equals_it():
    """The student's copy keeps the fast paths, predicts as its teacher, and learns with checkpointing."""
    import tiny_run

    master = tiny_run.teacher()
    acceleration.speed_up(master.network)
    student = Student(master, sections.Student(), ("pta",))
    student.enable_gradient_checkpointing()
    z, t = torch.randn(1, *master.geometry.latent_shape), torch.tensor([500])
    cond = master.embed(["a"])
    out = student(z, t, cond, torch.tensor([7.0]), torch.zeros(1, 1))
    out.square().mean().backward()

    assert acceleration.is_fast(student.network)
    torch.testing.assert_close(out, master.net(z, t, cond))
    assert all(p.grad is not None for p in student.network.up_blocks.parameters())


def test_the_option_selects_the_paths():
    """`auto` changes nothing on a CPU, `layers` and `graphs` give the same video, and unknown values are refused."""
    import tiny_run

    from guidedcd.acceleration.apply import accelerate
    from guidedcd.errors import GuidedCDError

    master = tiny_run.teacher()
    student = Student(master, sections.Student())
    accelerate(student, master)
    assert not acceleration.is_fast(student.network)
    z, t, cond = torch.randn(1, *master.geometry.latent_shape), torch.tensor([500]), master.embed(["a"])
    output, pixels = student(z, t, cond), master.decode(z)
    for choice in ("layers", "graphs", "blocks-graphs"):
        accelerate(student, master, choice)
        assert (
            acceleration.is_fast(student.network)
            and acceleration.is_fast(master.network)
            and acceleration.is_fast(master.vae)
        )
        assert (student(z, t, cond) - output).abs().max() < 1e-5
        assert (master.decode(z) - pixels).abs().max() < 1e-5
    with pytest.raises(
        GuidedCDError, match="`fast` must be one of auto, no, layers, graphs, blocks, blocks-graphs, not 'very'"
    ):
        accelerate(student, master, "very")
