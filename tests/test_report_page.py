"""The HTML page, opened and clicked through in a headless browser; and what must hold of its text."""

import re
import shutil

import pytest

from dassl.report.base2new import base2new_sheet
from dassl.report.page import write_page
from dassl.report.results import load_results
from mergetune.report import METHODS, main
from tests.conftest import write_image
from tests.fixtures.runs import write_pairs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium or Chrome of this machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"install a Chromium (Debian: apt-get install chromium): none of {', '.join(BROWSERS)} is on the path"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def runs(tmp_path):
    """Two methods with different stamps on two data sets and two seeds."""
    write_pairs(tmp_path, {"toy_a": [(80, 60), (81, 61)], "toy_b": [(70, 50), (72, 52)]}, chosen_on="last_step")
    write_pairs(
        tmp_path,
        {"toy_a": [(80, 64), (81, 65)], "toy_b": [(70, 55), (72, 56)]},
        trainer="CoOp_LMC",
        preset="paper",
        chosen_on="validation",
    )
    return tmp_path


def visible_rows(page):
    return page.locator(".table tbody tr:visible").count()


def test_filters_and_links_in_a_browser(browser, runs):
    write_image(runs / "path_CoOp.png", seed=1)
    records = load_results(runs)
    file = write_page(runs / "page.html", [base2new_sheet(records, METHODS)], [runs / "path_CoOp.png"], records)
    page = browser.new_page()
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert visible_rows(page) == 6  # two methods in the average and two data sets
    page.select_option("#method", "CoOp")
    assert visible_rows(page) == 3
    page.select_option("#method", "")
    page.select_option("#dataset", "toy_b")
    assert visible_rows(page) == 2
    page.select_option("#stamp", "Checkpoint chosen on: validation")
    assert visible_rows(page) == 1
    link = page.locator(".table tbody tr:visible a").first
    assert link.inner_text() == "71.00 ± 1.00"
    link.click()
    opened = page.locator("#facts details[open]")
    assert opened.count() == 2  # the two seeds
    assert "CoOp_LMC, paper, toy_b, base, seed 1" in opened.first.inner_text()
    assert '"accuracy": 70' in opened.first.inner_text()
    assert page.evaluate("document.images[0].naturalWidth") > 0
    assert not errors
    assert all(url.startswith(("file:", "data:")) for url in asked)
    page.close()


def test_the_text_of_a_page_refers_to_nothing_outside(runs):
    records = load_results(runs)
    text = write_page(runs / "page.html", [base2new_sheet(records, METHODS)], [], records).read_text()
    assert not re.search(r"""(src|href)=["']?https?:""", text)
    numbers = {int(n) for links in re.findall(r'data-runs="([\d ]+)"', text) for n in links.split()}
    assert numbers == {int(n) for n in re.findall(r"<details id=run(\d+)>", text)} == set(range(16))


def test_names_cannot_become_markup(tmp_path):
    write_pairs(tmp_path, {"<script>alert(1)</script>": [(80, 60)]}, trainer='A" onclick="x', preset="")
    records = load_results(tmp_path)
    text = write_page(tmp_path / "page.html", [base2new_sheet(records, METHODS)], [], records).read_text()
    assert "<script>alert" not in text and 'A" onclick' not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_command_writes_it(runs):
    main([str(runs), "--html", str(runs / "report" / "page.html")])
    assert "Base-to-new accuracy" in (runs / "report" / "page.html").read_text()
