import json

import networkx as nx
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.component import Component
from gbcd.errors import BadInput
from gbcd.reduction.circuits import Circuit, Config, circuit_files, circuit_of, edge_names, ends, node_names

CFG = Config(n_layers=2, n_heads=2, parallel_attn_mlp=False, d_model=8)
SCORES = {"a0.h0": 4.0, "a0.h1": 1.0, "m0": 3.0, "a1.h0": 2.0, "a1.h1": 0.5, "m1": 5.0}


def test_the_graph_of_a_small_model():
    assert node_names(CFG) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    edges = list(edge_names(CFG))
    assert len(edges) == len(set(edges))
    assert {edge for edge in edges if edge.startswith("a0.h0")} == {
        "a0.h0->m0",
        *(f"a0.h0->a1.h{head}<{part}>" for head in (0, 1) for part in "qkv"),
        "a0.h0->m1",
        "a0.h0->logits",
    }
    parallel = set(edge_names(CFG.model_copy(update={"parallel_attn_mlp": True})))
    assert set(edges) - parallel == {f"a{layer}.h{head}->m{layer}" for layer in (0, 1) for head in (0, 1)}


def test_gpt2_has_the_number_of_edges_that_eap_ig_counts():
    gpt2 = Config(n_layers=12, n_heads=12, parallel_attn_mlp=False, d_model=768)
    assert sum(1 for _ in edge_names(gpt2)) == 32491


@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_edges_never_run_backwards(n_layers, n_heads, parallel):
    cfg = Config(n_layers=n_layers, n_heads=n_heads, parallel_attn_mlp=parallel, d_model=4)
    order = {name: number for number, name in enumerate(node_names(cfg))}
    assert all(order[source] < order[target] for source, target in map(ends, edge_names(cfg)))


def test_what_eap_ig_reads_is_there():
    written = json.loads(circuit_of(CFG, SCORES, ["a0.h0", "m1"]).to_json())
    assert written["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert written["nodes"]["a0.h0"] == {"in_graph": True, "score": 4.0}
    assert written["nodes"]["m0"] == {"in_graph": False, "score": 3.0}
    assert written["nodes"]["input"] == written["nodes"]["logits"] == {"in_graph": True}
    assert written["edges"]["a0.h0->m1"] == {"score": 4.0, "in_graph": True}
    assert written["edges"]["a0.h0->a1.h0<v>"] == {"score": 2.0, "in_graph": False}
    assert written["edges"]["input->a0.h0<q>"] == {"score": 4.0, "in_graph": True}


def test_a_circuit_survives_the_file():
    circuit = circuit_of(CFG, SCORES, ["a0.h0", "m1"])
    assert Circuit.from_json(circuit.to_json(), "circuit.json") == circuit


def test_networkx_has_the_members_only():
    graph = circuit_of(CFG, SCORES, ["a0.h0", "a1.h1"]).to_networkx()
    assert set(graph.nodes) == {"input", "a0.h0", "a1.h1", "logits"}
    assert {data["part"] for *_, data in graph.edges("a0.h0", data=True) if "part" in data} == set("qkv")
    assert nx.has_path(graph, "input", "logits")


def test_a_summary_gives_a_circuit_for_each_task_and_wrong_answer():
    parts = [("q", "a0.h0", 0), ("o", "a0.h0", 0), ("q", "a0.h1", 1), ("in", "m0", None)]
    components = [Component(f"{node}.{part}", node, 0, head, part, 4) for part, node, head in parts]
    components.append(Component("final.norm", "final.norm", 1, None, "norm", 8))
    assert Config.of(components) == Config(n_layers=1, n_heads=2, parallel_attn_mlp=False, d_model=8)
    nodes = [{"component": name, "score": score, "rank": rank} for name, score, rank in
             (("a0.h0", 1.0, 2), ("a0.h1", 3.0, 1), ("m0", 0.5, 3), ("final.norm", 9.0, None))]  # fmt: skip
    rows = [
        {"task": "ioi", "wrong_answer": wrong, "level": "node", **node}
        for wrong in ("foil", "semantic")
        for node in nodes
    ]
    files = circuit_files(pl.DataFrame(rows), components)
    assert list(files) == ["circuit.json", "circuit_ioi_semantic.json"]
    circuit = Circuit.from_json(files["circuit.json"], "circuit.json")
    assert [name for name, node in circuit.nodes.items() if node.in_graph] == ["input", "a0.h1", "logits"]
    assert circuit.nodes["m0"].score == 0.5
    assert circuit_files(pl.DataFrame(rows), components[:-1]) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda written: written.pop("cfg"), r"c\.json is not a circuit.*cfg: Field required"),
        (lambda written: written["nodes"].pop("m0"), "differ in 1 nodes or edges, first 'm0'"),
        (lambda written: written["edges"].update({"m1->m0": {"score": 1, "in_graph": True}}), "first 'm1->m0'"),
        (lambda written: written["nodes"].update(m0={"score": "x"}), r"nodes\.m0\.in_graph"),
    ],
)
def test_files_that_are_no_circuit_are_refused(change, message):
    written = json.loads(circuit_of(CFG, SCORES, []).to_json())
    change(written)
    with pytest.raises(BadInput, match=message):
        Circuit.from_json(json.dumps(written).encode(), "c.json")
