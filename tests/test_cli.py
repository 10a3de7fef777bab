"""The command line: data on stdout, letters on stderr, an exit code for each outcome, and no waiting for imports."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from pipelines import errors
from pipelines.progress import Note, PassFinished, PassProgress, PassStarted
from workers import clusters, commands
from workers.cli import main
from workers.terminal import Lines, live_bars, watching

GOOD = "kind: least_squares\nmatrix: data/A\nrhs: data/b\noutput: results/x\n"
HEAVY = {"numpy", "scipy", "zarr", "dask", "distributed", "rich", "obstore", "bokeh"}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def tallgrass(tmp_path, monkeypatch):
    """Runs a command in an empty directory that holds job.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(GOOD)
    return lambda *words: CliRunner().invoke(main, words, prog_name="tallgrass")


@pytest.fixture
def fake_run(monkeypatch):
    """`run` without a cluster: what execute() raises or returns is set by the test."""
    import pipelines.execute

    outcome = SimpleNamespace(error=None, shortfalls=(), events=())

    def execute(job, client, listener, resources, *, restart):
        for event in outcome.events:
            listener(event)
        if outcome.error:
            raise outcome.error
        summary = {
            "job": {"output": job.output},
            "certificate": {"statement": "Trust it.", "condition_number": float("inf")},
        }
        return SimpleNamespace(summary=summary, shortfalls=outcome.shortfalls)

    @contextmanager
    def open_cluster(model, spans):
        yield SimpleNamespace(dashboard_link="http://127.0.0.1:8787/status", status="running", scheduler=None)

    monkeypatch.setattr(pipelines.execute, "run", execute)
    monkeypatch.setattr(clusters, "open_cluster", open_cluster)
    monkeypatch.setattr(commands, "_spans", lambda job, cluster: 4)
    return outcome


def test_check_says_that_a_job_file_is_right(tallgrass):
    result = tallgrass("check", "job.yaml")
    assert (result.exit_code, result.stdout) == (0, "job.yaml: a valid least_squares job\n")
    assert result.stderr == "next: tallgrass plan job.yaml\n"


def test_check_gives_the_job_to_scripts_with_its_overrides(tallgrass):
    result = tallgrass("check", "job.yaml", "--json", "--set", "rtol=1e-8")
    assert json.loads(result.stdout)["job"]["rtol"] == 1e-8
    assert result.stderr == ""


def test_a_wrong_job_file_is_told_on_stderr_with_exit_code_2(tallgrass):
    result = tallgrass("check", "job.yaml", "--set", "rtoll=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'rtoll: there is no such field. Did you mean "rtol"?' in result.stderr


def test_under_json_an_error_is_the_one_document_on_stdout(tallgrass):
    result = tallgrass("check", "elsewhere/x.yaml", "--json")
    assert json.loads(result.stdout) == {
        "error": {"kind": "JobFileError", "message": "elsewhere/x.yaml: there is no such file.", "exit_code": 2}
    }
    assert result.stderr == "elsewhere/x.yaml: there is no such file.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chek"], "tallgrass: No such command 'chek'."),
        (["check"], "tallgrass check: Missing argument 'JOB'."),
        (["check", "job.yaml", "--jsn"], "tallgrass check: No such option '--jsn'"),
        (["plan", "job.yaml", "--workers", "0"], "tallgrass plan: Invalid value for '--workers'"),
        (["completion", "tcsh"], "tallgrass completion: Invalid value for '{bash|zsh|fish}'"),
    ],
)
def test_a_wrong_command_gets_a_letter_and_exit_code_2(tallgrass, words, message):
    result = tallgrass(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert '--help".' in result.stderr


@pytest.mark.parametrize(
    "error", [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.TallgrassError]
)
def test_every_error_has_its_exit_code(tallgrass, fake_run, error):
    fake_run.error = error("Found 3. Needed 4. Add one.")
    result = tallgrass("run", "job.yaml", "--json")
    assert result.exit_code == error.exit_code
    assert "Found 3. Needed 4. Add one." in result.stderr
    assert json.loads(result.stdout)["error"]["kind"] == error.__name__


def test_exit_codes_are_those_that_help_lists(tallgrass):
    text = tallgrass("--help").stdout
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4, 5, 6, 7, 8, 9, 130}
    assert all(f" {kind.exit_code}  " in text for kind in kinds)


def test_an_interrupt_is_one_line_with_exit_code_130(tallgrass, fake_run):
    fake_run.error = KeyboardInterrupt()
    result = tallgrass("run", "job.yaml", "--quiet")
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted. No result was written."


