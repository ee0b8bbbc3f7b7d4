from __future__ import annotations

import base64
import gzip
import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from report_study import HOSTILE, reported_study
from sklearn.metrics import roc_curve
from small_runs import finished, small_study

from gbcd.analysis.circuits import Circuit, ends
from gbcd.analysis.ranking import CIRCUIT_SHARE, SCORES
from gbcd.analysis.shard_values import Key
from gbcd.commands.report import write as report
from gbcd.component import Component
from gbcd.errors import BadInput
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.evaluation.tables import edges_file
from gbcd.report import circuit_graph, in_short
from gbcd.report import findings as findings_module
from gbcd.report.caveats import warnings
from gbcd.report.charts import answers
from gbcd.report.effects import BY_SCORE, NAMED, marked
from gbcd.report.figures import write_figures
from gbcd.report.findings import Findings, read_findings
from gbcd.report.in_short import NBSP
from gbcd.report.page import page, sections, write_report
from gbcd.report.prompt_pass import PromptFindings
from gbcd.run.results import summary

SECTIONS = ["short", "study", "where", "top", "effects", "circuit", "agreement", "prompts", "settling", "examples"]
SECTIONS += ["computed", "words"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported_study(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


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


def test_the_file_holds_every_section_and_asks_nothing_of_a_network(text: str) -> None:
    found = tags(text)
    assert [given["id"] for tag, given in found if tag == "section" and given.get("id")] == SECTIONS
    assert not [tag for tag, given in found if given.get("src") or tag == "link"]
    assert len(text.encode()) < 6_000_000


def test_text_of_prompts_is_never_markup(text: str) -> None:
    assert HOSTILE not in text
    assert html.escape(HOSTILE, quote=False) in html.unescape(text).replace("'", "'") or "&lt;/script&gt;" in text
    assert not [tag for tag, _ in tags(text) if tag in ("img", "b")]
    assert HOSTILE in embedded(text)["charts"]["templates"]["tables"]["0|0"]["template"]


def test_every_setting_of_the_controls_has_a_table(out: Path) -> None:
    found = read_findings(str(out))
    for section in sections(found):
        options = {control.name: list(control.options) for control in section.controls}
        options["group"] = [str(index) for index in range(len(found.groups))]
        for chart in section.charts:
            expected = {""}
            for name in chart.controls:
                expected = {f"{before}|{value}".removeprefix("|") for before in expected for value in options[name]}
            assert set(chart.tables) == expected, chart.name
            for rows in chart.tables.values():
                assert set(chart.columns) <= set(rows.columns), chart.name


def test_the_heat_map_shows_the_summary(out: Path, text: str) -> None:
    shown = embedded(text)["charts"]["heatmap"]["tables"][f"0|{SCORES[0]}|node"]
    rows = summary(str(out)).filter(pl.col("level") == "node", pl.col("wrong_answer") == "logit_difference").collect()
    means = dict(rows.select("component", f"{SCORES[0]}_mean").iter_rows())
    assert len(shown["component"]) == 6
    for name, mean in zip(shown["component"], shown["mean"], strict=True):
        assert mean == pytest.approx(means[name], rel=1e-3)


def test_the_heat_map_shows_what_ablation_finds_in_the_same_places(out: Path, text: str) -> None:
    tables = embedded(text)["charts"]["heatmap"]["tables"]
    shown = pl.DataFrame(tables["0|effect|node"]).sort("component")
    measured = pl.read_parquet(out / "effects.parquet").filter(pl.col("method") == "resample").sort("component")
    assert shown["component"].to_list() == measured["component"].to_list()
    share = 100 * (measured["value"] / measured["gap"]).abs()
    assert shown["mean"].to_list() == pytest.approx(share.to_list(), rel=1e-3)
    assert shown.select((pl.col("low") <= pl.col("mean")) & (pl.col("mean") <= pl.col("high"))).to_series().all()
    assert tables["0|effect|q"]["component"] == []


def test_ranks_after_all_prompts_are_those_of_the_summary(out: Path, text: str) -> None:
    settled = pl.DataFrame(embedded(text)["charts"]["settling"]["tables"]["0"]).filter(pl.col("last"))
    ranked = read_findings(str(out)).nodes(Key("prompts", "logit_difference"))
    assert dict(settled.select("component", "rank").iter_rows()) == dict(ranked.select("component", "rank").iter_rows())


def test_the_axis_of_prompts_ends_at_their_number(text: str) -> None:
    chart = embedded(text)["charts"]["settling"]
    assert sorted(set(chart["tables"]["0"]["prompts"])) == [16, 32, 35]
    for layer in chart["specification"]["layer"]:
        assert layer["encoding"]["x"]["type"] == "ordinal"
        assert "shape" not in layer["encoding"]


def test_intervals_of_an_evaluation_say_what_they_are_over(text: str) -> None:
    said = r"are over prompts,? (and )?not over templates or components"
    assert len(re.findall(f"<caption>[^<]*{said}", text)) == 2
    assert len(re.findall(f"<figcaption>[^<]*{said}", text)) == 1
    assert len(re.findall(f'<th scope="row">95 %</th><td[^>]*>[^<]*{said}', text)) == 1


def test_prompts_at_either_end_are_kept_however_they_arrive() -> None:
    values = np.random.default_rng(0).random((3, 100))
    found = PromptFindings(["a", "b", "c"])
    for start in range(0, 100, 7):
        chosen = slice(start, start + 7)
        found.add(values[:, chosen], ["t"] * values[:, chosen].shape[1], [str(i) for i in range(100)][chosen])
    found.finish()
    order = [str(index) for index in np.argsort(np.linalg.norm(values, axis=0))]
    assert [name for _, name in sorted(found.most, reverse=True)] == order[::-1][:6]
    assert [name for _, name in sorted(found.least, reverse=True)] == order[:6]
    assert np.allclose(found.means[64], values[:, :64].mean(axis=1))
    assert np.allclose(found.means[100], values.mean(axis=1))
    assert found.sample.shape == (3, 100)


def test_warnings_name_wrong_prompts_and_missing_shards(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    finished(study)
    (Path(study.out) / "commits" / "00002.json").unlink()
    said = "\n".join(warnings(read_findings(study.out)))
    assert "1 of 5 shards are missing" in said
    assert re.search(r"gets \d+% of the 32 prompts of ioi wrong", said)
    assert "no gradient" not in said


def test_few_templates_are_warned_of_by_the_name_of_the_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(str(out))
    said = capsys.readouterr()
    told = " ".join((said.out + said.err).split())
    assert "Beware Intervals of prompts.jsonl rest on 2 templates and say little." in told
    assert re.search(r"Beware The model gets \d+% of the 40 prompts of prompts.jsonl wrong", told)
    found = read_findings(str(out))
    for n, expected in ((1, "All prompts of prompts.jsonl are of one template: intervals"), (5, None)):
        counted = replace(found, summary=found.summary.with_columns(n_templates=pl.lit(n)))
        about = [warning.partition(" say")[0] for warning in warnings(counted) if "ntervals" in warning]
        assert about == [expected] * (n < 5)


def test_a_ranking_by_the_weaker_score_is_warned_of(out: Path) -> None:
    found = read_findings(str(out))
    assert "weaker score" not in "\n".join(warnings(found))
    of_one = pl.when(pl.col("wrong_answer") == "foil").then(None).otherwise(pl.col(f"{SCORES[0]}_mean"))
    summary = found.summary.with_columns(of_one.alias(f"{SCORES[0]}_mean"))
    [said] = [warning for warning in warnings(replace(found, summary=summary)) if "weaker score" in warning]
    assert said.startswith(f"prompts, foil: ranked by {SCORES[1]}, ")
    assert "give at least 8 of each" in said


def test_a_study_too_large_for_the_page_says_what_is_left_out(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings_module, "MAX_CELLS", len(read_findings(str(out)).components))
    found = read_findings(str(out))
    assert len(found.groups) == 1
    assert "1 further pairs of task and wrong answer" in "\n".join(warnings(found))
    assert "agreement" not in {section.id for section in sections(found)}
    assert "foil" not in re.sub(r"<script.*?</script>", "", page(found), flags=re.DOTALL).split("What was run")[0]


def test_figures_are_drawn(out: Path, tmp_path: Path) -> None:
    files = write_figures(str(out), tmp_path / "figures")
    names = {file.name for file in files}
    assert {"heatmap_prompts_logit_difference.png", "roc_prompts_foil.png", "circuit_prompts_foil.png"} <= names
    assert [name for name in names if name.startswith("agreement")] == ["agreement_prompts.png"]
    assert len(names) == len(files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"plan\.json"):
        write_report(str(tmp_path))


def test_an_evaluation_by_an_older_version_is_refused(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    file = tmp_path / "out" / "effects.parquet"
    pl.read_parquet(file).drop("wrong_answer").write_parquet(file)
    with pytest.raises(BadInput, match=r"lacks the columns wrong_answer.*Run `gbcd evaluate` again"):
        read_findings(str(tmp_path / "out"))


def test_parts_without_gradient_are_named(out: Path) -> None:
    found = read_findings(str(out))
    silenced = found.summary.with_columns(
        grad_norm_mean=pl.when(pl.col("component") == "a0.h0.q").then(0.0).otherwise(pl.col("grad_norm_mean"))
    )
    said = "\n".join(warnings(findings_module.Findings(**{**found.__dict__, "summary": silenced})))
    assert "no gradient reaches a0.h0.q." in said
    assert isinstance(found.components[0], Component)


def test_every_score_with_values_for_components_has_a_curve(text: str) -> None:
    for chart in ("roc", "faithfulness"):
        drawn = embedded(text)["charts"][chart]["tables"]["1"]["method"]
        assert {"score: writing norm", "gradient norm", "contrast norm", "attribution patching"} <= set(drawn), chart


def test_contrast_norms_are_those_of_the_wrong_answer(out: Path, text: str) -> None:
    effects = pl.read_parquet(out / "effects.parquet")
    resampled = effects.filter(pl.col("method") == "resample")
    members = resampled["value"].abs() >= MEMBER_SHARE * resampled["gap"].abs()
    norms = effects.filter(pl.col("method") == "contrast_norm", pl.col("wrong_answer") == "foil")
    assert norms["component"].to_list() == resampled["component"].to_list()
    false, true, _ = roc_curve(members.to_numpy(), norms["value"].to_numpy())
    table = pl.DataFrame(embedded(text)["charts"]["roc"]["tables"]["1"]).filter(pl.col("method") == "contrast norm")
    assert table["false_positives"].to_list() == pytest.approx(false, rel=1e-3)
    assert table["true_positives"].to_list() == pytest.approx(true, rel=1e-3)


def test_edges_of_the_circuit_have_the_scores_of_the_evaluation(out: Path, text: str) -> None:
    drawn = pl.DataFrame(embedded(text)["charts"]["circuit"]["tables"]["0"]).filter(pl.col("kind") == "edge")
    scored = Circuit.from_json((out / edges_file("prompts", "logit_difference")).read_bytes(), "edges")
    into = [edge.score for name, edge in scored.edges.items() if ends(name) == ("input", "m1") and edge.in_graph]
    assert drawn.filter(pl.col("name") == "input → m1")["score"].to_list() == pytest.approx(into, rel=1e-3)
    assert drawn["weight"].max() == pytest.approx(4.75)


def test_names_beside_dots_lie_on_nothing() -> None:
    rows = pl.DataFrame(
        {
            "component": ["large", "left of it", "high", "between", "right of it", "on both"],
            "effect": [90.0, 88.0, 0.0, 40.0, 42.0, 41.0],
            "score": [5.0, 5.0, 9.0, 4.0, 4.0, 4.0],
        }
    )
    sides = dict(marked(rows).select("component", "side").iter_rows())
    assert sides == {
        "large": "right",
        "left of it": "left",
        "high": "right",
        "between": "left",
        "right of it": "right",
        "on both": None,
    }


def test_high_scores_without_effect_are_named_before_large_effects() -> None:
    n = 2 * NAMED
    rows = pl.DataFrame(
        {
            "component": [*(f"misleads {i}" for i in range(BY_SCORE)), *(f"carries {i}" for i in range(n))],
            "effect": [0.0] * BY_SCORE + [float(i) for i in range(n)],
            "score": [3.0 - i / 10 for i in range(BY_SCORE)] + [1.5 - i / 20 for i in range(n)],
        }
    )
    named = set(marked(rows).filter(pl.col("side").is_not_null())["component"])
    assert len(named) == NAMED
    assert {f"misleads {i}" for i in range(BY_SCORE)} | {f"carries {n - 1}"} < named
    assert "carries 0" not in named


def test_scores_of_zero_are_not_called_high(out: Path) -> None:
    found = read_findings(str(out))
    zero = pl.when(pl.col("component") == "m1").then(pl.col("score")).otherwise(0.0)
    changed = findings_module.Findings(**{**found.__dict__, "summary": found.summary.with_columns(score=zero)})
    assert changed.strongest(found.groups[0], 5) == ["m1"]
    task, answer, highest = in_short.section(changed).tables[0].rows[1][:3]
    assert (task, answer) == ("prompts", "foil")
    assert re.fullmatch(rf"m1{NBSP}-?\d+{NBSP}%", str(highest))


def changed_effects(found: Findings, shares: dict[str, float]) -> Findings:
    """The findings with these effects, in shares of the gap, and none of other components."""
    assert found.measured is not None
    share = pl.col("component").replace_strict(shares, default=0.0)
    effects = found.measured.effects.with_columns(value=share * pl.col("gap"))
    return replace(found, measured=replace(found.measured, effects=effects))


def test_high_scores_stand_beside_their_measured_effects(out: Path) -> None:
    found = read_findings(str(out))
    first, second, third, *_ = found.strongest(found.groups[0], 5)
    scores, circuits = in_short.section(changed_effects(found, {first: -0.003, second: 0.482, third: -0.2})).tables
    assert str(scores.rows[0][2]).replace(NBSP, " ").startswith(f"{first} 0 %, {second} 48 %, {third} -20 %, ")
    assert float(str(scores.rows[0][3])) <= 1
    [(task, circuit)] = circuits.rows
    assert task == "prompts"
    assert str(circuit).replace(NBSP, " ") == (
        "2 of 6 components carry at least 10 % of the gap, 1 of them against the behaviour: "
        f"{second} 48 %, {third} -20 %"
    )


def test_a_measured_circuit_is_cut_to_its_largest_members_and_may_be_empty(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_short, "MEMBERS", 1)
    found = read_findings(str(out))
    several = changed_effects(found, {"m0": 0.2, "m1": 0.65})
    assert str(in_short.section(several).tables[1].rows[0][1]).endswith(f": m1{NBSP}65{NBSP}% and 1 more")
    idle = in_short.section(changed_effects(found, {})).tables[1].rows[0][1]
    assert idle == "none of 6 components carries at least 10 % of the gap"


def test_before_an_evaluation_scores_are_said_to_be_no_proof(out: Path) -> None:
    found = replace(read_findings(str(out)), measured=None)
    section = in_short.section(found)
    assert "not proof" in section.text
    assert f"gbcd evaluate {out} measures what matters" in section.text
    assert "%" not in str(section.tables)
    circuit = circuit_graph.section(found)
    assert circuit is not None
    assert circuit.text_by_group == {}


def test_the_circuit_begins_with_what_it_keeps_alone(out: Path, text: str) -> None:
    rows = pl.read_parquet(out / "faithfulness.parquet").filter(
        pl.col("size") == CIRCUIT_SHARE,
        (pl.col("wrong_answer") == "foil") | pl.col("wrong_answer").is_null(),
    )
    kept = {row["method"]: round(100 * row["faithfulness"]) for row in rows.iter_rows(named=True)}
    section = circuit_graph.section(read_findings(str(out)))
    assert section is not None
    said = section.text_by_group["1"]
    assert said.startswith(f"Alone, the best component by score keeps {kept[SCORES[0]]} % of the gap [")
    assert f"by attribution patching keeps {kept['attribution_patching']} % of the gap [" in said
    assert text.index(html.escape(said)) < text.index("The best 20%")


def test_large_sets_of_answers_are_cut_short() -> None:
    assert answers("50|51|52|53|54") == "50, 51, 52 and 2 more"
    assert answers("3 1 2") == "3 1 2"


def test_parts_without_gradient_are_said_once_for_all_wrong_answers(out: Path) -> None:
    found = read_findings(str(out))
    silenced = found.summary.with_columns(
        grad_norm_mean=pl.when(pl.col("component") == "m1.in").then(0.0).otherwise(pl.col("grad_norm_mean"))
    )
    said = warnings(findings_module.Findings(**{**found.__dict__, "summary": silenced}))
    [about_gradients] = [warning for warning in said if "no gradient" in warning]
    assert about_gradients.startswith("Every task and wrong answer: no gradient reaches m1.in.")
