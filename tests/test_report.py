from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import polars as pl
import pytest
from report_data import (
    GAP,
    GROUPS,
    HOSTILE,
    N_PROMPTS,
    edges,
    evaluated,
    made_up,
    reported_study,
    without_attributions,
    without_scores,
)
from test_cli import gbcd

from gbcd.analysis.circuits import INPUT, LOGITS
from gbcd.analysis.nodes import Key
from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.errors import BadInput
from gbcd.evaluation.tables import EDGE_SCORES_FILE
from gbcd.report import circuit, components, effects, findings, prompts, study
from gbcd.report import data as report_data
from gbcd.report.caveats import warnings
from gbcd.report.data import ReportData
from gbcd.report.dots import BY_HEIGHT, NAMED, marked
from gbcd.report.page import heat_maps, page, sections, write_figures, write_report
from gbcd.report.reading import MAX_EDGES, read_data
from gbcd.run.results import EDGES_FILE
from gbcd.run.results import prompts as stored_prompts

SECTIONS = ["found", "study", "where", "effects", "circuit", "agreement", "prompts", "computed", "words"]


@pytest.fixture(scope="module")
def data() -> ReportData:
    return evaluated(made_up())


@pytest.fixture(scope="module")
def text(data: ReportData) -> str:
    return page(data)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported_study(tmp_path_factory.mktemp("report"))


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    """The same to change."""
    return Path(shutil.copytree(out, tmp_path / "out"))


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="text/plain">(.*?)</script>', text)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found.group(1))))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(text)
    return parser.found


def sentences(data: ReportData, group: int = 0) -> list[str]:
    return list(findings.section(data).text_by_group[str(group)])


def test_the_file_holds_every_section_and_asks_nothing_of_a_network(text: str) -> None:
    found = tags(text)
    assert [given["id"] for tag, given in found if tag == "section" and given.get("id")] == SECTIONS
    assert not [tag for tag, given in found if given.get("src") or tag == "link"]


@pytest.mark.parametrize(("layers", "heads", "limit"), [(30, 9, 1.6e6), (32, 32, 3e6)])
def test_pages_of_large_models_stay_small(layers: int, heads: int, limit: float) -> None:
    text = page(evaluated(made_up(layers, heads)))
    assert len(text.encode()) < limit
    nodes = embedded(text)["grids"]["components"]["tables"]["0"]["component"]
    assert len(nodes) == layers * (heads + 1)


def test_text_of_a_study_is_never_markup(data: ReportData) -> None:
    [group] = [Key(HOSTILE, "margin")]
    hostile = made_up(groups=(group,))
    named = {group: hostile.samples[group].with_columns(template=pl.lit(HOSTILE))}
    extremes = hostile.extremes.with_columns(pl.lit(HOSTILE).alias(name) for name in ("template", "prompt", "answer"))
    text = page(replace(hostile, samples=named, extremes=extremes, source=HOSTILE, problems=[HOSTILE]))
    assert HOSTILE not in text
    assert text.count("&lt;/script&gt;") > 10
    assert not [tag for tag, _ in tags(text) if tag in ("img", "b")]
    assert embedded(text)["charts"]["templates"]["tables"]["0|0"]["template"] == [HOSTILE]


def test_every_setting_of_the_controls_has_a_table(data: ReportData) -> None:
    for section in sections(data):
        options = {control.name: list(control.options) for control in section.controls}
        options["group"] = [str(index) for index in range(len(data.groups))]
        for name, rows in [(chart.name, chart.rows) for chart in section.charts] + [
            (grid.name, grid.rows) for grid in section.grids
        ]:
            expected = {""}
            for control in rows.controls:
                expected = {f"{before}|{value}".removeprefix("|") for before in expected for value in options[control]}
            assert set(rows.tables) == expected, name
            for table in rows.tables.values():
                assert set(rows.columns.values()) <= set(table.columns), name
        for chart in section.charts:
            assert set(chart.parameters) <= {"find", *options}, chart.name


