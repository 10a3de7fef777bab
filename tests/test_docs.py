"""The documentation runs: its code, its job files, its commands and its names are checked against the product."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from ruamel.yaml import YAML

from pipelines.errors import TallgrassError
from pipelines.jobs import LeastSquares
from workers.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_each_python_block_of_the_readme_runs(code, tmp_path):
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "print(" not in code or "exact least-squares solution" in ran.stdout


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_job_of_the_readme_is_valid(text):
    assert LeastSquares.model_validate(YAML(typ="safe").load(text)).output


def test_each_command_that_the_readme_shows_exists_and_each_command_is_shown():
    shown = set(re.findall(r"^tallgrass (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE))
    assert shown == set(main.list_commands(click.Context(main)))


def test_each_exit_code_of_the_product_is_in_the_readme():
    codes = {error.exit_code for error in TallgrassError.__subclasses__()} | {0}
    table = README.partition("| code | meaning |")[2].partition("\n\n")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    assert codes == listed


def test_each_file_that_the_readme_links_to_exists():
    links = re.findall(r"\]\(([\w/.-]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_each_make_target_that_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+) ", README, flags=re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


@pytest.mark.parametrize(("folder", "light"), [
    ("pipelines", {"__init__", "__pycache__", "errors", "execute", "progress", "units"}),
    ("workers", {"__init__", "__pycache__", "cli", "cluster_doctor", "commands", "doctor", "findings", "forked",
                 "output", "places", "render",
                 "report", "sweep", "templates", "terminal"}),
])  # fmt: skip
def test_each_room_of_the_architecture_exists_and_each_module_has_a_room(folder, light):
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    rows = re.findall(rf"^\| (`{folder}/.*?) \|", text, flags=re.MULTILINE)
    rooms = {name.removeprefix(f"{folder}/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    modules = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules - rooms - light == set()
    assert rooms - modules == set()
