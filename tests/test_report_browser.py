"""The report in a real browser: nothing to complain of in its console, everything drawn, controls and links work.

Readable on a phone and in the dark, for large models too; names of prompts stay text; what a chart draws can be saved.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from browsers import opened
from playwright.sync_api import Browser, Locator
from report_data import GROUPS, HOSTILE, evaluated, made_up, without_attributions, without_scores

from gbcd.analysis.nodes import Key
from gbcd.report.data import ReportData, bounded
from gbcd.report.page import page as html_of
from gbcd.report.page import sections

pytestmark = pytest.mark.browser


def written(data: ReportData, folder: Path) -> Path:
    (folder / "report.html").write_text(html_of(data), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def data() -> ReportData:
    return evaluated(made_up(6, 4))


@pytest.fixture(scope="module")
def report(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(data, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with 32 layers of 32 heads."""
    return written(evaluated(made_up(32, 32, GROUPS[:1])), tmp_path_factory.mktemp("large"))


def column(table: Locator, place: int) -> list[str]:
    return table.locator(f"tbody tr td:nth-child({place})").all_inner_texts()


@pytest.mark.parametrize(
    ("width", "scheme", "size"),
    [(400, "dark", "small"), (1000, "light", "small"), (1600, "dark", "small"), (400, "light", "large")],
)
def test_everything_is_drawn_in_any_width_and_light(
    browser: Browser, report: Path, large: Path, data: ReportData, width: int, scheme: str, size: str
) -> None:
    page, said = opened(browser, large if size == "large" else report, width, scheme)
    n_charts = sum(len(section.charts) for section in sections(data))
    assert said == []
    assert page.title() == f"{'ioi' if size == 'large' else 'ioi, induction'} in small \N{EN DASH} gbcd"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(BOXES, "figure .plot svg.marks")
    assert len(boxes) == n_charts
    assert all(left >= 0 and right <= width and height > 60 for left, right, height in boxes)
    cells = page.evaluate(BOXES, "#prompts [data-group='0'] td")
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
    pictures = page.evaluate(PICTURES)
    page.locator("select[data-control=group]").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.wait_for_selector("#found [data-group='2']:not([hidden])")
    assert page.locator("select[data-control=group] option:checked").inner_text() == "induction, margin"
    assert page.locator("#found [data-group='0']").is_hidden()
    page.wait_for_function(
        f"(before) => Object.entries(({PICTURES})()).every(([name, now]) => now !== before[name])", arg=pictures
    )
    assert said == []
    page.close()


PICTURES = """() => Object.fromEntries([...document.querySelectorAll("figure")].map((figure) =>
  [figure.dataset.chart, figure.querySelector("svg.marks").outerHTML.replaceAll(/(clip|gradient)[_\\d]+/g, "")]))"""


def test_tables_are_sorted_searched_and_listed_whole(browser: Browser, report: Path, data: ReportData) -> None:
    page, said = opened(browser, report)
    table = page.locator("[data-grid=components] table")
    best = data.groups[0].nodes["component"].to_list()
    assert column(table, 1) == best[:10]
    page.get_by_role("button", name="Show all 30").click()
    assert column(table, 1) == best
    table.get_by_role("button", name="norm", exact=True).focus()
    page.keyboard.press("Enter")
    norms = [float(text.split(" ")[0].replace(",", "")) for text in column(table, 5)]
    assert norms == sorted(norms, reverse=True)
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("norm")
    page.locator("[data-control=find]").fill("A2.h")
    assert sorted(column(table, 1)) == [f"a2.h{head}" for head in range(4)]
    page.locator("[data-control=find]").fill("m3")
    page.wait_for_function("() => document.querySelectorAll('[data-grid=components] tbody tr').length === 1")
    ring = "figure[data-chart=effects] svg path[stroke='#009e73']:not([opacity='0'])"
    page.wait_for_function(f"() => document.querySelectorAll(`{ring}`).length === 1")
    assert said == []
    page.close()


def test_numbers_of_tables_are_those_of_sentences(browser: Browser, tmp_path: Path) -> None:
    data = made_up(2, 3, GROUPS[:1])
    values = dict(
        zip(
            data.groups[0].nodes["component"],
            [1.15492, -0.72, 1.3, 1234.5, 0.0000123, 99.96, 0.0, -12345.6],
            strict=True,
        )
    )
    value = pl.col("component").replace_strict(values, default=None, return_dtype=pl.Float64)
    changed = {
        f"attribution_signed_{name}": value + more for name, more in (("mean", 0), ("ci_low", 0), ("ci_high", 1))
    }
    page, said = opened(browser, written(replace(data, summary=data.summary.with_columns(**changed)), tmp_path))
    shown = column(page.locator("[data-grid=components] table"), 3)
    assert shown == [bounded(value, value, value + 1) for value in values.values()]
    assert shown[:3] == ["1.15 [1.15, 2.15]", "-0.720 [-0.720, 0.280]", "1.30 [1.30, 2.30]"]
    assert page.locator("#found [data-group='0'] p").first.inner_text().count(f"{shown[0]}; ") == 1
    assert column(page.locator("[data-grid=components] table"), 2)[0] == "1 [1, 3]"
    assert said == []
    page.close()


