"""The report's tables about energies, rewards, routing, times and memory."""

from __future__ import annotations

from pathlib import Path

from guidedcd.evaluation.report.components import components, energies, parts, rewards, routing
from guidedcd.evaluation.report.run_files import RunFiles
from guidedcd.evaluation.report.score_tables import Table

RUN = {"rewards": {"hps": {"weight": 1.5}, "clip": {"weight": 2.0}}}
LOG = [
    {"step": 1, "share/pta": 0.3, "share_noise-2/pta": 0.1, "routed/hps": 0.5, "reward/hps": 0.2, "routed/clip": 0.0},
    {"step": 2, "share/pta": 1.6, "share_noise-3/pta": 1.6, "routed/hps": 1.0, "reward/hps": 0.4, "routed/clip": 0.0},
]
TIMES = {"seconds/rewards": 2.0, "seconds/reward:hps": 0.5, "seconds/backward": 2.0, "memory_gb/backward": 3.25}


def texts(table: Table | None) -> list[list[str]]:
    """The texts of the rows."""
    assert table is not None
    return [[row.head.text, *(cell.text for cell in row.cells)] for row in table.rows]


def test_energies_have_their_shares_by_noise_level():
    """The table has the median share overall and in each quarter; an older log has the overall one alone."""
    assert texts(energies(LOG)) == [["pta", "95 %", "-", "10 %", "160 %", "-"]]
    assert texts(energies([{"share/pta": 1.6}])) == [["pta", "160 %"]]


def test_rewards_have_weight_scores_routes_and_gradients():
    """A reward that scored nothing has no score, and one without a logged gradient no share."""
    log = [line | {"reward_share/hps": 0.75} for line in LOG]

    assert texts(rewards(RUN, log)) == [
        ["hps", "1.5", "0.2", "0.4", "75 %", "75 %"],
        ["clip", "2", "-", "-", "0 %", "-"],
    ]


def test_times_are_shares_of_the_step():
    """Single rewards stand below all rewards and are not counted twice; memory is there where it was logged."""
    assert texts(parts([TIMES, TIMES])) == [
        ["rewards", "2.00 s", "50 %", "-"],
        ["reward hps", "500.0 ms", "12 %", "-"],
        ["backward", "2.00 s", "50 %", "3.25 GB"],
    ]


def test_clips_are_counted_by_objective():
    """All feed the consistency loss; the others have their number and share, and a run without numbers no table."""
    numbers = {"clips": 8, "rewards": {"hps": 6, "clip": 0}, "without_rewards": 2, "energies": {"pta": 4}}
    table = routing(numbers)

    assert {row.head.text: [cell.text for cell in row.cells] for row in table.rows} == {
        "consistency": ["8", "100 %"],
        "energy pta": ["4", "50 %"],
        "reward hps": ["6", "75 %"],
        "reward clip": ["0", "0 %"],
        "no reward": ["2", "25 %"],
    }
    assert routing(None) is None and routing({**numbers, "clips": 0}) is None


def test_a_log_without_these_numbers_has_no_tables():
    """Runs without energies and rewards, and logs of older versions, have no empty tables."""
    files = RunFiles(folder=Path("x"), run={}, log=[{"step": 1, "loss": 1.0}], results=Path("x"), evaluation=None)

    assert components(files) == []