def test_the_heat_map_has_signed_attributions_norms_and_effects_in_the_same_places(text: str, data: ReportData) -> None:
    shown = pl.DataFrame(embedded(text)["charts"]["heatmap"]["tables"]["0|node"]).sort("component")
    rows = data.groups[0].nodes.sort("component")
    for name, column in (("attribution", "attribution_signed_mean"), ("writing_norm", "writing_norm_mean")):
        assert shown[name].to_list() == pytest.approx(rows[column].to_list(), rel=1e-3)
    assert shown["attribution_low"].to_list() == pytest.approx((shown["attribution"] - 0.1).to_list(), abs=1e-3)
    assert shown["attribution"].min() < 0
    assert data.measured is not None
    effects = data.measured.effects.filter(task="ioi", method="resample").sort("component")
    assert shown["effect"].to_list() == pytest.approx((100 * effects["value"] / GAP).to_list(), rel=1e-3)
    parts = embedded(text)["charts"]["heatmap"]["tables"]["0|q"]
    assert set(parts["column"]) == {"0", "1", "2", "3"}
    assert "attribution_low" not in parts


def test_groups_of_heads_stand_between_heads_and_mlps_where_they_have_cells() -> None:
    text = page(made_up(5, 4, shared=2))
    chart = embedded(text)["charts"]["heatmap"]
    columns = ["0", "1", "2", "3", " ", "MLP"]
    with_groups = ["0", "1", "2", "3", "g0", "g1", " ", "MLP"]
    [domain] = {layer["encoding"]["x"]["scale"]["domain"]["expr"] for layer in chart["specification"]["layer"]}
    by_level = json.loads(domain.removeprefix("(").removesuffix(")[level]"))
    assert by_level == {level: with_groups if level in ("k", "v") else columns for level in by_level}
    assert "level" in chart["parameters"]
    cells = chart["tables"]["0|node"]
    places = set(zip(cells["column"], cells["layer"], strict=True))
    assert places == {(name, layer) for name in columns if name != " " for layer in range(5)}
    assert set(chart["tables"]["0|k"]["column"]) == {"g0", "g1"}
    levels = re.findall(r'<option value="(.*?)">(?:whole components|\w+ of (?:attention|MLPs))', text)
    assert levels == ["node", "q", "k", "v", "o", "in", "out"]
    assert "20 heads, 5 MLPs in 5 layers" in text


def test_the_top_names_the_strongest_with_interval_and_effect(data: ReportData) -> None:
    said = sentences(data)[0]
    first, value = data.groups[0].nodes.select("component", "attribution_signed_mean").row(0)
    share = round(90 * value / abs(value))
    assert f"by attribution over {N_PROMPTS} prompts: {first} {value:#.3g} [{value - 0.1:#.3g}, " in said
    assert f"{value + 0.1:#.3g}], effect {share} %;" in said
    assert said.count(";") == findings.NAMED - 1
    assert said.endswith("by margin: above zero a component works for the right answer, below zero against it.")
    against = "above zero a component works against the wrong answer, below zero for it"
    assert sentences(data, 1)[0].endswith(f"by inverse_logits: {against}.")


def test_the_top_says_how_faithful_the_circuit_is(data: ReportData) -> None:
    n = round(CIRCUIT_SHARE * 15)
    kept = f"{100 * CIRCUIT_SHARE**0.5:.3g}"
    expected = (
        f"the best {n} components alone keep {kept} [80.0, 100] % of the gap; "
        "AUROC with measured effects 0.900 [0.800, 1.00]"
    )
    assert expected in sentences(data)[1]
    assert "gbcd evaluate results/ioi" in sentences(made_up())[1]


