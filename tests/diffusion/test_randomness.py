"""Random streams: each number is the one that stores and runs of before have."""

from __future__ import annotations

import numpy
import pytest
import torch

from guidedcd.diffusion.randomness import Stream, dropout_seed, noise, random_stream, reward_generator

KEYS = {
    Stream.DRAW_NOISE: 0,
    Stream.REFERENCE_NOISE: 2**31,
    Stream.SOLVER_INDEX: 2**32,
    Stream.GUIDANCE: 2**33,
    Stream.EPOCH_ORDER: 2**34,
    Stream.ROLLOUT_PROMPTS: 2**35,
    Stream.ROLLOUTS: 2**36,
    Stream.SAMPLING: 2**48,
}


@pytest.mark.parametrize("stream", Stream)
def test_a_stream_is_philox_keyed_by_seed_and_number(stream):
    """Each stream is numpy's Philox with the key (seed, offset + number)."""
    for seed, number in ((0, 0), (7, 3), (2**62, 12345)):
        expected = numpy.random.Generator(numpy.random.Philox(key=[seed, KEYS[stream] + number])).random(5)
        assert numpy.array_equal(random_stream(stream, seed, number).random(5), expected)


def test_noise_is_taken_from_its_stream():
    """Noise of a stream is what the offset added to the draw's number gives in the first stream."""
    for stream in Stream:
        assert torch.equal(noise(5, 2, (3, 4), stream), noise(5, 2 + KEYS[stream], (3, 4)))


def test_the_seed_of_dropout_is_the_hash_of_the_step():
    """The seed of the global generator is CPython's hash of (seed, step, process), folded to 63 bits."""
    for numbers in ((0, 1, 0), (0, 100, 7), (3, 1, 1), (2**40, 99999, 63), (2**61 - 1, 5, 0), (2**63, 1, 2)):
        assert dropout_seed(*numbers) == hash(numbers) % 2**63


def test_rewards_draw_by_seed_and_batch():
    """The generator of rewards is seeded by 1,000,003 times the run's seed plus the number of the batch."""
    for seed, number in ((0, 0), (1, 5), (2**62, 3)):
        assert reward_generator(seed, number).initial_seed() == (seed * 1_000_003 + number) % 2**63
