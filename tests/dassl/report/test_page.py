"""The HTML page, opened and clicked through in a headless browser; and what must hold of its text."""

import json
import re

import pytest

from dassl.report.page import write_page
from dassl.report.protocols.base2new import base2new_report
from dassl.report.protocols.mtil import mtil_report
from dassl.report.protocols.transfer import transfer_report
from dassl.report.records import load_results
from mergetune.report import METHODS, main
from tests.conftest import BROWSERS, find_browser, write_image
from tests.fixtures.runs import write_pairs, write_run


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium or Chrome of this machine."""
    path = find_browser()
    assert path, f"install a Chromium (Debian: apt-get install chromium): none of {', '.join(BROWSERS)} is on the path"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
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
    file = write_page(runs / "page.html", [base2new_report(records, METHODS)], [runs / "path_CoOp.png"], records)
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


def open_page(browser, file):
    page = browser.new_page()
    page.goto(file.as_uri())
    return page


def columns(page):
    """Names of the columns that are shown, of all tables."""
    return page.locator(".table thead th:visible").all_inner_texts()


def test_a_data_set_is_a_table_or_a_column(browser, runs):
    for target, accuracy in (("toy_a", 60), ("toy_b", 50), ("toy_c", 40)):
        fields = {"dataset": target, "subset": "all", "protocol": "cross", "source": "toy_a"}
        write_run(runs / "cross" / target, accuracy=accuracy, **fields)
    records = load_results(runs)
    reports = [base2new_report(records, METHODS), transfer_report(records, "cross", METHODS)]
    page = open_page(browser, write_page(runs / "page.html", reports, [], records))
    assert page.locator("#dataset option").all_inner_texts() == ["all", "toy_a", "toy_b", "toy_c"]
    page.select_option("#dataset", "toy_b")
    assert page.locator(".table h3:visible").all_inner_texts() == ["toy_b", "Trained on toy_a"]
    assert columns(page) == ["method", "base", "new", "H", "n", "method", "toy_b", "Avg-C", "n"]
    page.select_option("#dataset", "toy_c")
    assert page.locator(".sheet h2:visible").all_inner_texts() == [reports[1].heading]
    page.click("text=Show all")
    page.wait_for_function("document.querySelectorAll('.hidden').length === 0")
    assert columns(page)[-6:] == ["method", "toy_a", "toy_b", "toy_c", "Avg-C", "n"]
    page.close()


def test_a_stream_is_filtered_by_method_and_task_and_its_cells_have_links(browser, tmp_path):
    for trainer, plus in (("ConDU", 0), ("sequential", -5)):
        rows = [[80 + plus, 30], [70, 90]]
        matrix = {"tasks": ["a", "b"], "accuracy": rows, "transfer": [None, 30], "last": rows[1]}
        matrix["average"] = [75 + plus / 2, 60]
        metrics = {"transfer": 30, "average": 67.5 + plus / 4, "last": 80}
        fields = {"protocol": "mtil", "tasks": ["a", "b"], "order": "I", "matrix": matrix, "metrics": metrics}
        write_run(tmp_path / trainer, trainer, "stream I", "all", preset="", **fields)
    records = load_results(tmp_path)
    page = open_page(browser, write_page(tmp_path / "page.html", [mtil_report(records, "mtil", METHODS)], [], records))
    assert page.locator("#dataset option").all_inner_texts() == ["all", "a", "b"]
    page.select_option("#method", "ConDU")
    titles = page.locator(".table h3:visible").all_inner_texts()
    assert "ConDU, accuracy after each task: order I" in titles and not any("Sequential" in title for title in titles)
    page.select_option("#dataset", "b")
    table = page.locator(".table:visible", has_text="accuracy after each task")
    assert table.locator("td:visible").all_inner_texts() == ["30.0", "90.0"]
    table.locator("td a:visible").last.click()
    opened = page.locator("#facts details[open]")
    assert opened.count() == 1 and "ConDU" in opened.inner_text() and '"last": 80' in opened.inner_text()
    page.close()


def test_runs_open_beside_their_cell_and_close_again(browser, runs):
    for seed in range(3, 9):
        write_run(runs / f"more{seed}", dataset="toy_a", seed=seed, accuracy=80, chosen_on="last_step")
    records = load_results(runs)
    page = open_page(browser, write_page(runs / "page.html", [base2new_report(records, METHODS)], [], records))
    page.locator(".table[data-dataset=toy_a] tbody a").first.click()
    assert page.locator("#facts details:visible").count() == 8
    assert page.locator("#facts details[open]").count() == 0  # many are listed
    page.locator("#facts details:visible summary").nth(3).click()
    page.wait_for_selector("#facts details[open] table")
    assert "chosen_on" in page.locator("#facts details[open]").inner_text()
    assert page.locator("#facts").bounding_box()["height"] < page.viewport_size["height"] / 2
    page.keyboard.press("Escape")
    assert page.locator("#facts details.behind").count() == page.locator("#facts details[open]").count() == 0
    page.close()


def test_a_page_of_500_runs_stays_small(tmp_path):
    scores = {f"toy_{k}": [(80 + s / 7, 60 + s / 7) for s in range(5)] for k in range(10)}
    versions = dict.fromkeys(("python", "torch", "torchvision", "numpy", "scipy"), "1.2.3")
    for trainer in ("CoOp", "KgCoOp", "MultiModalAdapter", "PromptKD", "PromptSRC"):
        write_pairs(tmp_path, scores, trainer=trainer)
    for file in tmp_path.rglob("results.json"):
        more = {"versions": versions, "command": f"python train.py --output-dir {file}", "history": [{"epoch": 1}] * 99}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    records = load_results(tmp_path)
    file = write_page(tmp_path / "page.html", [base2new_report(records, METHODS)], [], records)
    assert len(records) == 500 and file.stat().st_size < 700_000
    assert "history" not in file.read_text()


def test_figures_have_captions_and_the_parts_have_links(runs):
    write_image(runs / "path_CoOp.png", seed=1)
    (runs / "path_CoOp.csv").write_text("t")
    records = load_results(runs)
    files = [runs / "path_CoOp.png", runs / "path_CoOp.csv"]
    text = write_page(runs / "page.html", [base2new_report(records, METHODS)], files, records).read_text()
    assert text.count("<figure>") == 1 and "path CoOp (numbers: path_CoOp.csv)" in text
    targets = re.findall(r'<a href="#([\w-]+)">', text.split("<form")[0])
    assert targets == ["sheet-base2new", "figures"] and all(f"id={target}" in text for target in targets)


def test_the_text_of_a_page_refers_to_nothing_outside(runs):
    records = load_results(runs)
    text = write_page(runs / "page.html", [base2new_report(records, METHODS)], [], records).read_text()
    assert not re.search(r"""(src|href)=["']?https?:""", text)
    numbers = {int(n) for links in re.findall(r'data-runs="([\d ]+)"', text) for n in links.split()}
    assert numbers == {int(n) for n in re.findall(r"<details id=run(\d+)>", text)} == set(range(16))


def test_names_cannot_become_markup(tmp_path):
    write_pairs(tmp_path, {"<script>alert(1)</script>": [(80, 60)]}, trainer='A" onclick="x', preset="")
    records = load_results(tmp_path)
    text = write_page(tmp_path / "page.html", [base2new_report(records, METHODS)], [], records).read_text()
    assert "<script>alert" not in text and 'A" onclick' not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_command_writes_it(runs):
    main([str(runs), "--html", str(runs / "report" / "page.html")])
    assert "Base-to-new accuracy" in (runs / "report" / "page.html").read_text()