def test_the_top_says_what_the_norm_says_differently(data: ReportData) -> None:
    rows = data.groups[0].scores
    n = min(findings.COMPARED, rows.height // 2)
    first, by_norm = (set(rows.sort(name, descending=True).head(n)["component"]) for name in ("score", "norm"))
    said = sentences(data)[2]
    assert f"{len(first & by_norm)} of its {n} highest are among the {n} highest of the score" in said
    assert findings.NAMED > len(by_norm - first) > 0
    assert "among others" not in said
    assert all(re.search(rf"{name} \(effect -?\d+ %\)", said) for name in list(by_norm - first)[: findings.NAMED])
    assert "Its Spearman with measured effects: 0.500 [0.400, 0.600]" in said


def test_what_is_high_by_the_norm_only_is_named_as_some_where_it_is_more() -> None:
    data = made_up(6, 4)
    best = [f"m{layer}" for layer in range(6)]
    is_best = pl.col("component").is_in(best)
    norms = pl.when(is_best).then(1000.0).otherwise("writing_norm_mean")
    scores = pl.when(is_best).then(None).otherwise("rank").cast(pl.Int32)
    rows = data.summary.with_columns(writing_norm_mean=norms, rank=pl.when(is_best).then(100).otherwise(scores))
    said = sentences(replace(data, summary=rows))[2]
    assert re.search(r"High by the norm only, among others: (m\d \([^)]*\)(, |\.)){5}$", said)


def test_without_references_the_norm_ranks_and_there_is_one_score(data: ReportData) -> None:
    changed = without_attributions(made_up(), GROUPS[0])
    assert changed.groups[0].score_name == "writing_norm"
    strongest, _, norm = sentences(changed)
    best = changed.groups[0].nodes["component"][0]
    assert f"by norm over {N_PROMPTS} prompts: {best} " in strongest
    assert norm.startswith("There is no attribution")
    assert "above zero" not in strongest
    assert any("ioi, margin: ranked by norm, since fewer than 90%" in said for said in warnings(changed))
    assert not any("ranked by" in said for said in warnings(data))
    tables = embedded(page(changed))["charts"]["scores"]["tables"]
    assert tables["0"]["component"] == []
    assert len(tables["1"]["component"]) == 15


@pytest.mark.parametrize("change", [evaluated, lambda data: data])
def test_a_task_without_finite_scores_does_not_break_the_page_of_the_others(change: Any) -> None:
    changed = without_scores(change(made_up()), GROUPS[2])
    assert [group.key for group in changed.groups] == list(GROUPS[:2])
    assert any("induction, margin: no component has a finite score" in said for said in warnings(changed))
    assert embedded(page(changed))["grids"]["components"]["tables"].keys() == {"0", "1"}


def test_a_study_without_any_finite_score_has_a_page() -> None:
    changed = made_up()
    for group in GROUPS:
        changed = without_scores(changed, group)
    text = page(changed)
    assert "there is nothing to rank" in text
    assert [section.id for section in sections(changed)] == ["found", "study", "computed", "words"]


def test_what_was_run_shows_the_answer_and_the_wrong_answer() -> None:
    data = made_up()
    [tasks, _] = study.what_was_run(data).tables
    named = dict(zip(tasks.header, tasks.rows[0], strict=True))
    assert (named["answer"], named["wrong answer"]) == (" Mary", " John, by margin")
    none = replace(data, examples=data.examples.with_columns(wrong_token=pl.lit(None, pl.String)))
    assert study.what_was_run(none).tables[0].rows[0][3] == "-"


def test_warnings_name_what_the_model_gets_wrong_by_the_metric_of_the_task() -> None:
    data = made_up()
    assert not any("wrong" in said for said in warnings(data))
    unpaired = replace(data, examples=data.examples.with_columns(above_wrong=pl.lit(None, pl.Float64)))
    assert sum("gets 40% of the 60 prompts" in said and "first choice" in said for said in warnings(unpaired)) == 2
    failing = replace(data, examples=data.examples.with_columns(above_wrong=pl.lit(0.5)))
    assert sum("gets 50% of the 60 prompts" in said for said in warnings(failing)) == 2


def test_warnings_name_few_templates_partners_and_statuses() -> None:
    data = made_up()
    assert warnings(data) == []
    changed = replace(
        data,
        source="folder/prompts.jsonl",
        summary=data.summary.with_columns(n_templates=pl.lit(2)),
        examples=data.examples.with_columns(partner=pl.lit(0.25)),
        statuses={"ok": 50, "failed": 3, "uncalibrated": 1},
    )
    said = "\n".join(warnings(changed))
    assert "Intervals of prompts.jsonl rest on 2 templates and say little." in said
    assert "25% of the prompts of prompts.jsonl have no counterfactual" in said
    assert "3 prompts on which the computation failed, in no mean (status failed in gbcd.prompts)." in said
    assert "1 prompt without a centred norm, since the calibration sample does not reach its" in said.replace(
        "their", "its"
    )
    assert "(status uncalibrated in gbcd.prompts). Components are ranked by attribution, which needs none." in said
    single = replace(data, summary=data.summary.with_columns(n_templates=pl.lit(1)))
    assert any("are of one template" in said for said in warnings(single))


@pytest.mark.parametrize(("n", "few"), [(4, True), (15, True), (16, False)])
def test_warnings_name_effects_over_few_pairs(data: ReportData, n: int, few: bool) -> None:
    is_ioi = pl.col("task") == "ioi"
    rows = data.measured.effects.with_columns(n_pairs=pl.when(is_ioi).then(n).otherwise("n_pairs"))
    said = warnings(replace(data, measured=data.measured._replace(effects=rows)))
    assert said == ([f"Effects of ioi are over {n} pairs: take 32 or more."] if few else [])


def test_warnings_name_divided_signs_and_parts_without_gradient() -> None:
    data = made_up()
    best = data.groups[0].nodes["component"][0]
    is_best = (pl.col("component") == best) & (pl.col("wrong_answer") == "margin") & (pl.col("task") == "ioi")
    divided = data.summary.with_columns(
        attribution_sign_agreement=pl.when(is_best).then(0.55).otherwise("attribution_sign_agreement")
    )
    [said] = warnings(replace(data, summary=divided))
    assert said.startswith(f"ioi, margin: few prompts have the sign of the mean of {best} (55 %).")
    silenced = data.summary.with_columns(
        grad_norm_mean=pl.when(pl.col("component") == "m1.in").then(0.0).otherwise("grad_norm_mean")
    )
    [said] = warnings(replace(data, summary=silenced))
    assert said.startswith("Every task and wrong answer: no gradient reaches m1.in.")


def test_a_study_too_large_for_the_page_says_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_up()
    monkeypatch.setattr(report_data, "MAX_CELLS", data.summary["component"].n_unique())
    assert [group.key for group in data.groups] == [GROUPS[0]]
    assert [name for name, _ in heat_maps(data)] == [f"heatmap.{task}.{wrong}.png" for task, wrong in GROUPS]
    assert "2 further pairs of task and wrong answer" in "\n".join(warnings(data))
    assert "agreement" not in {section.id for section in sections(data)}


def test_agreement_is_the_rank_correlation_of_scores(data: ReportData) -> None:
    section = components.agreement(data)
    assert section is not None
    table = section.grids[0].rows.tables["0"]
    one, other = (group.nodes.sort("component")["score"] for group in data.groups[:2])
    expected = pl.DataFrame({"one": one, "other": other}).select(pl.corr("one", "other", method="spearman")).item()
    assert table["inverse_logits"][0] == pytest.approx(expected)
    assert table["margin"][0] == pytest.approx(1.0)
    assert section.grids[0].rows.tables["2"]["one"].to_list() == ["margin"]


def test_the_table_of_methods_says_where_effects_are_a_smaller_sample(data: ReportData) -> None:
    said = "Scores of the study are means over 60 prompts, effects over 32 pairs, so part"
    assert [group for group, text in effects._methods(data.groups).caveats.items() if said in text] == ["0", "1", "2"]
    assert page(data).count(said) == 3
    fewer = replace(data, summary=data.summary.with_columns(n=pl.when(task="ioi").then(32).otherwise("n")))
    assert list(effects._methods(fewer.groups).caveats) == ["2"]


def test_the_measured_circuit_is_by_the_size_of_effects(data: ReportData) -> None:
    section = effects.section(data)
    assert section is not None
    assert "in the measured circuit if its effect, of either sign, is at least 10% of the gap" in section.text


def test_names_beside_dots_lie_on_nothing() -> None:
    rows = pl.DataFrame(
        {
            "component": ["large", "left of it", "high", "between", "right of it", "on both"],
            "effect": [90.0, 88.0, 0.0, 40.0, 42.0, 41.0],
            "score": [5.0, 5.0, 9.0, 4.0, 4.0, 4.0],
        }
    )
    sides = dict(marked(rows, "effect", "score").filter(pl.col("name") != "").select("component", "side").iter_rows())
    assert sides == {"high": "right", "large": "right", "left of it": "left", "between": "left", "right of it": "right"}


def test_what_is_always_named_has_the_side_that_another_would_have_had() -> None:
    rows = pl.DataFrame({"component": ["high", "ranks", "beside"], "cost": [1.0, 3.0, 3.1], "value": [0.9, 0.5, 0.505]})
    hidden = rows.vstack(pl.DataFrame({"component": ["at left"], "cost": [2.9], "value": [0.51]}))
    for table in (rows, hidden):
        named = marked(table, "cost", "value", always="ranks").filter(pl.col("name") == "ranks")
        assert named["side"].to_list() == ["left"]
    assert "ranks" not in marked(hidden, "cost", "value")["name"]


def test_the_picture_of_costs_names_the_score_that_ranks_however_many_are_better(data: ReportData) -> None:
    group = data.groups[0]
    better = [f"better {place}" for place in range(6)]
    rows = pl.concat(
        group.figures.filter(pl.col("method") == "random").with_columns(
            method=pl.lit(name), value=pl.lit(0.95 + place / 200)
        )
        for place, name in enumerate(better)
    )
    measured = data.measured._replace(figures=pl.concat([data.measured.figures, rows]))
    table = effects._priced(replace(data, measured=measured).groups[0], "spearman")
    assert table.filter("is_score").select("method", "name").rows() == [("attribution", "attribution")]


def test_sizes_of_circuits_are_shares_of_what_they_are_made_of(data: ReportData) -> None:
    nodes, [edges] = effects._curves(data.groups), effects._edge_curves(data.groups)
    for chart, counted in ((nodes, "components"), (edges, "edges")):
        assert f"size, % of all {counted}" in chart.picture.to_json()


def test_misleading_scores_are_named_before_large_effects() -> None:
    n = 30
    high = [{"component": f"misleads {i}", "effect": 0.1 * i, "score": 100.0 - 8 * i} for i in range(BY_HEIGHT)]
    far = [{"component": f"carries {i}", "effect": 10.0 + 3 * i, "score": 1.0} for i in range(n)]
    table = marked(pl.DataFrame(high + far), "effect", "score")
    named = set(table.filter(pl.col("name") != "")["component"])
    assert len(named) <= NAMED
    assert {f"misleads {i}" for i in range(BY_HEIGHT)} | {f"carries {n - 1}"} <= named
    assert "carries 0" not in named


def test_the_circuit_draws_the_largest_edges_from_input_to_logits_and_only_their_nodes() -> None:
    data = made_up(12, 6)
    drawn = [pl.DataFrame(table) for table in embedded(page(data))["charts"]["circuit"]["tables"].values()]
    for table, group in zip(drawn, data.groups, strict=True):
        lines = table.filter(pl.col("kind") == "edge")
        assert 10 < lines.height <= circuit.DRAWN
        graph = nx.DiGraph(tuple(name.split(" → ")) for name in lines["component"])
        assert all(nx.has_path(graph, INPUT, node) and nx.has_path(graph, node, LOGITS) for node in graph)
        assert set(table.filter(pl.col("kind").is_in(["attention", "MLP", "end"]))["component"]) == set(graph)
        joined = data.edges[group.key].with_columns(target=pl.col("target").str.replace(r"<.>$", ""))
        largest = joined.group_by("source", "target").agg(pl.col("mean").abs().max())
        sizes = {f"{source} → {target}": size for source, target, size in largest.iter_rows()}
        assert {name: abs(score) for name, score in lines.select("component", "score").iter_rows()} == pytest.approx(
            {name: sizes[name] for name in lines["component"]}, rel=1e-3
        )
        assert set(lines.filter(pl.col("score") < 0)["sign"]) == {circuit.SIGNS[1]}


def test_the_circuit_says_what_its_signs_mean_under_the_loss_and_under_the_metric() -> None:
    data = made_up()
    of_study = circuit.section(data)
    unbounded = {key: rows.with_columns(ci_low=pl.lit(None, pl.Float64)) for key, rows in data.edges.items()}
    of_evaluation = circuit.section(replace(data, edges=unbounded))
    assert of_study is not None
    assert of_evaluation is not None
    by_loss = "by inverse_logits: above zero a component works against the wrong answer, below zero for it"
    assert [text.lower() for text in of_study.text_by_group["1"]] == [f"{by_loss}; so does an edge."]
    [said] = of_evaluation.text_by_group["1"]
    assert by_loss in said
    assert said.endswith("above zero an edge works for the right answer, below zero against it.")


def test_edges_that_lead_nowhere_are_drawn_where_there_are_no_others() -> None:
    data = made_up()
    edges = data.edges[GROUPS[0]].filter(pl.col("target") != LOGITS)
    section = circuit.section(replace(data, edges={GROUPS[0]: edges}))
    assert section is not None
    [table] = section.charts[0].rows.tables.values()
    largest = edges.row(int(edges["mean"].abs().arg_max() or 0), named=True)  # pyright: ignore
    assert table.filter(pl.col("kind") == "edge")["score"][0] == largest["mean"]


def test_the_spread_is_that_of_the_sample() -> None:
    data = made_up()
    sample = data.samples[GROUPS[0]]
    section = prompts.section(data)
    assert section is not None
    best = data.groups[0].nodes["component"][0]
    values = sample.filter(template="template 3")[best].to_numpy()
    [table] = [chart.rows.tables["0|0"] for chart in section.charts if chart.name == "templates"]
    row = table.row(by_predicate=pl.col("template") == "template 3", named=True)
    assert (row["n"], row["p50"]) == (5, pytest.approx(np.median(values)))
    assert table["n"].sum() == N_PROMPTS


def test_prompts_at_either_end_are_listed_the_largest_first() -> None:
    data = made_up()
    section = prompts.section(data)
    assert section is not None
    lines = section.tables_by_group["1"].rows
    assert [line[2] for line in lines] == [f"Prompt {n} of {end}" for end in ("most", "least") for n in range(6)]
    assert [line[5] for line in lines[:6]] == ["yes"] * 4 + ["no"] * 2
    assert lines[0][3] == " Mary, Bob, Tom and 2 more"
    other = prompts.section(replace(data, extremes=data.extremes.with_columns(statistic=pl.lit("grad_norm"))))
    assert other is not None
    assert not other.tables_by_group


def test_a_finished_study_is_reported(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    data = read_data(str(out))
    assert [group.key.wrong_answer for group in data.groups] == ["logit_difference", "foil"]
    of_status = stored_prompts(str(out)).group_by("status").agg(pl.col("prompt_id").n_unique()).collect()
    assert dict(data.statuses) == dict(of_status.iter_rows())  # prompts, though each has two rows
    grid = embedded(text)["grids"]["components"]["tables"]["0"]
    assert grid["component"] == data.groups[0].nodes["component"].to_list()
    measured = pl.read_parquet(out / "effects.parquet").filter(pl.col("method") == "resample")
    shares = {row["component"]: 100 * row["value"] / row["gap"] for row in measured.iter_rows(named=True)}
    assert grid["effect"] == pytest.approx([shares[name] for name in grid["component"]], rel=1e-3)
    pictures = sorted(out.glob("heatmap.*.png"))
    assert [file.name for file in pictures] == ["heatmap.prompts.foil.png", "heatmap.prompts.logit_difference.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in pictures)
    assert "prompts.jsonl in model" in text
    assert HOSTILE not in text


def test_the_command_says_what_the_page_warns_of_and_draws_figures(out: Path, tmp_path: Path) -> None:
    status, said, _ = gbcd("report", str(out), "--png", str(tmp_path / "figures"))
    assert status == 0
    told = " ".join(said.split())
    assert "Intervals of prompts.jsonl rest on 2 templates and say little." in told
    assert re.search(r"The model gets \d+% of the 40 prompts of prompts.jsonl wrong", told)
    files = list((tmp_path / "figures").iterdir())
    assert f"{len(files)} files" in told
    assert {"heatmap.prompts.logit_difference.png", "effects.prompts.foil.png"} <= {file.name for file in files}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"plan\.json"):
        write_report(str(tmp_path))
    with pytest.raises(BadInput, match=r"plan\.json"):
        write_figures(str(tmp_path), tmp_path / "figures")


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def of_another_version(path: Path) -> None:
    pl.read_parquet(path).drop("weight").write_parquet(path)


def without_gap(path: Path) -> None:
    pl.read_parquet(path).with_columns(gap=pl.lit(0.0)).write_parquet(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damaged, "effects.parquet cannot be read"),
        (of_another_version, "effects.parquet lacks the columns weight"),
        (without_gap, "The evaluation of prompts is left out: it measured no effect that is a share of a gap"),
        (Path.unlink, "effects.parquet cannot be read"),
    ],
)
def test_an_evaluation_that_failed_does_not_break_the_report(copy: Path, change: Any, said: str) -> None:
    change(copy / "effects.parquet")
    written = write_report(str(copy))
    assert any(said in warning for warning in written.warnings)
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "How faithful: not measured" in text
    assert 'data-chart="heatmap"' in text


