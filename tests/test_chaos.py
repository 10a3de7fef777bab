"""Chaos: parts of a real cluster die or are cut off at random moments, and the answers have the same bits."""

import pytest

pytest.importorskip("benchmarks.chaos", reason="the benchmarks are no part of the wheel")

from benchmarks.chaos import FAULTS, chaos


def test_a_job_ends_with_the_same_bits_whatever_dies_on_the_way(tmp_path):
    found = chaos(tmp_path, len(FAULTS), seed=3, jobs=["least_squares"])["runs"]
    assert [one["fault"] for one in found][:3] == list(FAULTS[:3])
    assert all(one["commands"] == 1 for one in found if one["fault"] in ("worker", "network"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_runs_end_with_the_same_bits_whatever_dies_on_the_way(tmp_path):
    assert len(chaos(tmp_path, 200, seed=4)["runs"]) == 200
