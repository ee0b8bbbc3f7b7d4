import io

import numpy as np
import polars as pl
from matplotlib.image import imread

from gbcd.analysis.heatmap import draw_heatmaps, heatmap, score_grids


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
    keys = {"task": "ioi", "wrong_answer": wrong, "level": "node", "n": 5, "rank": 1}
    rows.append({"component": "final.norm", "layer": layers, "score": 1e9, "rank": None})
    return pl.DataFrame([{**keys, **row} for row in rows])


def test_grid_puts_every_node_in_its_place():
    grids = score_grids(summary(2, 3).filter(pl.col("rank").is_not_null()))
    assert {kind: grid.tolist() for kind, grid in grids.items()} == {
        "head": [[1, 2, 3], [11, 12, 13]], "MLP": [[4], [14]]
    }  # fmt: skip
    mlp_only = summary(2, 0).filter(pl.col("rank").is_not_null())
    assert {kind: grid.tolist() for kind, grid in score_grids(mlp_only).items()} == {"MLP": [[1], [11]]}


def test_groups_stand_between_heads_and_mlps():
    nodes = summary(2, 4).filter(pl.col("rank").is_not_null())
    groups = [{"component": f"a{layer}.g1", "layer": layer, "score": 20.0 + layer} for layer in range(2)]
    nodes = pl.concat([nodes, pl.DataFrame(groups)], how="diagonal")
    grids = score_grids(nodes)
    assert list(grids) == ["head", "group", "MLP"]
    np.testing.assert_array_equal(grids["group"], [[np.nan, 20], [np.nan, 21]])
    assert [axes.get_xlabel() for axes in heatmap(nodes, "t").axes[:3]] == ["head", "group", ""]


def test_one_picture_a_task_and_wrong_answer():
    files = draw_heatmaps(pl.concat([summary(4, 8), summary(4, 8, "inverse_logits")]))
    assert list(files) == ["heatmap_ioi_foil.png", "heatmap_ioi_inverse_logits.png"]
    pixels = imread(io.BytesIO(files["heatmap_ioi_foil.png"]))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 30


def test_numbers_are_shares_of_the_largest_score_and_left_out_of_wide_pictures():
    nodes = summary(2, 2).filter(pl.col("rank").is_not_null())
    written = [text.get_text() for axes in heatmap(nodes, "t").axes for text in axes.texts]
    assert sorted(written, key=int) == [f"{100 * score / 13:.0f}" for score in (1, 2, 3, 11, 12, 13)]
    wide = heatmap(summary(2, 40).filter(pl.col("rank").is_not_null()), "t")
    assert not any(axes.texts for axes in wide.axes)