def test_columns_are_those_of_what_the_heat_map_is_of(browser: Browser, tmp_path: Path) -> None:
    page, said = opened(browser, written(made_up(2, 4, GROUPS[:1], shared=2), tmp_path))
    shown = """() => [...document.querySelectorAll("figure[data-chart=heatmap] svg .role-axis-label text")]
      .toSorted((one, other) => one.getBoundingClientRect().x - other.getBoundingClientRect().x)
      .map((label) => label.textContent).filter((text) => /^g|MLP|3/.test(text)).join()"""
    assert page.evaluate(shown) == "3,MLP"
    for level, columns in (("k", "3,g0,g1,MLP"), ("o", "3,MLP")):
        page.select_option("select[data-control=level]", level)
        page.wait_for_function(f"() => ({shown})() === '{columns}'")
    assert said == []
    page.close()


def test_one_colour_scale_for_each_layer_on_request(browser: Browser, report: Path) -> None:
    page, said = opened(browser, report)
    every = "() => document.querySelectorAll(`figure[data-chart=heatmap] svg .mark-text.role-mark text`).length"
    full = """() => [...document.querySelectorAll("figure[data-chart=heatmap] svg .mark-text.role-mark text")]
      .filter((text) => /^.?100$/.test(text.textContent)).length"""
    assert page.evaluate(every) == 30
    assert page.evaluate(full) == 1
    page.select_option("select[data-control=scale]", "layer")
    page.wait_for_function(f"() => ({full})() === 6")
    assert said == []
    page.close()


def test_controls_of_a_section_change_its_numbers_which_can_be_saved(browser: Browser, report: Path) -> None:
    page, said = opened(browser, report)
    heatmap = page.locator("figure[data-chart=heatmap]")
    heatmap.locator("summary").focus()
    page.keyboard.press("Enter")
    heatmap.locator("details table").wait_for()
    before = page.evaluate(PICTURES)["heatmap"]
    page.select_option("select[data-control=statistic]", "writing_norm")
    page.wait_for_function(f"(before) => ({PICTURES})().heatmap !== before", arg=before)
    page.select_option("select[data-control=level]", "q")
    page.wait_for_function(
        "() => document.querySelector('figure[data-chart=heatmap] table').innerText.includes('a0.h0.q')"
    )
    for kind, start in (
        ("csv", b'"component","attribution","attribution, 95 % from"'),
        ("png", b"\x89PNG"),
        ("svg", b"<svg"),
    ):
        with page.expect_download() as download:
            heatmap.locator(f"[data-save={kind}]").click()
        assert download.value.suggested_filename.startswith("heatmap_ioi_margin_q_of_attention_norm")
        assert download.value.path().read_bytes().startswith(start)
    assert said == []
    page.close()


def test_a_picture_grows_inside_its_place(browser: Browser, large: Path) -> None:
    page, said = opened(browser, large, 400)
    heatmap = page.locator("figure[data-chart=heatmap]")
    cell = "figure[data-chart=heatmap] svg .mark-rect path"
    [(left, right, _)] = page.evaluate(BOXES, cell)[:1]
    heatmap.locator("summary").click()
    for _ in range(3):
        heatmap.get_by_role("button", name="Larger").click()
    page.wait_for_function(
        f"""(width) => document.querySelector("{cell}").getBoundingClientRect().width > 2.5 * width""", arg=right - left
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for _ in range(3):
        heatmap.get_by_role("button", name="Smaller").click()
    page.wait_for_function(
        f"""(width) => document.querySelector("{cell}").getBoundingClientRect().width < 1.1 * width""", arg=right - left
    )
    assert said == []
    page.close()


def test_tasks_that_have_less_are_shown_with_what_they_have(browser: Browser, tmp_path: Path) -> None:
    data = without_scores(without_attributions(evaluated(made_up()), GROUPS[1]), GROUPS[2])
    bounds = [name for name in data.summary.columns if name.startswith("writing_norm_ci")]
    data = replace(data, summary=data.summary.with_columns(pl.lit(None, pl.Float64).alias(name) for name in bounds))
    page, said = opened(browser, written(data, tmp_path))
    page.select_option("select[data-control=group]", "1")
    scores = page.locator("figure[data-chart=scores]")
    scores.locator(".empty:not([hidden])").wait_for()
    assert scores.locator(".plot").is_hidden()
    assert page.locator("select[data-control=statistic]").input_value() == "writing_norm"
    page.select_option("select[data-control=group]", "0")
    scores.locator(".plot").wait_for()
    assert page.evaluate(BOXES, "figure[data-chart=scores] svg.marks")[0][2] > 200
    assert said == []
    page.close()


def test_a_name_that_is_markup_stays_text(browser: Browser, tmp_path: Path) -> None:
    group = Key(HOSTILE, "margin")
    data = made_up(groups=(group,))
    sample = data.samples[group].with_columns(pl.col("template").replace("template 0", HOSTILE))
    hostile = replace(data, samples={group: sample})
    page, said = opened(browser, written(hostile, tmp_path))
    assert page.title() == f"{HOSTILE} in small \N{EN DASH} gbcd"
    assert page.locator("main b, main img, header b").count() == 0
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