def test_what_nobody_foresaw_is_a_letter_and_a_traceback_only_with_debug(tallgrass, monkeypatch):
    def broken(*_):
        raise KeyError("x")

    monkeypatch.setattr("pipelines.load.load_job", broken)
    result = tallgrass("check", "job.yaml")
    assert result.exit_code == 1
    assert result.stderr == (
        "something went wrong that Tallgrass did not foresee: KeyError: 'x'. "
        "Run it again with --debug for the traceback, and please report it.\n"
    )
    assert "Traceback" in tallgrass("check", "job.yaml", "--debug").stderr
    assert "Traceback" in tallgrass("--debug", "check", "job.yaml").stderr


def test_run_prints_the_answer_on_stdout_and_how_it_went_on_stderr(tallgrass, fake_run):
    fake_run.events = (PassStarted("factor", 1, 1000, 2**20, 1), PassFinished("factor", 1000, 2**20, 2.0))
    result = tallgrass("run", "job.yaml")
    assert result.stdout.startswith("Trust it.\n")
    assert result.stderr.splitlines() == [
        "dashboard: http://127.0.0.1:8787/status",
        "factor: 1,000 rows, 1.0 MiB, in 1 task",
        "factor: done, 1,000 rows in 0:02, 524 kB/s",
        "next: tallgrass show results/x",
    ]


def test_run_says_nothing_on_stderr_when_asked_to_be_quiet(tallgrass, fake_run):
    fake_run.events = (PassStarted("factor", 1, 1000, 2**20, 1),)
    assert tallgrass("run", "job.yaml", "--quiet").stderr == ""


def test_run_gives_scripts_one_document_without_infinities(tallgrass, fake_run):
    document = json.loads(tallgrass("run", "job.yaml", "--json").stdout)
    assert document["certificate"] == {"statement": "Trust it.", "condition_number": None}


def test_a_certificate_that_falls_short_is_printed_and_exits_with_8(tallgrass, fake_run):
    fake_run.shortfalls = ("rank is 3; 4 (full) is required",)
    result = tallgrass("run", "job.yaml")
    assert result.exit_code == 8
    assert result.stdout.startswith("Trust it.\n")
    assert "the certificate falls short: rank is 3; 4 (full) is required\n" in result.stderr
    document = json.loads(tallgrass("run", "job.yaml", "--json").stdout)
    assert document["certificate"]["statement"] == "Trust it."
    assert document["error"]["exit_code"] == 8


def test_plan_answers_for_a_cluster_that_does_not_exist(tallgrass, monkeypatch):
    from pipelines.plan import Resources

    seen = []

    def make_plan(job, resources):
        seen.append(resources)
        return SimpleNamespace(to_dict=lambda: {"kind": job.kind, "workers": resources.workers})

    monkeypatch.setattr("pipelines.plan.make_plan", make_plan)
    result = tallgrass("plan", "job.yaml", "--workers", "1000", "--threads", "2", "--memory", "16 GiB", "--json")
    assert json.loads(result.stdout) == {"kind": "least_squares", "workers": 1000}
    assert seen == [Resources(1000, 2, 16 * 2**30)]


