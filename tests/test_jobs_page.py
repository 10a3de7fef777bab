"""The page "Jobs" of the dashboard: what it shows, looked at with a browser while jobs run."""

import shutil
import sys
import time

import httpx
import numpy as np
import pytest

from tests.served import Served, store_slow, wait_for
from workers import Client
from workers.dashboard import render, spectrum_of
from workers.lifecycle import State

NAME = 'a <script>alert("x")</script> job'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def job(**fields):
    return {
        "id": "abcdefgh23", "name": NAME, "kind": "svd", "state": "running", "attempt": 2, "submitted_at": time.time(),
        "started_at": time.time() - 61, "finished_at": None, "progress": None, "letter": "",
    } | fields  # fmt: skip


def passes(**fields):
    one = {"name": "factor", "rows": 25, "of_rows": 100, "bytes": 10**9, "of_bytes": 4 * 10**9, "tasks": 4}
    return [one | {"seconds": 10.0, "done": False} | fields]


def test_an_empty_page_says_what_to_do():
    assert "No jobs yet. Submit one:" in render({})


def test_what_a_running_job_does_is_on_the_page():
    progress = {"passes": passes(), "workers": 3, "memory_bytes": 2**30}
    page = render({"counts": {"running": 1}, "jobs": [job(progress=progress)]})
    for text in ("<h2>Running</h2>", "25 %, 100 MB/s, 0:30 left", "3 workers, 1.0 GiB in the fullest", "for 1:01",
                 "running, attempt 2", "width:25%"):  # fmt: skip
        assert text in page


def test_names_and_letters_are_text():
    page = render({"counts": {}, "jobs": [job(letter="<img src=x onerror=alert(1)>")]}, chosen='"><script>')
    assert "<script>" not in page
    assert "<img" not in page


def test_the_job_that_was_asked_for_comes_first_and_once():
    jobs = [job(id=f"abcdefgh2{number}", state="succeeded", finished_at=time.time()) for number in range(3)]
    page = render({"counts": {}, "jobs": jobs}, chosen="abcdefgh22")
    assert page.index("This job") < page.index('data-job="abcdefgh22"') < page.index("Finished")
    assert page.count('data-job="abcdefgh22"') == 1


def test_a_spectrum_is_thinned_and_drawn_from_the_largest_to_the_smallest():
    s = np.geomspace(1e5, 1e-5, 1000)
    thin = spectrum_of({"s": s})
    assert (len(thin) <= 61, thin[0], thin[-1]) == (True, s[0], s[-1])
    page = render({"counts": {}, "jobs": [job(progress={"passes": [], "workers": 0, "spectrum": thin})]})
    assert "<polyline" in page
    assert ">1e+05<" in page
    assert ">1e-05<" in page
    for none in ([], [3.0], [0.0, 0.0]):
        assert "<polyline" not in render({"counts": {}, "jobs": [job(progress={"passes": [], "spectrum": none})]})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("processes are told apart by Linux's means")
    folder = tmp_path_factory.mktemp("page")
    store_slow(folder / "A")
    with Served(folder, dashboard="auto") as server:
        yield server


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def test_a_browser_sees_a_job_run_and_end_without_loading_the_page_again(served, browser):
    with Client(served.url) as client:
        fields = {"kind": "svd", "matrix": f"{served.folder}/A", "vectors": "both"}
        made = client.submit(fields | {"output": f"{served.folder}/s.zarr"}, name=NAME)
        found = wait_for(lambda: (j := client.job(made.id)).state is State.RUNNING and j)
        served.freeze_workers()
        page = browser.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(found.dashboard)
        loaded = page.evaluate("performance.timeOrigin")
        card = page.locator(f'[data-job="{made.id}"]')
        card.wait_for()
        assert page.title() == "Tallgrass: Jobs"
        assert "chosen" in card.get_attribute("class")
        assert card.locator(".name").inner_text() == NAME
        assert card.locator(".state").inner_text() == "running"
        card.locator('[role="progressbar"]').first.wait_for()
        served.thaw_workers()
        card.get_by_text("succeeded").wait_for(timeout=60_000)
        assert card.locator('[role="progressbar"]').count() == 2
        assert card.locator("polyline").count() == 1
        assert "differs from your matrix by" in card.locator(".letter").inner_text()
        assert page.evaluate("performance.timeOrigin") == loaded
        link = card.get_by_text("report").get_attribute("href")
        assert NAME.replace("<", "&lt;").partition(">")[0] in httpx.get(link).text
        assert page.locator(".navbar a").nth(1).inner_text() == "Jobs"
        page.locator('.navbar a[href="groups"]').click()
        page.locator('.navbar a[href="jobs"]').click()
        card.wait_for()
        assert problems == []
        status = served.tallgrass("status", made.id).stdout
        assert f"dashboard {found.dashboard}" in status


def test_the_other_pages_are_as_they_were(served):
    with Client(served.url) as client:
        link = wait_for(lambda: next((one.dashboard for one in client.server().clusters), None), "a dashboard")
    for page in ("status", "workers", "tasks", "system", "profile", "graph", "groups", "info/main/workers.html", "jobs",
                 "health", "metrics"):  # fmt: skip
        answer = httpx.get(link.replace("status", page), follow_redirects=True)
        assert answer.status_code == 200, page
