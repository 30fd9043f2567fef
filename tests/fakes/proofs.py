"""Results of a proof that no training computed."""

from guidedcd.proving import results


def with_change(path, old, new):
    """Replace a part of a file that occurs in it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def write_result(out, arm, seed, motion, still=(), settings=None):
    """Write a result whose values of `misfit` are given by split; those of `all` are 0."""
    values = {"motion": list(motion), "no-motion": list(still)}
    results.write(
        out,
        {
            "arm": arm,
            "seed": seed,
            "settings": settings or {},
            "values": {split: {"misfit": some, "all": [0.0] * len(some)} for split, some in values.items()},
            "seconds": 30.0,
            "machine": "a machine",
            "versions": {"guidedcd": "1"},
            "date": "2026-11-27",
        },
    )