def test_plan_says_that_a_run_would_be_refused_for_its_output(tallgrass, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.plan.make_plan", lambda *_: SimpleNamespace(to_dict=dict))
    monkeypatch.setattr("pipelines.report.render_plan", lambda _: "a plan")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x").write_text("mine")
    result = tallgrass("plan", "job.yaml")
    assert (result.exit_code, result.stdout) == (0, "a plan\n")
    assert "note: a run would be refused now. The output results/x exists and is not a result" in result.stderr


def test_plan_refuses_memory_that_can_be_read_in_two_ways(tallgrass):
    result = tallgrass("plan", "job.yaml", "--memory", "16G")
    assert result.exit_code == 2
    assert '--memory: found "16G", which can be read in two ways; needed "16 GiB"' in result.stderr


def test_plan_takes_a_cluster_file_and_names_its_mistakes(tallgrass, tmp_path):
    (tmp_path / "cluster.yaml").write_text("kind: local\nthread: 2\n")
    result = tallgrass("plan", "job.yaml", "--cluster", "cluster.yaml")
    assert result.exit_code == 2
    assert 'cluster.yaml:2: thread: there is no such field. Did you mean "threads"?' in result.stderr


def test_doctor_lists_what_it_found_and_what_to_do(tallgrass, monkeypatch):
    from workers import doctor

    findings = [doctor.Finding("disk", False, "1.0 GiB free", "Free 2.0 GiB.")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    result = tallgrass("doctor")
    assert (result.exit_code, result.stdout.split()[:3]) == (0, ["not", "ok", "disk"])
    assert json.loads(tallgrass("doctor", "--json").stdout)["ok"] is False


def test_doctor_measures_this_machine_when_asked(tallgrass, monkeypatch):
    from workers import doctor

    called = []
    monkeypatch.setattr(doctor, "examine", list)
    monkeypatch.setattr(doctor, "calibrate", lambda: called.append(True))
    assert tallgrass("doctor", "--calibrate").exit_code == 0
    assert called == [True]


def test_schema_prints_the_schema_in_configs(tallgrass):
    assert tallgrass("schema").stdout == (ROOT / "configs" / "schema.json").read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(tallgrass, shell):
    assert "_TALLGRASS_COMPLETE" in tallgrass("completion", shell).stdout


def test_completion_offers_commands(tmp_path):
    environment = {"_TALLGRASS_COMPLETE": "bash_complete", "COMP_WORDS": "tallgrass ch", "COMP_CWORD": "1"}
    result = CliRunner().invoke(main, [], env=environment, prog_name="tallgrass")
    assert result.stdout == "plain,check\n"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_examples(tallgrass, name):
    text = tallgrass(name, "--help").stdout
    assert f"tallgrass {name}" in text.partition("Examples:")[2]
    assert name in ("completion", "token") or "--json" in text


def test_without_a_command_the_help_is_printed(tallgrass):
    assert tallgrass().stdout == tallgrass("--help").stdout
    assert tallgrass("--version").stdout.startswith("tallgrass ")


def words_for_light_commands(folder):
    (folder / "job.yaml").write_text(GOOD)
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr" / "zarr.json").write_text(
        json.dumps({"attributes": {"tallgrass": {"schema": "result/1", "certificate": {"statement": "Trust it."}}}})
    )
    return [["--help"], ["check", "job.yaml"], ["show", "out.zarr"]]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["help", "check", "show"])
def test_light_commands_import_nothing_heavy(tmp_path, which):
    words = words_for_light_commands(tmp_path)[which]
    program = (
        "import sys; sys.argv[0] = 'tallgrass'\n"
        "from workers.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"assert not (found := {HEAVY!r} & set(sys.modules)), found"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.replace("next: tallgrass plan job.yaml\n", "")) == (0, "")


def test_lines_come_every_tenth_of_a_pass_and_never_within_two_seconds(capsys):
    lines = Lines()
    lines(PassStarted("factor", 1, 1000, 10**9, 10))
    for step in range(1, 41):
        lines(
            PassProgress(
                "factor",
                rows=20 * step,
                bytes=step * 2 * 10**7,
                seconds=0.5 * step,
                workers=2,
                memory_bytes=212 * 2**20,
            )
        )
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "factor: 1,000 rows, 954 MiB, in 10 tasks"
    assert told[1] == "factor: 10 % of 1,000 rows, 40.0 MB/s, 0:22 left, worker memory 212 MiB"
    assert len(told) == 1 + 8


def test_a_long_pass_says_something_every_minute(capsys):
    lines = Lines()
    lines(PassStarted("factor", 1, 10**6, 10**12, 10))
    for minute in range(1, 4):
        lines(
            PassProgress("factor", rows=minute, bytes=10**6 * minute, seconds=60.0 * minute, workers=2, memory_bytes=0)
        )
    assert len(capsys.readouterr().err.splitlines()) == 1 + 3


def test_bars_show_rows_speed_time_left_and_memory(capsys):
    with live_bars() as bars:
        bars(PassStarted("factor", 1, 400_000, 10**9, 10))
        bars(PassProgress("factor", rows=100_000, bytes=10**9, seconds=2.0, workers=2, memory_bytes=212 * 2**20))
        bars(Note("dashboard: http://x"))
    shown = " ".join(capsys.readouterr().err.split())
    assert "dashboard: http://x" in shown
    assert "100k of 400k rows, 500 MB/s, 0:06 left, worker 212 MiB" in shown


def test_a_finished_bar_says_how_long_it_took(capsys):
    with live_bars() as bars:
        bars(PassStarted("factor", 1, 400_000, 10**9, 10))
        bars(PassFinished("factor", 400_000, 2 * 10**9, 4.0))
    assert "400k rows in 0:04, 500 MB/s" in " ".join(capsys.readouterr().err.split())


def test_progress_is_plain_lines_where_there_is_no_terminal():
    with watching() as listener:
        assert isinstance(listener, Lines)


def test_the_library_names_what_it_offers_and_imports_it_when_used():
    import pipelines

    assert set(pipelines.__all__) <= set(dir(pipelines))
    assert all(getattr(pipelines, name) for name in pipelines.__all__)
    with pytest.raises(AttributeError, match="module 'pipelines' has no attribute 'lstsq'"):
        _ = pipelines.lstsq
