"""The example jobs on real data: the digits of scikit-learn, and (slow) the flights of the demo."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipelines import load_job, open_result, run

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "configs" / "jobs"


def written(script, path):
    """What a script of docs/examples writes."""
    runpy.run_path(str(ROOT / "docs" / "examples" / script))["main"](path)
    return path


def ran(name, data, folder, *more):
    """The result of an example, with its data and its output here."""
    job = load_job(JOBS / f"{name}.yaml", [f"output={folder}/{name}", *more, *([f"matrix={data}/A"] if data else [])])
    run(job)
    return open_result(f"{folder}/{name}")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return written("digits.py", tmp_path_factory.mktemp("digits") / "digits.zarr")


def test_components_of_digits(digits, tmp_path):
    A = load_digits().data
    result = ran("digits-pca", digits, tmp_path)
    ratio = np.linalg.svd(A - A.mean(axis=0), compute_uv=False) ** 2
    ratio /= ratio.sum()
    k = len(result["explained_variance"])
    assert ratio[:k].sum() >= 0.9 > ratio[: k - 1].sum()
    np.testing.assert_allclose(result["explained_variance_ratio"], ratio[:k], rtol=1e-12)
    back = result["scores"] @ result["components"] + result["mean"]
    assert np.linalg.norm(A - back) ** 2 <= 0.1 * np.linalg.norm(A - A.mean(axis=0)) ** 2


def test_a_low_rank_pair_of_digits(digits, tmp_path):
    A = load_digits().data
    result = ran("digits-low-rank", digits, tmp_path)
    error = np.linalg.norm(A - result["L"] @ result["R"]) / np.linalg.norm(A)
    assert error <= 0.2
    assert result.certificate.reconstruction_error == pytest.approx(error)
    s = np.linalg.svd(A, compute_uv=False)
    assert np.linalg.norm(s[result["L"].shape[1] - 1 :]) / np.linalg.norm(s) > 0.2


def test_the_pseudoinverse_of_digits(digits, tmp_path):
    result = ran("digits-pinv", digits, tmp_path)
    assert result.certificate.rank == 61
    np.testing.assert_allclose(result["pinv"], np.linalg.pinv(load_digits().data), atol=1e-12)


@pytest.mark.slow
def test_the_flights_of_the_demo(tmp_path):
    data = written("flights.py", tmp_path / "flights.zarr")
    pinv = ran("flights-pinv", data, tmp_path)
    assert pinv.certificate.rank == 220
    assert max(pinv.certificate.penrose.values()) < 1e-9
    assert ran("flights-operator", data, tmp_path).certificate.rank == 220
    leverage = ran("flights-apply", None, tmp_path, f"operator={tmp_path}/flights-operator")["leverage"]
    assert leverage.sum() == pytest.approx(220)
    assert ran("flights-pca", data, tmp_path)["explained_variance_ratio"].sum() >= 0.95
