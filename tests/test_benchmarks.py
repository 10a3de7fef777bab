import re

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks draw: pip install 'tallgrass[bench]'")
pytest.importorskip("benchmarks.records", reason="the benchmarks are no part of the wheel")

from benchmarks import (
    factors,
    machine,
    memory,
    overheads,
    reading,
    records,
    scaling,
    scaling_report,
    speed,
    tables,
    variants,
)
from benchmarks.settings import ROOT, Settings

RECORD = {
    "machine": machine.describe(),
    "commands": {"run": {"median": 1.5}},
    "steps": {"plan": 0.01},
    "graph": {"chunks": 10, "bytes": 1e12, "tasks": 12, "seconds": 0.5},
}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A five-hundredth of the size, and two widths instead of four."""
    for module in (speed, variants):
        monkeypatch.setattr(module, "COLUMNS", (16, speed.NUMPY_COLUMNS))
    monkeypatch.setattr(memory, "SETTLE", 0.1)
    return Settings(tmp_path / "data", rounds=1, scale=1 / 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    "benchmark", [speed, variants, reading, factors, memory, overheads, scaling], ids=lambda module: module.__name__
)
def test_a_benchmark_measures_leaves_no_data_behind_and_becomes_a_table(benchmark, settings, tmp_path):
    name = benchmark.__name__.removeprefix("benchmarks.")
    record = {"machine": machine.describe()} | benchmark.measure(settings)
    records.save(name, record, tmp_path)
    assert list(settings.folder.iterdir()) == []
    assert re.search(r"^\| .*\d \|$", tables.table_of(name, records.load(name, tmp_path)), re.MULTILINE)
    for drawn, plot in ((memory, memory.plot), (scaling, scaling_report.plot)):
        if benchmark is drawn:
            plot(record, tmp_path / "plot.svg")
            assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_tables_go_between_their_markers_and_nowhere_else(tmp_path):
    records.save("overheads", RECORD, tmp_path)
    document = tmp_path / "README.md"
    document.write_text(
        "before\n<!-- table: overheads -->\nold\n<!-- end -->\n<!-- table: speed -->\nkept\n<!-- end -->\n"
    )
    assert tables.put_into(document, tmp_path) == ["overheads"]
    text = document.read_text()
    assert text.startswith("before\n<!-- table: overheads -->\n")
    assert text.endswith("<!-- end -->\n<!-- table: speed -->\nkept\n<!-- end -->\n")
    assert "old" not in text
    assert "| `tallgrass run` | 1.50 |" in text
    assert "From `benchmarks/results/overheads.json`" in text


def test_tables_written_twice_are_the_same(tmp_path):
    records.save("overheads", RECORD, tmp_path)
    document = tmp_path / "README.md"
    document.write_text("<!-- table: overheads -->\n<!-- end -->\n")
    texts = [(tables.put_into(document, tmp_path), document.read_text())[1] for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_tables_in_the_readme_are_those_of_the_records(name):
    record, readme = records.load(name, records.RESULTS), (ROOT / "README.md").read_text()
    if record is None or f"<!-- table: {name} -->" not in readme:
        pytest.skip("there is no record, or no place for it")
    assert tables.table_of(name, record) in readme
