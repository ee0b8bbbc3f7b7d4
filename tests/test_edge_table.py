import numpy as np
import polars as pl
import pytest
from synthetic_shards import COMPONENTS, collected, drawn, moments, shard

from gbcd.analysis.circuits import Config, edge_ends
from gbcd.analysis.edges import edge_table

CFG = Config(n_layers=1, n_heads=2, parallel_attn_mlp=False, d_model=4)
N_EDGES = len(edge_ends(CFG).sources)


def table(values, attributions, templates):
    """Edges of prompts in two shards, beside the attributions of their nodes."""
    half = len(values) // 2
    statistics = drawn(len(values)) | {"attribution": attributions}
    cuts = slice(0, half), slice(half, None)
    shards = [
        shard(
            {name: found[cut] for name, found in statistics.items()},
            templates[cut],
            moments=moments({"edges": values[cut]}),
        )
        for cut in cuts
    ]
    return edge_table(collected(shards), COMPONENTS, CFG)


def test_every_edge_has_a_row_with_moments_over_all_prompts():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, N_EDGES)) + np.linspace(-1, 1, N_EDGES)
    found = table(values, rng.normal(size=(40, 11)), ["t"] * 40)
    assert found["n"].unique().to_list() == [40]
    assert found.select("source", "target").rows()[:4] == [("input", f"a0.h{h}<{part}>") for h, part in
                                                            ((0, "q"), (0, "k"), (0, "v"), (1, "q"))]  # fmt: skip
    np.testing.assert_allclose(found["mean"], values.mean(0))
    np.testing.assert_allclose(found["std"], values.std(0, ddof=1))
    agreement = (np.sign(values) == np.sign(values.mean(0))).mean(0)
    np.testing.assert_allclose(found["sign_agreement"], agreement)
    half = 2.0227 * values.std(0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(found["ci_high"] - found["mean"], half, rtol=1e-4)


def test_intervals_are_as_wide_as_templates_make_those_of_the_source():
    """Edges of a head whose values depend on the template: the interval that would take templates into account."""
    rng = np.random.default_rng(0)
    templates = [f"t{index % 10}" for index in range(200)]
    by_template = rng.normal(size=10)[np.arange(200) % 10]
    values = 0.3 * rng.normal(size=(200, N_EDGES)) + by_template[:, None]
    attributions = 0.3 * rng.normal(size=(200, 11))
    attributions[:, 3] += by_template  # a0.h0.o; nothing of a0.h1 depends on the template
    found = table(values, attributions, templates).with_columns(half=(pl.col("ci_high") - pl.col("ci_low")) / 2)
    widths = {source: rows["half"].mean() for (source,), rows in found.group_by("source")}
    templates_only = 2.262 * by_template[:10].std(ddof=1) / np.sqrt(10)
    assert widths["a0.h0"] == pytest.approx(templates_only, rel=0.1)
    assert widths["a0.h1"] < 0.5 * widths["a0.h0"]


def test_a_study_without_edges_has_no_table_and_foreign_shards_are_refused():
    assert edge_table(collected([shard(drawn(2), ["a", "b"])]), COMPONENTS, CFG) is None
    with pytest.raises(ValueError, match=f"shards hold 3 edges, and the model has {N_EDGES}"):
        table(np.ones((4, 3)), np.ones((4, 11)), list("abab"))
