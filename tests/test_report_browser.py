"""The report in a real browser: no errors, everything drawn, controls work, readable on a phone and in the dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from report_study import reported_study

N_CHARTS = 10

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported_study(tmp_path_factory.mktemp("browser")) / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        if not Path(installed).exists():
            pytest.skip("no Chromium here: playwright install chromium")
        launched = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser: Browser, report: Path, width: int, scheme: str) -> tuple[Page, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
    said: list[str] = []
    page.set_default_timeout(60_000)
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    return page, said


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1000, "light"), (1600, "dark")])
def test_everything_is_drawn_in_any_width_and_light(browser: Browser, report: Path, width: int, scheme: str) -> None:
    page, said = opened(browser, report, width, scheme)
    assert said == []
    assert page.title().endswith("gbcd")
    assert page.locator("figure .plot svg.marks").count() == N_CHARTS
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [box for box in (svg.bounding_box() for svg in page.locator("figure .plot svg.marks").all()) if box]
    assert len(boxes) == N_CHARTS
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] > 60 for box in boxes)
    cells = [box for box in (cell.bounding_box() for cell in page.locator("#examples td").all()) if box]
    assert cells
    assert all(box["x"] + box["width"] <= width for box in cells)
    ink, paper = page.evaluate(
        "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    assert contrast(ink, paper) > 7
    page.close()


def test_controls_change_what_is_shown_by_keyboard(browser: Browser, report: Path) -> None:
    page, said = opened(browser, report, 1000, "light")
    heatmap = page.locator("figure[data-chart=heatmap]")
    heatmap.locator("summary", has_text="Numbers").focus()
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
    page.locator("select[data-control=group]").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#examples [data-group='1']:not([hidden])")
    assert page.locator("#examples [data-group='0']").is_hidden()
    page.select_option("select[data-control=component]", "2")
    page.wait_for_timeout(100)
    assert said == []
    page.close()


def test_a_name_that_is_markup_stays_text(browser: Browser, report: Path) -> None:
    page, said = opened(browser, report, 1000, "light")
    assert "taken" not in page.title()
    assert page.locator("main b, main img").count() == 0
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
