import io

import numpy as np
import polars as pl
from matplotlib.image import imread

from gbcd.reduction.heatmap import draw_heatmaps, heatmap, score_grid


def summary(layers, heads, wrong="foil"):
    rows = [
        {"layer": layer, "head": head, "score": float(1 + layer * 10 + (heads if head is None else head))}
        for layer in range(layers)
        for head in [*range(heads), None]
    ]
    keys = {"task": "ioi", "wrong_answer": wrong, "level": "node", "n": 5, "rank": 1}
    rows.append({"layer": layers, "head": None, "score": 1e9, "rank": None})
    return pl.DataFrame([{**keys, **row} for row in rows])


def test_grid_puts_every_node_in_its_place():
    grid = score_grid(summary(2, 3).filter(pl.col("rank").is_not_null()))
    np.testing.assert_array_equal(grid, [[1, 2, 3, 4], [11, 12, 13, 14]])
    mlp_only = summary(2, 0).filter(pl.col("rank").is_not_null())
    np.testing.assert_array_equal(score_grid(mlp_only), [[1], [11]])


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
