import io

import polars as pl
from matplotlib.image import imread

from gbcd.evaluation.effect_plot import draw_effect_plots, effect_plot


def rows(methods):
    return pl.DataFrame(
        [
            {"task": "ioi", "method": method, "component": name, "head": head, "value": value, "gap": -2.0}
            for method in methods
            for name, head, value in (("a0.h0", 0, -1.0), ("a0.h1", 1, 0.2), ("m0", None, 0.4))
        ]
    )


SCORES = pl.DataFrame(
    {"task": "ioi", "wrong_answer": "foil", "component": ["a0.h0", "a0.h1", "m0"], "score": [3.0, 1, 2]}
)


def test_dots_stand_at_effect_and_score():
    figure = effect_plot(rows(["resample"]).join(SCORES.select("component", "score"), on="component"), "ioi")
    [axes] = figure.axes
    heads, mlps = (collection.get_offsets().tolist() for collection in axes.collections)
    assert sorted(heads) == [[10.0, 1.0], [50.0, 3.0]]
    assert mlps == [[20.0, 2.0]]
    assert axes.get_title() == "Spearman 1.00"
    assert {text.get_text() for text in axes.texts} == {"a0.h0", "a0.h1", "m0"}


def test_a_picture_for_each_task_and_wrong_answer():
    files = draw_effect_plots(rows(["resample", "mean", "direct_effect"]), SCORES)
    assert list(files) == ["effects_ioi_foil.png"]
    assert imread(io.BytesIO(files["effects_ioi_foil.png"])).shape[1] > 1000
