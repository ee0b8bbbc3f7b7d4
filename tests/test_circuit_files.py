import numpy as np
import polars as pl
import pytest
from small_runs import finished, small_study

import gbcd
from gbcd.analysis.circuit_files import circuit_files
from gbcd.analysis.circuits import Circuit, Config, Selection, edge_ends
from gbcd.component import Component, file_name
from gbcd.errors import BadInput

CFG = Config(n_layers=1, n_heads=2, parallel_attn_mlp=False, d_model=8)


def summary(*groups):
    nodes = [("a0.h0", 1.0, 2), ("a0.h1", 3.0, 1), ("m0", 0.5, 3), ("final.norm", 9.0, None)]
    rows = [
        {"task": task, "wrong_answer": wrong, "level": "node", "component": name, "score": score, "rank": rank,
         "score_name": "grad_norm"}
        for task, wrong in groups
        for name, score, rank in nodes
    ]  # fmt: skip
    return pl.DataFrame(rows)


def test_the_shape_of_a_model_is_told_by_its_parts():
    parts = [("q", "a0.h0", 0), ("o", "a0.h0", 0), ("q", "a0.h1", 1), ("in", "m0", None)]
    components = [Component(f"{node}.{part}", node, 0, head, part, 4) for part, node, head in parts]
    components.append(Component("final.norm", "final.norm", 1, None, "norm", 8))
    assert Config.of(components, False) == CFG
    assert Config.of(components[:-1], False) is None


def test_every_task_and_wrong_answer_has_a_circuit_and_the_first_is_the_circuit():
    files = circuit_files(summary(("ioi", "foil"), ("ioi", "semantic")), CFG)
    assert list(files) == ["circuit.json", "circuit.ioi.foil.json", "circuit.ioi.semantic.json"]
    assert files["circuit.json"] == files["circuit.ioi.foil.json"]
    circuit = Circuit.from_json(files["circuit.json"], "circuit.json")
    assert [name for name, node in circuit.nodes.items() if node.in_graph] == ["input", "a0.h1", "logits"]
    assert circuit.nodes["m0"].score == 0.5
    assert (circuit.selection.by, circuit.selection.n, circuit.selection.score) == ("nodes", 1, "grad_norm")
    assert circuit_files(summary(("ioi", "foil")), None) == {}


def test_names_never_collide_and_never_leave_the_folder():
    names = [("a", "b_c"), ("a_b", "c"), ("a", "b.c"), ("a.b", "c"), ("a/b", "c"), ("../..", "c"), ("a=2f=b", "c")]
    files = [file_name("circuit", *name, suffix="json") for name in names]
    assert len(set(files)) == len(names)
    assert not any("/" in file or ".." in file for file in files)
    assert len(circuit_files(summary(("a", "b_c"), ("a_b", "c")), CFG)) == 3


def test_a_group_without_a_score_has_no_circuit_and_the_next_is_the_first():
    nothing = summary(("ioi", "foil")).with_columns(rank=pl.lit(None, pl.Int64), score=pl.lit(None, pl.Float64))
    files = circuit_files(pl.concat([nothing, summary(("two", "foil"))]), CFG)
    assert list(files) == ["circuit.json", "circuit.two.foil.json"]


def test_where_there_are_edges_the_circuit_is_made_of_them():
    cfg = Config(n_layers=2, n_heads=4, parallel_attn_mlp=False, d_model=8)
    ends = edge_ends(cfg)
    clear = {("input", "a0.h1<v>"): 2.0, ("a0.h1", "logits"): -1.0, ("m0", "logits"): 0.5}
    means = np.array([clear.get(edge, 0.1) for edge in zip(*ends, strict=True)])
    # an interval that contains zero leaves no edge out
    spread = np.where(means == 2.0, 10.0, 0.1)
    columns = {"mean": means, "ci_low": means - spread, "ci_high": means + spread}
    columns |= {"source": ends.sources, "target": ends.targets}
    edges = pl.DataFrame({"task": "ioi", "wrong_answer": "foil", **columns})
    nodes = summary(("ioi", "foil")).with_columns(component=pl.col("component").replace("final.norm", "a1.h0"))
    circuit = Circuit.from_json(circuit_files(nodes, cfg, edges)["circuit.json"], "circuit.json")
    assert {name: edge.score for name, edge in circuit.edges.items()} == {"input->a0.h1<v>": 2.0, "a0.h1->logits": -1.0}
    assert circuit.selection == Selection(by="top", n=5, score="edges", condition="none")


def test_circuits_of_a_study_are_read_by_name(tmp_path):
    study = small_study(tmp_path)
    finished(study)
    found = gbcd.load_circuit(study.out, wrong_answer="inverse_logits")
    assert found == gbcd.load_circuit(f"{study.out}/circuit.ioi.inverse_logits.json")
    assert gbcd.load_circuit(study.out, "ioi", "logit_difference") == gbcd.load_circuit(f"{study.out}/circuit.json")
    with pytest.raises(BadInput, match="several circuits could be meant; name task and wrong_answer of one of: ioi"):
        gbcd.load_circuit(study.out)
    with pytest.raises(BadInput, match="there is no such circuit"):
        gbcd.load_circuit(study.out, "iou")
