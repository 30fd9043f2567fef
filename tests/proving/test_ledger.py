"""The ledger: numbers, verdicts and pages from results."""

import json
import math

import pytest
from proofs import write_result

from guidedcd.errors import GuidedCDError
from guidedcd.proving import ledger, results
from guidedcd.proving.proof import read_proof

NAN = math.nan
ABOUT = {"command": "guidedcd prove", "seconds": 60, "failed": {}}


@pytest.fixture
def out(tmp_path):
    """Two arms of three seeds, whose differences are 0.1, 0.2 and 0.3, and one arm of a single seed."""
    for seed, difference in enumerate((0.1, 0.2, 0.3)):
        write_result(tmp_path, "plain", seed, [0.2, NAN], [0.4])
        write_result(tmp_path, "slow", seed, [0.2 + difference, NAN], [0.4 + difference])
    write_result(tmp_path, "slow-3", 0, [0.0, 0.0], [0.0])
    return tmp_path


def test_differences_are_paired_by_seed(proof_file, out):
    """Mean, standard error and interval of a contrast are those of the differences of each seed."""
    content = ledger.build(read_proof(proof_file), results.read_all(out), ABOUT)
    one = content["claims"][0]["criteria"][0]

    assert one["contrasts"] == [0.1, 0.2, 0.3] and one["n"] == 3
    assert math.isclose(one["mean"], 0.2, abs_tol=1e-5)
    assert math.isclose(one["error"], 0.1 / math.sqrt(3), abs_tol=1e-5)
    assert math.isclose(one["low"], 0.2 - 4.30265 * 0.1 / math.sqrt(3), abs_tol=1e-4)
    assert one["verdict"] == content["claims"][0]["verdict"] == "undecided"
    assert 0 < one["power_at_3_seeds"] < 1


def test_claims_use_the_seeds_that_all_arms_have(proof_file, out):
    """One common seed gives a verdict without an interval; an arm without results leaves a claim undecided."""
    content = ledger.build(read_proof(proof_file), results.read_all(out), ABOUT)
    shared, without = content["claims"][1]["criteria"]

    assert shared["n"] == 1 and shared["error"] is None and shared["verdict"] == "holds"
    assert without["n"] == 0 and without["verdict"] == content["claims"][1]["verdict"] == "not run"


def test_values_that_do_not_apply_are_left_out(proof_file, out):
    """A metric is the mean over keys of the mean over the prompts of its splits, without those that are null."""
    proof, measured = read_proof(proof_file), results.read_all(out)

    assert math.isclose(results.value_of(measured["slow"][0], proof.metrics["misfit"]), 0.4, abs_tol=1e-6)
    assert math.isclose(results.value_of(measured["slow"][0], proof.metrics["both"]), 0.15, abs_tol=1e-6)
    write_result(out, "teacher", 0, [NAN])
    assert math.isnan(results.value_of(results.read_all(out)["teacher"][0], proof.metrics["misfit"]))


def test_the_page_has_claims_arms_and_what_is_missing(proof_file, out, capsys):
    """ledger.md and the terminal show verdicts, the paper's numbers, arms with standard errors, and failures."""
    content = ledger.write(read_proof(proof_file), out, {**ABOUT, "failed": {"teacher, seed 0": "no memory"}})
    page, printed = (out / "ledger.md").read_text(), capsys.readouterr().out

    assert json.loads((out / "ledger.json").read_text()) == content
    assert "| A: The control changes something. | **undecided** | `misfit: slow > plain` | +0.200 ± 0.058" in page
    assert "holds: 1 \\| 2" in page and "$ guidedcd prove" in page and "a machine" in page
    assert "| `slow` | 0, 1, 2 | 0.500 ± 0.058 |" in page
    assert "Z: there is no such thing" in page and "teacher, seed 0: no memory" in page
    assert "1 undecided, 1 not run" in printed and "+0.200 ± 0.058 (3 seeds)" in printed


def test_a_damaged_result_is_named(out):
    """A result's file of another form is one sentence with its path."""
    results.file_of(out, "plain", 0).write_text('{"arm": 3}')
    with pytest.raises(GuidedCDError, match=r"plain-0\.json: arm is 3; it must be text"):
        results.read_all(out)
