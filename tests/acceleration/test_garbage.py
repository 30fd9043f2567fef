"""The garbage collector in long loops."""

from __future__ import annotations

import gc

import pytest

from guidedcd.acceleration.garbage import settled


def test_what_is_there_is_left_out_of_collections_until_the_block_ends():
    """Objects are frozen inside, also by a block within a block, and are not afterwards, whatever happened."""
    at_start = gc.get_freeze_count()  # Python 3.12 starts with some
    with pytest.raises(KeyboardInterrupt), settled():
        with settled():
            assert gc.get_freeze_count() > at_start + 1000
        assert gc.get_freeze_count() > at_start + 1000
        raise KeyboardInterrupt
    assert gc.get_freeze_count() <= at_start


def test_new_garbage_is_collected_inside():
    """A cycle that is made inside the block is found there."""

    class Node:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            Node.alive += 1

        def __del__(self) -> None:
            Node.alive -= 1

    with settled():
        Node()
        assert Node.alive == 1
        gc.collect()
        assert Node.alive == 0