@pytest.mark.parametrize("name", ["summary", "components", "analysis/counts", "analysis/extremes"])
def test_a_damaged_table_is_named_with_what_writes_it_again(copy: Path, name: str) -> None:
    damaged(copy / f"{name}.parquet")
    with pytest.raises(BadInput, match=r"another version; `gbcd (reduce|verify --repair) .*` writes it again"):
        read_data(str(copy))


def test_missing_shards_are_named(copy: Path) -> None:
    (copy / "commits" / "00002.json").unlink()
    assert any("1 of 5 shards are missing" in said for said in warnings(read_data(str(copy))))


def test_only_the_largest_edges_of_a_study_are_read(copy: Path) -> None:
    rows = edges([f"a{layer}.h{head}" for layer in range(30) for head in range(9)], np.random.default_rng(0), 20_000)
    stored = rows.with_columns(task=pl.lit("prompts"), wrong_answer=pl.lit("foil"))
    stored.write_parquet(copy / EDGES_FILE)
    found = read_data(str(copy)).edges
    size = pl.col("mean").abs()
    least = rows.filter(size > 0.1).top_k(MAX_EDGES, by=size).select(size.min()).item()
    expected = rows.filter(size >= least)
    assert rows.height > expected.height == MAX_EDGES
    columns = ["source", "target", "mean", "ci_low", "ci_high"]
    assert found[Key("prompts", "foil")].equals(expected.select(columns))
    assert found[Key("prompts", "logit_difference")].height == 0
    damaged(copy / EDGES_FILE)
    assert any("The edges of prompts, foil are left out" in said for said in read_data(str(copy)).problems)


