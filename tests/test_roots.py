"""Where a server's jobs may read and write: every spelling of a place outside is refused."""

import os

import pytest

from pipelines.errors import PlanRefused
from pipelines.roots import check_inside


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "inner").symlink_to(tmp_path / "root" / "in")
    return str(tmp_path / "root")


@pytest.mark.parametrize("form", ["{root}/in", "{root}", "{root}/new/deep", "file://{root}/in", "{root}/in/../in",
                                  "{root}//in/", "{root}/inner"])  # fmt: skip
def test_what_lies_below_a_root_is_allowed(root, form):
    check_inside(form.format(root=root), [root])


@pytest.mark.parametrize("form", [
    "{out}", "{root}/../outside", "{root}/link/A", "{root}x", "file://{out}", "file://localhost{out}/A", "file://x{out}",
    "file://{root}/%2e%2e/outside", "file://{out}/A#/../../../../..{root}/A", "file://{out}/A?/../../..{root}/A",
    "FILE://{root}/in", "file:{root}/in", "file:///{root}/../outside", "s3://bucket/in", "https://host/{root}", "/",
])  # fmt: skip
def test_what_lies_outside_is_refused_however_it_is_spelled(root, form, monkeypatch):
    monkeypatch.chdir(root)  # where relative places would lead inside
    url = form.format(root=root, out=os.path.join(os.path.dirname(root), "outside"))
    with pytest.raises(PlanRefused, match="is outside of what this server may read and write"):
        check_inside(url, [root])


@pytest.mark.parametrize(("url", "inside"), [
    ("s3://bucket/team", True), ("s3://bucket/team/A", True), ("s3://bucket/teams", False), ("s3://bucket", False),
    ("s3://bucket/team/../A", False), ("s3://bucket/team/%2e%2e/A", False), ("s3://bucket/team\\..\\A", False),
    ("s3://other/team/A", False), ("gs://bucket/team/A", False), ("/team", False), ("s3://bucket/team?x=../A", False),
])  # fmt: skip
def test_a_bucket_has_its_own_roots(url, inside):
    try:
        check_inside(url, ["s3://bucket/team"])
    except PlanRefused:
        assert not inside
    else:
        assert inside
