"""PCA against NumPy on explicitly centred data, and where means are large, columns constant, and entries missing."""

import shutil

import numpy as np
import pytest
import zarr
from sklearn import decomposition
from sklearn.datasets import load_digits

from pipelines import PCA, PCATransform, Pseudoinverse, make_plan, open_result, run
from pipelines.errors import BadData, PlanRefused


@pytest.fixture
def rng(request):
    return np.random.default_rng(sum(map(ord, request.node.name)))


def mixed(rng, m=600, n=8, offset=5.0):
    return rng.standard_normal((m, n)) @ rng.standard_normal((n, n)) * np.geomspace(1, 1e-2, n) + offset


def reference(A, *, scale=False):
    centred = A - A.mean(axis=0)
    if scale:
        centred = centred / A.std(axis=0, ddof=1)
    U, s, Vt = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(Vt[np.arange(len(Vt)), np.abs(Vt).argmax(axis=1)])
    return U * signs, s, Vt * signs[:, None]


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("offset", [0.0, 5.0, -1e6])
def test_components_variances_and_scores_are_those_of_the_centred_matrix(rng, offset, scale):
    A = mixed(rng, offset=offset)
    result = run(PCA(matrix=A, scores=True, scale=scale))
    U, s, Vt = reference(A, scale=scale)
    digits = 1e-15 * max(1, abs(offset)) * 1e5
    np.testing.assert_allclose(result["mean"], A.mean(axis=0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(result["components"], Vt, atol=digits)
    np.testing.assert_allclose(result["explained_variance"], s**2 / (len(A) - 1), rtol=digits, atol=digits)
    np.testing.assert_allclose(result["explained_variance_ratio"], s**2 / (s**2).sum(), atol=digits)
    np.testing.assert_allclose(result["scores"], U * s, atol=digits * s[0])
    assert result.certificate.orthogonality < 1e-6


def test_a_mean_that_dwarfs_the_spread_costs_only_the_digits_that_it_takes_in_the_data(rng):
    """Downdating the Gram matrix, or summing squares, would leave no digit of these variances."""
    A = rng.standard_normal((2000, 4)) * [1, 0.5, 0.1, 0.01] + 1e8
    truth = A - 1e8  # exact: the data are what they are once stored
    _, s, _ = reference(truth)
    np.testing.assert_allclose(run(PCA(matrix=A))["explained_variance"], s**2 / 1999, rtol=1e-12)


def test_means_that_the_first_rows_do_not_know_lose_nothing(rng):
    A = rng.standard_normal((5000, 4))
    A[2000:] += 1e6
    _, s, Vt = reference(A)
    result = run(PCA(matrix=A))
    np.testing.assert_allclose(result["explained_variance"], s**2 / 4999, rtol=1e-6)
    np.testing.assert_allclose(np.abs(result["components"]), np.abs(Vt), atol=1e-6)


@pytest.mark.parametrize(("asked", "k"), [("all", 8), (3, 3), (0.9, None), (0.999999, None)])
def test_as_many_components_as_asked_for(rng, asked, k):
    A = mixed(rng)
    _, s, _ = reference(A)
    ratio = np.cumsum(s**2) / (s**2).sum()
    result = run(PCA(matrix=A, n_components=asked))
    assert len(result["components"]) == (k or int((ratio < asked).sum()) + 1)
    if k is None:
        assert result["explained_variance_ratio"].sum() >= asked


def test_whitened_scores_have_variance_one(rng):
    scores = run(PCA(matrix=mixed(rng), scores=True, whiten=True))["scores"]
    np.testing.assert_allclose(scores.var(axis=0, ddof=1), 1, rtol=1e-9)
    np.testing.assert_allclose(np.cov(scores.T), np.eye(8), atol=1e-9)


@pytest.mark.parametrize("scale", [False, True])
def test_constant_columns_have_no_components(rng, scale):
    A = np.c_[mixed(rng, n=3), np.full(600, 7.0), np.zeros(600)]
    result = run(PCA(matrix=A, scale=scale, scores=True))
    assert len(result["components"]) == result.certificate.rank == 3
    assert np.isfinite(result["scores"]).all()
    np.testing.assert_allclose(result["mean"][3:], [7, 0], atol=1e-15)


def test_missing_entries_take_the_mean_of_their_column(rng):
    A = mixed(rng)
    A[rng.random(A.shape) < 0.1] = np.nan
    filled = np.where(np.isnan(A), np.nanmean(A, axis=0), A)
    result = run(PCA(matrix=A, nan="mean", scores=True))
    _, s, Vt = reference(filled)
    np.testing.assert_allclose(result["mean"], np.nanmean(A, axis=0), rtol=1e-14)
    np.testing.assert_allclose(result["explained_variance"], s**2 / 599, rtol=1e-10)
    np.testing.assert_allclose(result["scores"], (filled - filled.mean(axis=0)) @ Vt.T, atol=1e-9)


def test_rows_with_missing_entries_are_an_error_or_left_out(rng):
    A = mixed(rng)
    A[5, 1] = np.nan
    with pytest.raises(BadData, match="the first is at row 5, column 1"):
        run(PCA(matrix=A))
    result = run(PCA(matrix=A, nan="omit_rows", scores=True))
    U, s, _ = reference(np.delete(A, 5, axis=0))
    assert result.certificate.rows_used == 599
    assert not result["scores"][5].any()
    np.testing.assert_allclose(np.delete(result["scores"], 5, axis=0), U * s, atol=1e-9)


def test_infinity_is_no_missing_entry(rng):
    A = mixed(rng)
    A[5, 1] = np.inf
    with pytest.raises(BadData, match="row 5, column 1"):
        run(PCA(matrix=A, nan="mean"))


def test_a_column_of_nothing_but_nan_has_no_mean(rng):
    A = mixed(rng)
    A[:, 2] = np.nan
    with pytest.raises(BadData, match=r"Column 2 of the matrix .* holds nothing but NaN"):
        run(PCA(matrix=A, nan="mean"))


def test_complex_data(rng):
    A = mixed(rng) + 1j * mixed(rng)
    s = np.linalg.svd(A - A.mean(axis=0), compute_uv=False)
    result = run(PCA(matrix=A, scores=True))
    np.testing.assert_allclose(result["explained_variance"], s**2 / 599, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(result["scores"], axis=0), s, rtol=1e-10)


def test_scores_are_written_in_the_chunks_of_the_matrix(save, tmp_path, rng):
    A = mixed(rng)
    run(PCA(matrix=save("A", A, (64, 5)), scores=True, output=f"{tmp_path}/r"))
    stored = zarr.open_array(f"{tmp_path}/r/scores", mode="r")
    assert stored.chunks == (64, 8)
    U, s, _ = reference(A)
    np.testing.assert_allclose(stored[...], U * s, atol=1e-9)
    assert open_result(f"{tmp_path}/r").certificate.verified


def test_what_cannot_be_done_is_refused_before_reading():
    with pytest.raises(PlanRefused, match="nan: omit_rows needs at least as many rows as columns, and the matrix is 5"):
        make_plan(PCA(matrix=np.ones((5, 100)), nan="omit_rows"))
    with pytest.raises(PlanRefused, match="6 components are asked for, and the matrix has 5 rows"):
        make_plan(PCA(matrix=np.ones((5, 100)), n_components=6))
    with pytest.raises(PlanRefused, match="21 components are asked for, and the matrix has 20 columns"):
        make_plan(PCA(matrix=np.ones((100, 20)), n_components=21))
    with pytest.raises(BadData, match="A variance needs at least 2 rows, and the matrix has 1"):
        run(PCA(matrix=np.ones((1, 1))))


def test_the_digits_of_scikit_learn():
    """8 × 8 images of handwritten digits: 64 columns, three of them constant."""
    A = load_digits().data
    theirs = decomposition.PCA(n_components=20, svd_solver="full").fit(A)
    ours = run(PCA(matrix=A, n_components=20, scores=True))
    np.testing.assert_allclose(ours["explained_variance"], theirs.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(ours["components"], theirs.components_, atol=1e-8)
    np.testing.assert_allclose(ours["scores"], theirs.transform(A), atol=1e-8)
    assert run(PCA(matrix=A)).certificate.rank == 61


def test_the_pseudoinverse_of_the_digits_whose_rank_is_61():
    """Real images: columns that are always white make it deficient, and 1,797 rows are pixels of 16 grey values."""
    A = load_digits().data
    result = run(Pseudoinverse(matrix=A))
    assert result.certificate.rank == 61
    np.testing.assert_allclose(result["pinv"], np.linalg.pinv(A), atol=1e-12)
    assert max(result.certificate.penrose.values()) < 1e-11


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e6 + 0.1, 1e9 / 7, 123.456, 0.0])
@pytest.mark.parametrize("shape", [(1500, 5), (1500, 40), (20, 7), (7, 40)])
def test_a_constant_column_has_no_spread_and_no_component(rng, shape, constant):
    """Its first guess is off by a rounding, and scaling what that leaves would make a component of it."""
    A = rng.standard_normal(shape)
    A[:, 1], A[:, 2] = constant, 1 + 1e-12 * A[:, 2]
    result = run(PCA(matrix=A, scale=True))
    assert result["scale"][1] == 0
    assert np.abs(result["components"][:, 1]).max() < 1e-15
    assert result["scale"][2] == pytest.approx(A[:, 2].std(ddof=1), rel=1e-3)
    rank = min(shape[0] - 1, shape[1] - 1)
    assert result.certificate.rank == rank
    assert result["explained_variance"].sum() == pytest.approx(shape[1] - 1)
    moved = A[:1].copy()
    moved[0, 1] = np.nextafter(constant, 1)
    np.testing.assert_allclose(
        run(PCATransform(matrix=moved, pca=result))["scores"], run(PCATransform(matrix=A[:1], pca=result))["scores"]
    )


# Wide matrices: few samples of many features


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("nan", ["error", "mean"])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_wide_matrix_is_centred_and_scaled_as_a_tall_one(rng, offset, scale, nan, dtype):
    A = (rng.standard_normal((12, 300)) * np.geomspace(1, 1e-3, 300)).astype(dtype) + offset * rng.standard_normal(300)
    if dtype is complex:
        A += 1j * rng.standard_normal(A.shape)
    filled = A.copy()
    if nan == "mean":
        A[3, 5] = A[7, 100] = np.nan
        filled = np.where(np.isnan(A), np.nanmean(A, axis=0), A)
    result = run(PCA(matrix=A, scale=scale, nan=nan, scores=True))
    mean = filled.mean(axis=0)
    centred = filled - mean
    if scale:
        centred /= centred.std(axis=0, ddof=1)
        np.testing.assert_allclose(result["scale"], filled.std(axis=0, ddof=1), rtol=1e-9)
    digits = 1e-12 * max(1, offset) * (1e3 if scale else 1)
    s = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(result["mean"], mean, atol=1e-15 * max(1, offset))
    np.testing.assert_allclose(result["singular_values"], s[:11], rtol=1e-9)
    np.testing.assert_allclose(result["explained_variance"], s[:11] ** 2 / 11, rtol=1e-9)
    C = result["components"]
    np.testing.assert_allclose(C @ C.conj().T, np.eye(11), atol=1e-13)
    np.testing.assert_allclose(result["scores"] @ C, centred, atol=digits)
    assert result.certificate.orthogonality < 1e-12


def test_components_of_a_wide_matrix_are_written_in_its_chunks(save, tmp_path, rng):
    A = rng.standard_normal((10, 1000))
    job = PCA(
        matrix=save("A", A, (10, 64)), n_components=3, scale=True, whiten=True, scores=True, output=f"{tmp_path}/r"
    )
    run(job)
    stored, mean = (zarr.open_array(f"{tmp_path}/r/{name}", mode="r") for name in ("components", "mean"))
    assert stored.chunks == (3, 64)
    assert mean.chunks == (64,)
    theirs = decomposition.PCA(3, whiten=True, svd_solver="full").fit((A - A.mean(axis=0)) / A.std(axis=0, ddof=1))
    np.testing.assert_allclose(np.abs(stored[...]), np.abs(theirs.components_), atol=1e-10)
    result = open_result(f"{tmp_path}/r")
    np.testing.assert_allclose(result["explained_variance"], theirs.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(result["scores"].std(axis=0, ddof=1), 1, rtol=1e-10)
    np.testing.assert_allclose(mean[...], A.mean(axis=0), atol=1e-14)


def test_faults_of_a_wide_matrix_are_named_as_they_lie(rng):
    A = rng.standard_normal((5, 50))
    A[3, 17] = np.nan
    with pytest.raises(BadData, match=r"1 entry .* first is at row 3, column 17"):
        run(PCA(matrix=A))
    A[2, 20] = np.inf
    with pytest.raises(BadData, match=r"1 entry .* first is at row 2, column 20"):
        run(PCA(matrix=A, nan="mean"))
    A[:, 20] = np.nan
    with pytest.raises(BadData, match=r"Column 20 of the matrix \(counted from 0\) holds nothing but NaN"):
        run(PCA(matrix=A, nan="mean"))


# To components and back


@pytest.mark.parametrize("shape", [(600, 8), (8, 60)])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_rows_go_to_components_and_back(save, tmp_path, rng, scale, whiten, shape):
    A = rng.standard_normal(shape) @ np.diag(np.geomspace(1, 0.1, shape[1])) + 7
    run(PCA(matrix=A, scale=scale, whiten=whiten, scores=True, output=f"{tmp_path}/pca"))
    pca = open_result(f"{tmp_path}/pca")
    matrix = save("rows", A, (5, shape[1]))
    run(PCATransform(matrix=matrix, pca=f"{tmp_path}/pca", output=f"{tmp_path}/scores"))
    scores = open_result(f"{tmp_path}/scores")["scores"]
    np.testing.assert_allclose(scores, pca["scores"], atol=1e-10)
    assert zarr.open_array(f"{tmp_path}/scores/scores", mode="r").chunks[0] == 5
    back = run(PCATransform(matrix=f"{tmp_path}/scores/scores", pca=pca, inverse=True))["reconstruction"]
    np.testing.assert_allclose(back, A, atol=1e-10)


def test_new_rows_get_scikit_learns_scores(rng):
    A, new = mixed(rng), mixed(rng, m=3)
    theirs = decomposition.PCA(4, svd_solver="full").fit(A)
    pca = run(PCA(matrix=A, n_components=4))
    scores = run(PCATransform(matrix=new, pca=pca))["scores"]
    np.testing.assert_allclose(scores, theirs.transform(new), atol=1e-9)
    back = run(PCATransform(matrix=scores, pca=pca, inverse=True))["reconstruction"]
    np.testing.assert_allclose(back, theirs.inverse_transform(scores), atol=1e-9)


def test_missing_entries_of_new_rows(rng):
    A, new = mixed(rng), mixed(rng, m=20)
    pca = run(PCA(matrix=A))
    new[4, 2] = np.nan
    with pytest.raises(BadData, match=r"1 entry .* the first is at row 4, column 2"):
        run(PCATransform(matrix=new, pca=pca))
    assert not run(PCATransform(matrix=new, pca=pca, nan="omit_rows"))["scores"][4].any()
    filled = new.copy()
    filled[4, 2] = pca["mean"][2]
    found = run(PCATransform(matrix=new, pca=pca, nan="mean"))["scores"]
    np.testing.assert_allclose(found, run(PCATransform(matrix=filled, pca=pca))["scores"], atol=1e-12)


@pytest.mark.parametrize("name", ["components", "mean", "scale"])
def test_a_damaged_pca_is_a_letter(rng, tmp_path, name):
    run(PCA(matrix=mixed(rng), scale=True, output=f"{tmp_path}/pca"))
    shutil.rmtree(tmp_path / "pca" / name)
    with pytest.raises(BadData, match=rf"The result .*/pca is damaged or not complete \(KeyError: {name}; this result"):
        run(PCATransform(matrix=np.ones((9, 8)), pca=f"{tmp_path}/pca"))


@pytest.mark.parametrize("complex_pca", [True, False])
def test_real_rows_and_complex_components_and_the_other_way_round(rng, complex_pca):
    A = mixed(rng) + (1j * mixed(rng) if complex_pca else 0)
    new = mixed(rng, m=9) + (0 if complex_pca else 1j * mixed(rng, m=9))
    pca = run(PCA(matrix=A))
    scores = run(PCATransform(matrix=new, pca=pca))["scores"]
    np.testing.assert_allclose(scores, (new - pca["mean"]) @ pca["components"].conj().T, atol=1e-12)
    back = run(PCATransform(matrix=scores, pca=pca, inverse=True))["reconstruction"]
    np.testing.assert_allclose(back, new, atol=1e-10)


def test_what_a_pca_does_not_reach_its_scores_do_not_either(rng):
    pca = run(PCA(matrix=mixed(rng)))
    found = run(PCATransform(matrix=mixed(rng, m=9), pca=pca, require={"condition_number": 1.001}))
    assert "condition_number is" in found.shortfalls[0]


def test_rows_that_do_not_fit_a_pca_are_refused(rng, tmp_path):
    pca = run(PCA(matrix=mixed(rng), n_components=3))
    with pytest.raises(BadData, match=r"The matrix has 3 columns, and 8 are needed: rows of the matrix that the PCA"):
        run(PCATransform(matrix=np.ones((5, 3)), pca=pca))
    with pytest.raises(BadData, match=r"The matrix has 8 columns, and 3 are needed: scores, one column for each"):
        run(PCATransform(matrix=np.ones((9, 8)), pca=pca, inverse=True))
    with pytest.raises(BadData, match=r"is of kind pseudoinverse, and `kind: pca_transform` needs one of kind pca"):
        run(PCATransform(matrix=np.ones((9, 8)), pca=run(Pseudoinverse(matrix=np.ones((9, 8))))))