def test_what_was_run_is_told_without_reading_a_shard(copy: Path) -> None:
    rows = stored_prompts(str(copy)).filter(pl.col("wrong_answer") == "logit_difference").collect()
    for folder in ("prompts", "norms"):
        shutil.rmtree(copy / folder)
    data = read_data(str(copy))
    [example] = data.examples.rows(named=True)
    assert (example["task"], example["n"]) == ("prompts", 40)
    shown = {name: example[name] for name in ("prompt", "answer", "wrong_answer", "wrong_token")}
    assert rows.filter(**shown).height == 1
    assert example["correct"] == pytest.approx(rows["correct"].mean())
    assert 'data-chart="templates"' in page(data)


def test_without_edges_of_the_study_those_of_the_evaluation_are_drawn(copy: Path) -> None:
    data = read_data(str(copy))
    [group, _] = data.groups
    scored = pl.read_parquet(copy / EDGE_SCORES_FILE).filter(task=group.key.task, method="attribution_patching")
    shown = data.edges[group.key].select("source", "target", "mean").rows()
    assert shown
    assert set(shown) <= set(scored.select("source", "target", "score").rows())
    (copy / EDGE_SCORES_FILE).write_text("{}")
    damaged = read_data(str(copy))
    assert group.key not in damaged.edges
    assert any("The edges of prompts, logit_difference are left out" in said for said in warnings(damaged))
