"""What the project promises about itself: how it is set up, packaged, pinned and deployed."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", LOCK, re.MULTILINE))


# -- the Makefile


@pytest.fixture
def bare(tmp_path):
    """A copy of the project's Makefile on a machine with make's tools and no Python at all."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "make", "sort", "cut", "head", "sed", "grep", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder, *arguments, **environment):
    environment = {"PATH": str(folder / "bin"), "HOME": str(folder), **environment}
    command = [str(folder / "bin" / "make"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_make_venv_without_a_python_is_a_letter_that_says_what_to_do(bare):
    done = make(bare, "venv")
    assert done.returncode == 2
    assert "No Python 3.12 or newer was found: not on the PATH, not in ~/.pyenv/versions." in done.stderr
    assert "The newest that works here is: none." in done.stderr
    assert "make venv PYTHON=/path/to/python3.13" in done.stderr
    assert not (bare / ".venv").exists()


def test_an_old_python_is_named_in_the_letter(bare):
    executable(bare / "bin" / "python3", "echo 3011007 3.11.7 /usr/bin/python3")
    done = make(bare, "venv")
    assert done.returncode == 2
    assert "The newest that works here is: 3.11.7 /usr/bin/python3." in done.stderr


def test_a_python_that_was_asked_for_and_is_too_old_is_not_replaced_by_another(bare):
    (bare / "bin" / "python3").symlink_to(sys.executable)
    executable(bare / "old", "echo 3011007 3.11.7 /old")
    done = make(bare, "python", f"PYTHON={bare / 'old'}")
    assert done.returncode == 2
    assert "No Python 3.12 or newer was found at PYTHON=" in done.stderr


def test_shims_that_fail_are_passed_over_and_the_newest_python_is_taken(bare):
    executable(bare / "bin" / "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    executable(bare / "bin" / "python3.12", "echo 3012001 3.12.1 /twelve")
    executable(bare / ".pyenv" / "versions" / "3.13.0" / "bin" / "python", "echo 3013000 3.13.0 /thirteen")
    assert make(bare, "python").stdout == "3.13.0 /thirteen\n"


def test_pyenv_may_live_elsewhere_in_a_folder_with_a_space(bare):
    executable(bare / "my pyenv" / "versions" / "3.12.9" / "bin" / "python", "echo 3012009 3.12.9 /nine")
    assert make(bare, "python", PYENV_ROOT=str(bare / "my pyenv")).stdout == "3.12.9 /nine\n"


def test_the_python_that_runs_these_tests_is_one_that_make_takes(bare):
    (bare / "bin" / "python3").symlink_to(sys.executable)
    assert make(bare, "python").stdout.startswith("{}.{}.{} ".format(*sys.version_info))


def test_make_alone_lists_every_target_with_a_line_of_help(bare):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    listed = re.findall(r"^  make ([a-z-]+) +\S", make(bare).stdout, re.MULTILINE)
    assert sorted(listed) == sorted(targets)
    assert set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)) == set(targets)


# -- the lock


def test_the_lock_holds_names_and_versions_only():
    entries = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
    odd = [line for line in entries if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [\w\s.'<>=!()]+)?", line)]
    assert odd == []


def test_the_lock_names_no_host_and_no_path_of_a_machine():
    assert re.findall(r"\S+://\S*|\S*@\S*|(?<![\w.])/\w\S*|--(?:extra-)?index\S*|--find-links\S*", LOCK) == []


def test_every_dependency_of_the_project_is_pinned():
    extras = PROJECT["optional-dependencies"].values()
    wanted = PROJECT["dependencies"] + [needed for extra in extras for needed in extra]
    names = {
        re.match(r"[\w-]+", needed)[0].lower().replace("_", "-").replace("ruamel", "ruamel-yaml") for needed in wanted
    }
    assert names - PINS.keys() == set()


# -- the package


def test_the_wheel_owns_both_import_names_and_no_other(tmp_path):
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    names = zipfile.ZipFile(next(tmp_path.glob("tallgrass-*.whl"))).namelist()
    assert {name.split("/")[0] for name in names} == {
        "pipelines",
        "workers",
        f"tallgrass-{PROJECT['version']}.dist-info",
    }


def test_the_command_leads_to_a_function_that_exists():
    module, function = PROJECT["scripts"]["tallgrass"].split(":")
    code = f"import importlib; getattr(importlib.import_module({module!r}), {function!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_tests_are_no_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_exception_to_a_rule_has_its_reason():
    pattern = re.compile(r'^\s*"([A-Z]+\d+|D)",(.*)$', re.MULTILINE)
    ignores = (ROOT / "pyproject.toml").read_text().split("\nignore = [")[1].split("[tool.mypy]")[0]
    assert [code for code, rest in pattern.findall(ignores) if "#" not in rest] == []


# -- configuration and deployment


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_yaml_that_says_its_kind(path):
    assert "kind" in YAML(typ="safe").load(path)


def test_the_image_runs_without_privileges_and_without_modules_of_the_working_directory():
    dockerfile = (ROOT / "workers" / "Dockerfile").read_text()
    assert "PYTHONSAFEPATH=1" in dockerfile
    assert "requirements.lock" in dockerfile
    assert re.search(r"^USER (?!root)\w+$", dockerfile, re.MULTILINE)


def test_the_continuous_check_is_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"


# -- the flights, as the model for one's own data

FLIGHTS = """\
year,month,day,sched_dep_time,dep_delay,arr_delay,carrier,origin,dest,air_time,distance,hour,time_hour
2013,1,1,515,2,11,UA,EWR,IAH,227,1400,5,2013-01-01T10:00:00Z
2013,1,1,2359,25,30,B6,JFK,BQN,190,1576,23,2013-01-02T04:00:00Z
2013,1,2,600,,,UA,JFK,IAH,,1417,6,2013-01-02T11:00:00Z
"""
WEATHER = """\
origin,time_hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib
EWR,2013-01-01T10:00:00Z,39,26,59,270,10,,0,1012,10
JFK,2013-01-02T04:00:00Z,38,26,59,,3,,0,1012,10
"""


@pytest.fixture
def flights(tmp_path, monkeypatch):
    """The script's functions, on three flights and two hours of weather."""
    (tmp_path / "flights.csv").write_text(FLIGHTS)
    (tmp_path / "weather.csv").write_text(WEATHER)
    script = runpy.run_path(str(ROOT / "docs" / "examples" / "flights.py"))
    files = {"flights.csv.zip": tmp_path / "flights.csv", "weather.csv": tmp_path / "weather.csv"}
    monkeypatch.setitem(script["main"].__globals__, "data_file", files.get)
    return script


def test_the_flights_become_numbers_and_indicators_of_every_level(flights, tmp_path):
    flights["main"](tmp_path / "flights.zarr")
    group = zarr.open_group(tmp_path / "flights.zarr", mode="r")
    columns = group["A"].attrs["columns"]
    A = dict(zip(columns, group["A"][:].T, strict=True))
    np.testing.assert_array_equal(group["b"][:], [11, 30, np.nan])
    np.testing.assert_array_equal(A["departure_minutes"], [317, 24 * 60 + 24, np.nan])
    np.testing.assert_array_equal(A["carrier=B6"], [0, 1, 0])
    np.testing.assert_array_equal(A["carrier=UA"] + A["carrier=B6"], A["constant"])
    np.testing.assert_array_equal(A["wind_from=variable"], [0, 1, np.nan])
    assert group["A"].metadata.dimension_names == ("flight", "column")


def test_flights_that_cannot_be_written_leave_the_old_ones_and_nothing_half_done(flights, tmp_path, monkeypatch):
    flights["main"](tmp_path / "flights.zarr")
    monkeypatch.setitem(flights["main"].__globals__, "design_rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        flights["main"](tmp_path / "flights.zarr")
    assert zarr.open_group(tmp_path / "flights.zarr", mode="r")["A"].shape[0] == 3
    assert list(tmp_path.glob("flights.zarr.*")) == []


def test_flights_written_again_replace_the_old_ones(flights, tmp_path):
    flights["main"](tmp_path / "flights.zarr")
    flights["main"](tmp_path / "flights.zarr")
    assert zarr.open_group(tmp_path / "flights.zarr", mode="r")["A"].shape[0] == 3
    assert list(tmp_path.glob("flights.zarr.*")) == []
