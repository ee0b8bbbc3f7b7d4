"""The report in a real browser: nothing to complain of in its console, everything drawn, controls and links work.

Readable on a phone and in the dark; names of prompts stay text; what a chart draws can be saved.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from report_study import HOSTILE, reported_studies

from gbcd.report.findings import read_findings
from gbcd.report.page import page as html_of

N_CHARTS = 10

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks and two wrong answers of a tiny GPT-2 in `model`, and a compiled program."""
    return reported_studies(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def report(studies: Path) -> Path:
    return studies / "model" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        if not Path(installed).exists():
            pytest.skip("no Chromium here: playwright install chromium")
        launched = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser: Browser, report: Path, width: int = 1000, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page, and what its console, its errors and its requests say to complain of."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
    said: list[str] = []
    page.set_default_timeout(60_000)
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(report.as_uri())
    return page, said


def drawn(page: Page) -> Page:
    page.wait_for_selector("html[data-drawn]")
    return page


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1000, "light"), (1600, "dark")])
def test_everything_is_drawn_in_any_width_and_light(browser: Browser, report: Path, width: int, scheme: str) -> None:
    page, said = opened(browser, report, width, scheme)
    drawn(page)
    assert said == []
    assert page.title() == "ioi, induction in model \N{EN DASH} gbcd"
    assert page.locator("figure .plot svg.marks").count() == N_CHARTS
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(BOXES, "figure .plot svg.marks")
    assert len(boxes) == N_CHARTS
    assert all(left >= 0 and right <= width and height > 60 for left, right, height in boxes)
    cells = page.evaluate(BOXES, "#examples [data-group='0'] td")
    assert cells
    assert all(right <= width for _, right, _ in cells)
    assert page.evaluate(TOUCHING) == []
    ink, paper = page.evaluate(
        "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    assert contrast(ink, paper) > 7
    page.close()


BOXES = """(selector) => [...document.querySelectorAll(selector)].map((element) => element.getBoundingClientRect())
  .map(({ left, right, height }) => [left, right, height])"""

#: Pairs of labels of axes that touch, and labels without text; those that are turned are passed over.
TOUCHING = """() => [...document.querySelectorAll("figure")].flatMap((figure) => {
  const labels = [...figure.querySelectorAll(".role-axis-label text")]
    .filter((label) => label.getAttribute("opacity") !== "0" && !/rotate/.test(label.getAttribute("transform")))
    .map((label) => ({ text: label.textContent, box: label.getBoundingClientRect() }));
  const before = (one, other) => one.right + 2 < other.left || one.bottom - 3 < other.top;
  const apart = (one, other) => before(one, other) || before(other, one);
  const pairs = labels.flatMap((one, index) => labels.slice(index + 1).map((other) => [one, other]));
  return [
    ...labels.filter(({ text }) => text.trim() === "").map(() => [figure.dataset.chart, "without text"]),
    ...pairs.filter(([one, other]) => !apart(one.box, other.box))
      .map(([one, other]) => [figure.dataset.chart, one.text, other.text]),
  ];
})"""


def test_the_control_changes_every_section_by_keyboard(browser: Browser, report: Path) -> None:
    page, said = opened(browser, report)
    pictures = drawn(page).evaluate(PICTURES)
    assert set(pictures) == {figure.get_attribute("data-chart") for figure in page.locator("figure").all()}
    page.locator("select[data-control=group]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.wait_for_selector("#examples [data-group='3']:not([hidden])")
    assert page.locator("select[data-control=group] option:checked").inner_text() == "induction, inverse_logits"
    assert page.locator("#examples [data-group='0']").is_hidden()
    assert "induction" in page.locator("#effects table caption:visible").inner_text()
    page.wait_for_function(
        f"(before) => Object.entries(({PICTURES})()).every(([name, now]) => now !== before[name])", arg=pictures
    )
    assert said == []
    page.close()


PICTURES = """() => Object.fromEntries([...document.querySelectorAll("figure")].map((figure) =>
  [figure.dataset.chart, figure.querySelector("svg.marks").outerHTML.replaceAll(/(clip|gradient)[_\\d]+/g, "")]))"""


def test_controls_of_a_section_change_its_numbers(browser: Browser, report: Path) -> None:
    page, said = opened(browser, report)
    heatmap = drawn(page).locator("figure[data-chart=heatmap]")
    heatmap.locator("summary").focus()
    page.keyboard.press("Enter")
    numbers = heatmap.locator("details table")
    numbers.wait_for()
    before = numbers.inner_text()
    page.select_option("select[data-control=statistic]", "taylor")
    page.wait_for_function(
        "(before) => document.querySelector('figure[data-chart=heatmap] table').innerText !== before", arg=before
    )
    page.select_option("select[data-control=level]", "q")
    page.wait_for_function(
        "() => document.querySelector('figure[data-chart=heatmap] table').innerText.includes('a0.h0.q')"
    )
    for kind, start in (("csv", b'"component","rank"'), ("png", b"\x89PNG"), ("svg", b"<svg")):
        with page.expect_download() as download:
            heatmap.locator(f"[data-save={kind}]").click()
        assert download.value.suggested_filename.startswith("heatmap_ioi_foil_Taylor")
        assert download.value.path().read_bytes().startswith(start)
    assert said == []
    page.close()


def test_a_name_that_is_markup_stays_text(browser: Browser, report: Path, tmp_path: Path) -> None:
    findings = read_findings(str(report.parent))
    for found in findings.prompts.values():
        found.templates = [HOSTILE] * len(found.templates)
    (tmp_path / "report.html").write_text(html_of(findings), encoding="utf-8")
    page, said = opened(browser, tmp_path / "report.html")
    assert "taken" not in drawn(page).title()
    assert page.locator("main b, main img").count() == 0
    assert "onerror" in page.locator("figure[data-chart=templates] svg").inner_html()
    assert said == []
    page.close()


def contrast(one: str, other: str) -> float:
    """WCAG 2.1 contrast of two colours written `rgb(r, g, b)`."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    shares = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
