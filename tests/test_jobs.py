"""What a job may say: documented fields, distinct rows and columns, an output apart from its input."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.jobs import PCA, QR, SVD, Apply, ArraySource, Job, LeastSquares, Pseudoinverse
from pipelines.jobs.base import as_source
from pipelines.jobs.least_squares import Require
from pipelines.jobs.pca import RequirePCA
from pipelines.jobs.pseudoinverse import RequirePseudoinverse
from pipelines.jobs.qr import RequireQR
from pipelines.jobs.svd import Relative, RequireSVD
from pipelines.jobs.synthetic import FromSeed, RhsFromSeed, SyntheticMatrix, SyntheticNoise
from pipelines.load import job_schema, kinds_of, load_job
from pipelines.methods.options import Tsqr

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = kinds_of(Job)


def job(**fields):
    return LeastSquares(**({"matrix": "data/x.zarr/A", "rhs": "data/x.zarr/b", "output": "results/x"} | fields))


def test_a_job_has_the_defaults_that_its_fields_state():
    assert job().model_dump(exclude={"matrix", "rhs", "output"}) == {
        "kind": "least_squares",
        "method": "auto",
        "rtol": "auto",
        "ridge": 0.0,
        "weights": None,
        "nan": "error",
        "missing_chunks": "error",
        "fingerprint": "stat",
        "verify": True,
        "dtype": "auto",
        "arrays": (),
        "require": Require().model_dump(),
        "overwrite": False,
        "no_progress_timeout": 600.0,
        "checkpoints": True,
        "storage_options": {},
    }


MODELS = [LeastSquares, QR, SVD, PCA, Pseudoinverse, Relative]
MODELS += [Require, RequireQR, RequireSVD, RequirePCA, RequirePseudoinverse]


@pytest.mark.parametrize("model", [*MODELS, ArraySource, Tsqr, FromSeed, RhsFromSeed, SyntheticMatrix, SyntheticNoise])
def test_every_field_is_documented(model):
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_a_job_is_frozen_and_takes_no_other_fields():
    with pytest.raises(ValidationError, match="frozen"):
        job().rtol = 0.1
    with pytest.raises(ValidationError, match="Extra inputs"):
        job(tolerance=0.1)


def test_an_array_of_python_stands_in_for_a_stored_one_and_is_described_in_json():
    values = np.zeros((4, 2), "float32")
    described = json.loads(job(matrix=values).model_dump_json())
    assert job(matrix=values).matrix is values
    assert described["matrix"] == {"array": "numpy.ndarray", "shape": [4, 2], "dtype": "float32"}


def test_what_is_no_array_is_refused():
    with pytest.raises(ValidationError, match=r"a path or URL, or \{url: "):
        job(matrix=[[1, 2], [3, 4]])


def test_a_path_is_an_array_too_and_every_stored_array_has_a_source():
    assert job(matrix=Path("data/y.zarr/A")).matrix == "data/y.zarr/A"
    assert as_source("a") == ArraySource(url="a")
    assert as_source(ArraySource(url="a", rows=(0, 2))).rows == (0, 2)


@pytest.mark.parametrize("rows", [[3, 3], [5, 2], [-1, 4]])
def test_rows_are_a_range_from_start_to_stop(rows):
    with pytest.raises(ValidationError, match="0 <= start < stop"):
        ArraySource(url="a", rows=rows)


def test_columns_are_indices_in_any_order_and_none_twice():
    assert ArraySource(url="a", columns=[3, 0, 1]).columns == (3, 0, 1)
    with pytest.raises(ValidationError, match="each column once; 3 stands there twice"):
        ArraySource(url="a", columns=[3, 0, 3])
    with pytest.raises(ValidationError, match="counted from 0; -1 at position 1 is below 0"):
        ArraySource(url="a", columns=[3, -1])


@pytest.mark.parametrize(
    "output",
    [
        "data/x.zarr/A",
        "data/x.zarr/A/x",
        "data/./y/../x.zarr/A",
        "file://" + str(Path("data/x.zarr/A").absolute()),
    ],
)
def test_an_output_inside_the_input_is_refused(output):
    with pytest.raises(ValidationError, match=r"an output outside the input; .* lies inside matrix"):
        job(output=output)


def test_an_output_that_would_replace_its_input_is_refused():
    with pytest.raises(
        ValidationError, match=r"matrix, data/x\.zarr/A, lies inside data/x\.zarr and would be replaced"
    ):
        job(output="data/x.zarr")
    with pytest.raises(ValidationError, match="weights, results/x/w, lies inside results/x"):
        job(weights="results/x/w")
    with pytest.raises(ValidationError, match="lies inside matrix"):
        job(matrix="s3://bucket/a", output="s3://bucket/./a/x")


def test_an_output_beside_the_input_is_welcome():
    assert job(output="data/x.zarr/x").output == "data/x.zarr/x"
    assert job(matrix="data/AB", output="data/A").output == "data/A"


def test_true_is_no_number():
    with pytest.raises(ValidationError, match="a number"):
        job(ridge=True)


def test_a_required_error_needs_the_verifying_pass():
    with pytest.raises(ValidationError, match="verify: true, since only the verifying pass measures backward_error"):
        job(verify=False, require={"backward_error": 1e-12})
    assert job(verify=False, require={"rank": "full"}).require.rank == "full"


def test_each_array_is_asked_for_once():
    with pytest.raises(ValidationError, match="each array once"):
        job(arrays=["R", "R"])


def test_the_name_of_a_method_is_short_for_the_method_with_its_defaults():
    assert job(method="tsqr").method == Tsqr() == job(method={"name": "tsqr"}).method


def test_the_schema_in_configs_is_current():
    stored = json.loads((CONFIGS / "schema.json").read_text())
    assert stored == job_schema(), "run `tallgrass schema > configs/schema.json`"


def test_the_schema_asks_for_what_a_file_must_say_and_hides_what_only_python_can():
    definitions = job_schema()["$defs"]
    assert definitions["LeastSquares"]["required"] == ["kind", "matrix", "rhs", "output"]
    for kind in KINDS.values():
        schema = definitions[kind.__name__]
        assert {"kind", "operator" if kind is Apply else "matrix", "output"} <= set(schema["required"])
        assert schema["additionalProperties"] is False
        if kind is Apply:
            assert schema["properties"]["operator"]["type"] == "string"
            continue
        assert [set(choice) & {"type", "$ref"} for choice in schema["properties"]["matrix"]["oneOf"]] == [
            {"type"},
            {"$ref"},
            {"$ref"},
        ]
        assert all(field["description"] for name, field in schema["properties"].items())


@pytest.mark.parametrize("path", sorted((CONFIGS / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_job_and_names_its_schema(path):
    load_job(path)
    assert path.read_text().startswith("# yaml-language-server: $schema=../schema.json\n")


@pytest.mark.parametrize("kind", KINDS)
def test_the_commented_example_has_every_field_in_order_at_its_default(kind):
    path, model = CONFIGS / "jobs" / f"{kind}.yaml", KINDS[kind]
    written = [line.partition(":")[0] for line in path.read_text().splitlines() if line[:1].isalpha()]
    example = load_job(path)
    given = {
        name: getattr(example, name)
        for name in ("matrix", "rhs", "output", "rank", "operator", "compute", "pca")
        if hasattr(example, name)
    }
    assert written == list(model.model_fields)
    assert example == model(**given)
    for name in type(example.require).model_fields:
        assert f"{name}: " in path.read_text()


def test_the_example_of_least_squares_shows_the_options_of_its_method():
    text = (CONFIGS / "jobs" / "least_squares.yaml").read_text()
    assert all(f"{name}: " in text for name in Tsqr.model_fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "svd", "values": 0}, "values"),
        ({"kind": "svd", "values": {"tolerance": 1.5}}, "less than 1"),
        ({"kind": "svd", "vectors": "left"}, "'none', 'right' or 'both'"),
        ({"kind": "pca", "n_components": 0}, "n_components"),
        ({"kind": "pca", "n_components": 1.5}, "n_components"),
        ({"kind": "pca", "n_components": 1.0}, "a whole number, a fraction of the variance below 1, or all"),
        ({"kind": "pca", "nan": "drop"}, "'error', 'omit_rows' or 'mean'"),
        ({"kind": "qr", "form": "q"}, "'r', 'explicit' or 'implicit'"),
        ({"kind": "pseudoinverse", "rank": 0}, "greater than or equal to 1"),
        ({"kind": "pseudoinverse", "rank": 3, "ridge": 1.0}, "a ridge or a rank, not both"),
        ({"kind": "pseudoinverse", "side": "left", "ridge": 1.0}, "side: any, since with a ridge"),
        ({"kind": "pseudoinverse", "output": "data/A/x"}, "an output outside the input"),
    ],
)
def test_what_a_job_may_not_say(fields, message):
    with pytest.raises(ValidationError, match=message):
        KINDS[fields["kind"]](**{"matrix": "data/A", "output": "results/x"} | fields)
