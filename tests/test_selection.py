import networkx as nx
import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from gbcd.analysis.circuits import INPUT, LOGITS, Config, edge_ends
from gbcd.analysis.selection import numbered, select, without_dead_ends

CFG = Config(n_layers=2, n_heads=2, parallel_attn_mlp=False, d_model=8)


def edges(means, cfg=CFG, **columns):
    """All edges of `cfg`; `means` by name, zero for the rest, or one each."""
    ends = edge_ends(cfg)
    if isinstance(means, dict):
        means = [means.get(f"{source}->{target}", 0.0) for source, target in zip(*ends, strict=True)]
    found = {"source": ends.sources, "target": ends.targets, "mean": means, "ci_low": means, "ci_high": means}
    return pl.DataFrame({**found, "sign_agreement": [1.0] * len(means), **columns})


def names(found):
    return set(found.select(pl.format("{}->{}", "source", "target"))["source"])


def test_the_largest_edges_of_either_sign_are_taken_and_dead_ends_left_out():
    table = edges({"input->a0.h0<v>": -5.0, "a0.h0->m1": 4.0, "m1->logits": 3.0, "input->m0": 2.0, "m0->logits": 1.0})
    assert names(select(table, 3)) == {"input->a0.h0<v>", "a0.h0->m1", "m1->logits"}
    assert names(select(table, 4)) == {"input->a0.h0<v>", "a0.h0->m1", "m1->logits"}
    assert names(select(table, 5)) == names(table.filter(pl.col("mean") != 0))
    assert select(table, 2).is_empty()


def test_greedy_starts_at_the_logits():
    table = edges({"input->a0.h0<v>": 9.0, "a0.h0->m1": 8.0, "m1->logits": 1.0, "input->m0": 0.5, "m0->logits": 2.0})
    assert names(select(table, 4, "greedy")) == {"m1->logits", "a0.h0->m1", "input->a0.h0<v>"}
    assert names(select(table, 5, "greedy")) == names(table.filter(pl.col("mean") != 0))


def test_conditions_leave_out_what_prompts_do_not_agree_on():
    means = {"input->logits": 1.0, "input->m0": 5.0, "m0->logits": 5.0}
    table = edges(means)
    unsure = pl.col("source").eq("m0")
    wide = table.with_columns(ci_low=pl.when(unsure).then(-1.0).otherwise("ci_low"))
    assert names(select(wide, 3, condition="interval")) == {"input->logits"}
    assert names(select(wide, 3, condition="none")) == set(means)
    mixed = table.with_columns(sign_agreement=pl.when(unsure).then(0.6).otherwise("sign_agreement"))
    assert names(select(mixed, 3, condition="sign")) == {"input->logits"}
    negative = edges({"input->logits": -1.0}, ci_low=[-2.0] * table.height, ci_high=[-0.5] * table.height)
    assert names(select(negative, 1)) == {"input->logits"}


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(["top", "greedy"]), st.booleans())
def test_what_is_selected_lies_on_paths_and_in_the_order_of_the_table(seed, n, method, parallel):
    cfg = CFG.model_copy(update={"n_layers": 3, "parallel_attn_mlp": parallel})
    table = edges(np.random.default_rng(seed).normal(size=len(edge_ends(cfg).sources)), cfg).with_row_index()
    found = select(table, n, method)
    assert found.height <= n
    assert found["index"].is_sorted()
    graph = nx.DiGraph()
    graph.add_edges_from(zip(found["source"], found["target"].str.split("<").list.first(), strict=True))
    for node in graph:
        assert node == INPUT or nx.has_path(graph, INPUT, node)
        assert node == LOGITS or nx.has_path(graph, node, LOGITS)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_greedy_takes_the_largest_edge_into_what_is_inside_at_every_step(seed, n):
    table = edges(np.random.default_rng(seed).normal(size=len(edge_ends(CFG).sources)))
    nodes = table["target"].str.split("<").list.first().to_list()
    inside, chosen = {LOGITS}, []
    for _ in range(n):
        candidates = [row for row in range(table.height) if nodes[row] in inside and row not in chosen]
        best = max(candidates, key=lambda row: abs(table["mean"][row]))
        chosen.append(best)
        inside.add(table["source"][best])
    assert names(select(table, n, "greedy")) == names(table[without_dead_ends(numbered(table), np.array(chosen))])
