"""Job files: every mistake is told with its file, line and dotted place, and the nearest right thing."""

# ruff: noqa: E501 - each letter stands here whole, in one line, as its reader sees it

import pytest

from pipelines.document import MOST_BYTES, parse_document
from pipelines.errors import JobFileError
from pipelines.load import load_file, load_job

GOOD = "kind: least_squares\nmatrix: data/A\nrhs: data/b\noutput: results/x\n"


@pytest.fixture
def job_file(tmp_path, monkeypatch):
    """Writes job.yaml into an empty directory and goes there."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "job.yaml").write_bytes(data)
        return "job.yaml"

    return write


def letter(path, *overrides):
    with pytest.raises(JobFileError) as caught:
        load_job(path, overrides)
    return str(caught.value)


def test_a_good_file_gives_a_job(job_file):
    job = load_job(job_file(GOOD + "rtol: 1e-8\nrequire: {rank: full}\n"))
    assert (job.matrix, job.rtol, job.require.rank) == ("data/A", 1e-8, "full")


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(job_file):
    path = job_file(GOOD + "rtol: nupy\nmethd: auto\nnan: omit\nrequire:\n  rank: ful\n")
    assert letter(path).splitlines() == [
        'job.yaml:5: rtol: found "nupy"; needed auto, numpy, scipy, gelsd or a number. Did you mean "numpy"?',
        'job.yaml:6: methd: there is no such field. Did you mean "method"?',
        'job.yaml:7: nan: found "omit"; needed error or omit_rows. Did you mean "omit_rows"?',
        'job.yaml:9: require.rank: found "ful"; needed full or a whole number. Did you mean "full"?',
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rtol: 1.5", "rtol: found 1.5; needed auto, numpy, scipy, gelsd or a number below 1"),
        ("rtol: -1", "rtol: found -1; needed auto, numpy, scipy, gelsd or a number of at least 0"),
        ("ridge: true", "ridge: found true; needed a number"),
        ("ridge: .inf", "ridge: found inf; needed a finite number"),
        ("ridge: [1]", "ridge: found [1]; needed a number"),
        ("verify: 3", "verify: found 3; needed true or false"),
        ("weights: 5", "weights: found 5; needed a path or URL, or {url: ..., rows: [start, stop], columns: [...]}"),
        ("weights: {url: w, rows: [0]}", "weights.rows[1]: is missing"),
        ("weights: {url: w, rows: [2, 1]}", "weights.rows: found [2, 1]; needed [start, stop] with 0 <= start < stop"),
        ("weights: {url: w, columns: 3}", "weights.columns: found 3; needed a list"),
        ("weights: {url: w, colums: [3]}", 'weights.colums: there is no such field. Did you mean "columns"?'),
        ("weights: {url: w, stride: 3}", "weights.stride: there is no such field. Known: url, rows, columns"),
        ("weights: {rows: [0, 1]}", "weights.url: is missing; needed: Path or URL of the array: the array itself, not the group that holds it."),
        ("method: null", "method: found nothing; needed auto, tsqr, cholesky_qr or gram"),
        ("method: tsrq", 'method: found "tsrq"; needed auto, tsqr, cholesky_qr or gram. Did you mean "tsqr"?'),
        ("method: {name: tsrq}", 'method.name: found "tsrq"; needed auto, tsqr, cholesky_qr or gram. Did you mean "tsqr"?'),
        ("method: {block: 8}", "method: found a mapping; needed auto, or a name among the options: {name: tsqr | cholesky_qr | gram, ...}"),
        ("method: {name: tsqr, block: 0}", "method.block: found 0; needed auto or a number of at least 1"),
        ("method: {name: tsqr, blok: 8}", 'method.blok: there is no such field. Did you mean "block"?'),
        ("method: {name: tsqr, slab_bytes: 1M}", 'method.slab_bytes: found "1M"; needed auto or "1 MiB" (powers of 1024) or "1 MB" (of 1000)'),
        ("arrays: [R, Q]", 'arrays[1]: found "Q"; needed R or singular_values'),
        ("require: {condition_number: 0}", "require.condition_number: found 0; needed a number of at least 1"),
        ("require: full", 'require: found "full"; needed a mapping (name: value)'),
        ("no_progress_timeout: 12:30:00", 'no_progress_timeout: found "12:30:00"; needed a time with its unit, such as "12h30m" or "90s"'),
        ("output: other", 'found "output" a second time; the first is on line 4. Keep one of them'),
        ("weights: &w data/w", "found the anchor &w; write the value out where it is needed"),
        ("weights: *w", "found the alias *w; write the value out"),
        ("weights: !!python/name:os.system x", "found the tag tag:yaml.org,2002:python/name:os.system; needed plain values, without tags"),
        ("ridge:\t1\n\tx: 1", "found a tab at the start of a line or value; YAML needs spaces"),
        ("[a, b]: 1", "found a list or mapping as a key; needed text"),
        ("weights: data: w", 'found a second ":" in one line; put text that holds ": " between quotes'),
        ("---\nkind: x", "found a second document after ---; needed one"),
        ("weights: " + "[" * 30 + "]" * 30, "found more than 20 levels of nesting"),
        ("weights: [1", "is not YAML: "),
    ],
)  # fmt: skip
def test_a_mistake_gets_its_own_letter(job_file, line, expected):
    assert expected in letter(job_file(GOOD + line + "\n"))
    assert letter(job_file(GOOD + line + "\n")).startswith("job.yaml:5: ") or line.startswith(
        ("---", "[", "ridge:\t", "weights: [1")
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("kind: least_squares\n", ""), "job.yaml:1: kind: is missing; needed one of: least_squares"),
        (GOOD.replace("least_squares", "least_square"), 'job.yaml:1: kind: found "least_square", no known kind. Did you mean "least_squares"?'),
        (GOOD.replace("output: results/x\n", ""), "job.yaml:1: output: is missing; needed: Path or URL of the result"),
        (GOOD.replace("rhs: data/b\n", ""), "job.yaml:1: rhs: is missing; needed: b, shape (m,) or (m, k)"),
        (GOOD.replace("results/x", "data/A/x"), 'job.yaml:4: output: found "data/A/x"; needed an output outside the input'),
        ("", 'job.yaml: found an empty file; needed fields, first "kind: least_squares"'),
        ("# nothing\n", 'found an empty file; needed fields, first "kind: least_squares"'),
        ("- kind: x\n", 'job.yaml:1: found [a mapping]; needed fields, first "kind: least_squares"'),
        ("kind\n", 'job.yaml:1: found "kind"; needed fields'),
        (b"kind: \xff\xfe\n", "job.yaml:1: is not UTF-8 text (byte 0xff at position 6); save the file as UTF-8"),
        (b"\x00\x01\x02", "job.yaml: is not YAML text"),
        (b"#" * (MOST_BYTES + 1), "job.yaml: is larger than 1.0 MiB, the most that such a file may hold"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_job_is_refused(job_file, text, expected):
    assert expected in letter(job_file(text))


def test_a_file_that_is_not_there_is_named_with_its_nearest_neighbour(job_file):
    job_file(GOOD)
    assert letter("jobb.yaml") == 'jobb.yaml: there is no such file. Did you mean "job.yaml"?'
    assert letter("nowhere/job.yaml") == "nowhere/job.yaml: there is no such file."
    assert letter(".") == ".: is a directory; needed a YAML file"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-8", 1e-8), ("010", 10), ("0o10", 8), ("0x10", 16), ("12:30:00", "12:30:00"), ("no", "no"), ("on", "on"),
     ("true", True), ("~", None), ("", None), ("2026-01-01", "2026-01-01"), ("'1'", "1"), (".inf", float("inf")),
     ("-.5", -0.5), ("1_000", "1_000"), ("+3", 3), ("1.", 1.0), ("0b1", "0b1"), ("<<", "<<")],
)  # fmt: skip
def test_scalars_follow_the_core_of_yaml_1_2(text, value):
    found = parse_document(f"a: {text}\n", "x").value["a"]
    assert (found, type(found)) == (value, type(value))


def test_a_byte_order_mark_is_no_part_of_the_file(job_file):
    assert load_job(job_file(b"\xef\xbb\xbf" + GOOD.encode())).kind == "least_squares"


def test_overrides_are_read_like_the_file_and_applied_in_order(job_file):
    overrides = (
        "rtol=1e-8",
        "require.rank=full",
        "matrix={url: data/A, rows: [0, 5]}",
        "matrix.rows[1]=9",
        "rtol=numpy",
    )
    job = load_job(job_file(GOOD), (*overrides, "arrays[0]=R", "overwrite=yes"))
    assert (job.rtol, job.require.rank, job.matrix.rows) == ("numpy", "full", (0, 9))
    assert (job.arrays, job.overwrite) == (("R",), True)


def test_an_override_can_give_what_the_file_lacks_and_mend_what_is_wrong(job_file):
    path = job_file("kind: least_squares\nmatrix: data/A\nrhs: 5\n")
    assert load_job(path, ("output=o", "rhs=data/b")).output == "o"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rtoll=3", '--set rtoll=3: rtoll: there is no such field. Did you mean "rtol"?'),
        ("rtol=fast", '--set rtol=fast: rtol: found "fast"; needed auto, numpy, scipy, gelsd or a number'),
        ("kind=least", '--set kind=least: kind: found "least", no known kind. Did you mean "least_squares"?'),
        ("rtol", "--set rtol: needed place=value, such as rtol=1e-10 or require.rank=full"),
        ("=3", "--set =3: needed place=value"),
        ("a..b=3", "--set a..b=3: needed place=value"),
        ("arrays[2]=R", "--set arrays[2]=R: arrays: found nothing; needed a list that reaches [2]"),
        ("matrix.rows=[0, 1]", '--set matrix.rows=[0, 1]: matrix: found "data/A", which has no fields; set it as a whole'),
        ("rhs=[", "--set rhs=[: rhs: is not YAML: "),
        ("rhs=*a", "--set rhs=*a: rhs: found the alias *a; write the value out"),
        ("output=", "output: is missing"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_instead_of_a_line(job_file, override, expected):
    assert expected in letter(job_file(GOOD), override)


def test_any_union_of_models_with_a_kind_can_be_loaded(job_file):
    from typing import Annotated, Literal

    from pydantic import Field

    from pipelines.fields import Model

    class Near(Model):
        kind: Literal["near"] = "near"

    class Far(Model):
        kind: Literal["far"] = "far"
        address: str

    models = Annotated[Near | Far, Field(discriminator="kind")]
    assert load_file(job_file("kind: far\naddress: x\n"), models) == Far(address="x")
    with pytest.raises(JobFileError, match=r"job.yaml:1: address: is missing"):
        load_file(job_file("kind: far\n"), models)
    with pytest.raises(JobFileError, match=r'found "fare", no known kind. Did you mean "far"\?'):
        load_file(job_file("kind: fare\n"), models)


def test_a_fault_of_a_part_is_told_once_and_not_as_one_of_the_whole(job_file):
    text = "kind: svd\nmatrix: A\noutput: s\nvalues: {tolerance: 0}\n"
    assert letter(job_file(text)) == "job.yaml:4: values.tolerance: found 0; needed a number above 0"
    text = "kind: apply\noperator: P\noutput: s\ncompute: [Leverage]\n"
    assert letter(job_file(text)).count("\n") == 0
