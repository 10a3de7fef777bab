"""Rates: how fast a core is, kept between runs, and never a reason for a plan to fail."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from pipelines.rates import NOMINAL, load_rates, measure_rates, rates_path, save_rates


@pytest.fixture(scope="module")
def measured():
    return measure_rates()


def test_the_sweep_has_its_measured_rate_at_the_measured_columns():
    for columns, gflops in NOMINAL.factor_gflops:
        assert NOMINAL.factor_flops_per_second(columns) == pytest.approx(gflops * 1e9)


def test_between_two_measured_columns_the_rate_is_on_a_line_of_logarithms():
    rates = replace(NOMINAL, factor_gflops=((10, 1.0), (1000, 100.0)))
    assert rates.factor_flops_per_second(100) == pytest.approx(10e9)


def test_outside_the_measured_columns_the_rate_is_that_of_the_nearest():
    assert NOMINAL.factor_flops_per_second(0) == NOMINAL.factor_flops_per_second(16)
    assert NOMINAL.factor_flops_per_second(10**6) == pytest.approx(38e9)


def test_units_are_per_second():
    assert NOMINAL.gemm_flops_per_second() == 50e9
    assert NOMINAL.merge_flops_per_second() == 15e9
    assert NOMINAL.read_bytes_per_second() == 2.5e9


def test_without_a_file_the_rates_are_nominal(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_rates() is NOMINAL


def test_the_file_is_in_the_user_s_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rates_path() == tmp_path / "tallgrass/rates.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rates_path() == tmp_path / ".cache/tallgrass/rates.json"


def test_saved_rates_come_back_and_nothing_else_is_left(tmp_path):
    rates = replace(NOMINAL, source="calibrated on a, 2026-01-01", gemm_gflops=33.3)
    path = save_rates(rates, tmp_path / "new/rates.json")
    assert load_rates(path) == rates
    assert [file.name for file in path.parent.iterdir()] == ["rates.json"]


def test_rates_that_were_measured_before_rows_could_be_made_are_kept(tmp_path):
    path = save_rates(replace(NOMINAL, gemm_gflops=33.3, source="calibrated on a, 2026-01-01"), tmp_path / "rates.json")
    fields = json.loads(path.read_text())
    del fields["made_gigabytes"]
    path.write_text(json.dumps(fields))
    assert (load_rates(path).gemm_gflops, load_rates(path).made_gigabytes) == (33.3, NOMINAL.made_gigabytes)
    assert NOMINAL.made_numbers_per_second() == pytest.approx(1e8)


def damaged(**fields) -> str:
    return json.dumps(asdict(NOMINAL) | fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'factor_gflops'"),
        (damaged(gemm_gflops=-1), "ValueError: the numbers in it cannot be rates"),
        (damaged(gemm_gflops=float("nan")), "ValueError: the numbers in it cannot be rates"),
        (damaged(factor_gflops=[[64, 2.0], [16, 1.0]]), "ValueError: the numbers in it cannot be rates"),
        (damaged(factor_gflops=[[16, 1.0]]), "ValueError: the numbers in it cannot be rates"),
    ],
)
def test_a_damaged_file_gives_nominal_rates_and_says_so(tmp_path, text, says):
    path = tmp_path / "rates.json"
    path.write_text(text)
    rates = load_rates(path)
    assert replace(rates, source="nominal") == NOMINAL
    assert rates.source.startswith(f"nominal ({path} cannot be used: {says}")


def test_a_file_that_cannot_be_read_gives_nominal_rates_and_says_so(tmp_path):
    assert "IsADirectoryError" in load_rates(tmp_path).source


def test_this_machine_can_be_measured(measured):
    assert measured.source.startswith("calibrated on ")
    assert [columns for columns, _ in measured.factor_gflops] == [16, 64, 256, 1024]
    assert all(0.05 < rate < 10_000 for _, rate in measured.factor_gflops)
    assert 0.5 < measured.gemm_gflops < 10_000
    assert 0.05 < measured.merge_gflops < 10_000
    assert 0.01 < measured.read_gigabytes < 1000


def test_measured_rates_can_be_kept(measured, tmp_path):
    assert load_rates(save_rates(measured, tmp_path / "rates.json")) == measured


def test_the_module_imports_nothing_heavy():
    code = "import sys, pipelines.rates; print({'numpy', 'scipy', 'zarr', 'dask', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {sys.path}; {code}"], capture_output=True)
    assert done.stdout == b"set()\n"
