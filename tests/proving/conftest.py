"""A tiny proof of two students, another sampling of one of them, and the teacher."""

import pytest

PROOF = """
title = "Tiny"
profile = "shapes"
seeds = [0, 1]
steps = 1
[prompts]
motion = 2
no-motion = 1
[options]
metrics = ["shapes-oracle"]
[options.preprocess]
videos = 2
draws_per_video = 1
[options.solver]
steps = 6
[options.train]
steps = 2
batch_size = 1
rollouts = { videos = 0 }
[quick]
arms = ["plain", "slow"]
prompts = { motion = 1 }
[author]
against = ["plain"]
[groups.slow]
energies = { slow-motion = { relative = 0.05 } }
[arms.teacher]
about = "the teacher"
teacher = { steps = 1, omega = 1.0 }
[arms.plain]
about = "distillation alone"
[arms.slow]
about = "with a control"
groups = ["slow"]
[arms.slow-3]
about = "the same with 3 steps"
student = "slow"
steps = 3
[metrics.misfit]
about = "what a template leaves unexplained"
keys = ["misfit"]
[metrics.both]
about = "the mean of two keys"
keys = ["misfit", "all"]
splits = ["motion"]
[[claims]]
id = "A"
claim = "The control changes something."
criteria = ["misfit: slow > plain"]
source = "Table 1"
paper = "1 | 2"
paper-holds = true
[[claims]]
id = "B"
claim = "More steps are better."
criteria = ["misfit: slow-3 < slow", "misfit: slow-3 < teacher"]
[[without-meaning]]
ids = ["Z"]
reason = "there is no such thing"
"""


@pytest.fixture
def proof_file(tmp_path):
    """The file of the tiny proof."""
    path = tmp_path / "proof.toml"
    path.write_text(PROOF)
    return path
