import struct

import polars as pl
import pytest

from gbcd.analysis.heatmap import draw_heatmaps, heatmap, score_cells


def summary(layers, heads, wrong="foil"):
    rows = [
        {
            "component": f"m{layer}" if head is None else f"a{layer}.h{head}",
            "layer": layer,
            "score": float(1 + layer * 10 + (heads if head is None else head)),
        }
        for layer in range(layers)
        for head in [*range(heads), None]
    ]
    keys = {"task": "ioi", "wrong_answer": wrong, "level": "node", "n": 5, "rank": 1, "score_name": "grad_norm"}
    rows.append({"component": "final.norm", "layer": layers, "score": 1e9, "rank": None})
    return pl.DataFrame([{**keys, **row} for row in rows])


def ranked(frame):
    return frame.filter(pl.col("rank").is_not_null())


def test_every_node_has_its_place_and_its_share_of_the_largest_score():
    cells = score_cells(ranked(summary(2, 12)))
    assert cells["column"].unique(maintain_order=True).to_list() == [*map(str, range(12)), "MLP"]
    shares = {(column, layer): share for column, layer, share in cells.iter_rows()}
    assert shares["11", 1] == pytest.approx(100 * 22 / 23)
    assert shares["MLP", 0] == pytest.approx(100 * 13 / 23)
    assert score_cells(ranked(summary(2, 0)))["column"].to_list() == ["MLP", "MLP"]


def test_groups_stand_between_heads_and_mlps():
    groups = [{"component": f"a{layer}.g{index}", "layer": layer, "score": 2.0} for layer in (0, 1) for index in (0, 1)]
    cells = score_cells(pl.concat([pl.DataFrame(groups), ranked(summary(2, 2))], how="diagonal"))
    assert cells["column"].unique(maintain_order=True).to_list() == ["0", "1", "g0", "g1", "MLP"]


def test_scores_that_are_all_zero_are_drawn():
    cells = score_cells(ranked(summary(2, 2)).with_columns(score=pl.lit(0.0)))
    assert set(cells["share"]) == {0.0}


def test_one_picture_a_task_and_wrong_answer():
    files = draw_heatmaps(pl.concat([summary(4, 8), summary(4, 8, "b.c/d")]))
    assert list(files) == ["heatmap.ioi.foil.png", "heatmap.ioi.b=2e=c=2f=d.png"]
    for png in files.values():
        assert png.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", png[16:24])) > 200
    assert files["heatmap.ioi.foil.png"] != draw_heatmaps(summary(4, 7))["heatmap.ioi.foil.png"]


def test_numbers_are_left_out_of_wide_pictures():
    marks = [[layer["mark"]["type"] for layer in heatmap(ranked(summary(2, heads)), "t").to_dict()["layer"]]
             for heads in (2, 40)]  # fmt: skip
    assert marks == [["rect", "text"], ["rect"]]
