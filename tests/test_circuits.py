import json

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import finished, small_study
from tiny_models import saved_random

import gbcd
from gbcd.analysis.circuits import (
    Circuit,
    Config,
    Edge,
    Node,
    Selection,
    circuit_of_edges,
    circuit_of_nodes,
    edge_ends,
    edge_names,
    ends,
    n_edges,
    node_names,
)
from gbcd.engine.tables import COMPONENTS
from gbcd.errors import BadInput

CFG = Config(n_layers=2, n_heads=2, parallel_attn_mlp=False, d_model=8)
SCORES = {"a0.h0": 4.0, "a0.h1": 1.0, "m0": 3.0, "a1.h0": 2.0, "a1.h1": 0.5, "m1": 5.0}


def test_the_graph_of_a_small_model():
    assert node_names(CFG) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    edges = edge_names(CFG)
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
    assert len(edge_names(gpt2)) == n_edges(gpt2) == 32491
    ends = edge_ends(gpt2)
    assert (len(set(ends.sources)), len(set(ends.targets))) == (1 + 12 * 13, 12 * (3 * 12 + 1) + 1)


@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_edges_never_run_backwards(n_layers, n_heads, parallel):
    cfg = Config(n_layers=n_layers, n_heads=n_heads, parallel_attn_mlp=parallel, d_model=4)
    order = {name: number for number, name in enumerate(node_names(cfg))}
    assert len(edge_names(cfg)) == n_edges(cfg)
    assert all(order[source] < order[target] for source, target in map(ends, edge_names(cfg)))


def test_what_eap_ig_reads_is_there():
    written = json.loads(circuit_of_nodes(CFG, SCORES, ["a0.h0", "m1"]).to_json())
    assert written["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert written["nodes"]["a0.h0"] == {"in_graph": True, "score": 4.0}
    assert written["nodes"]["m0"] == {"in_graph": False, "score": 3.0}
    assert written["nodes"]["input"] == written["nodes"]["logits"] == {"in_graph": True}
    assert written["edges"]["a0.h0->m1"] == {"score": 4.0, "in_graph": True}
    assert written["edges"]["input->a0.h0<q>"] == {"score": 4.0, "in_graph": True}


def test_a_file_lists_the_edges_of_the_circuit_only():
    circuit = circuit_of_nodes(CFG, SCORES, ["a0.h0", "m1"])
    inside = {"input", "a0.h0", "m1", "logits"}
    assert set(circuit.edges) == {edge for edge in edge_names(CFG) if inside.issuperset(ends(edge))}
    assert all(edge.in_graph for edge in circuit.edges.values())


def test_a_model_of_attention_alone_has_a_circuit_of_heads():
    heads = {name: score for name, score in SCORES.items() if name[0] == "a"}
    circuit = circuit_of_nodes(CFG, heads, ["a0.h0", "a1.h0"])
    assert circuit.nodes["m0"] == Node(in_graph=False)
    assert not any("m" in name for name in circuit.edges)
    assert circuit.edges["a0.h0->a1.h0<v>"].score == 2.0


def test_a_circuit_of_edges_has_their_ends_and_says_how_it_was_chosen():
    chosen = Selection(by="top", n=2, score="edges", condition="interval")
    circuit = circuit_of_edges(CFG, SCORES, {"input->a0.h1<v>": -0.5, "a0.h1->logits": 0.25}, chosen)
    assert [name for name, node in circuit.nodes.items() if node.in_graph] == ["input", "a0.h1", "logits"]
    assert circuit.edges["input->a0.h1<v>"] == Edge(score=-0.5, in_graph=True)
    read = Circuit.from_json(circuit.to_json(), "c.json")
    assert read == circuit
    assert json.loads(circuit.to_json())["selection"]["by"] == "top"


class EapIgGraph:
    """What EAP-IG's `Graph.from_json` makes of a file, by its rules.

    The graph is built from `cfg`: sources are numbered `input`, then heads and MLP layer by layer; readers are numbered
    layer by layer, all heads' q, then k, then v, then the MLP, and `logits` last. Every node of the file but `logits`
    must be a source, and every edge one that this graph has. A node without a score stays in every circuit.
    """

    def __init__(self, text):
        written = json.loads(text)
        layers, heads = written["cfg"]["n_layers"], written["cfg"]["n_heads"]
        assert written["cfg"].keys() >= {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"}
        sources, visible = ["input"], {}
        for layer in range(layers):
            attention = [f"a{layer}.h{head}" for head in range(heads)]
            visible |= {f"{head}<{part}>": len(sources) for part in "qkv" for head in attention}
            sources += attention
            visible[f"m{layer}"] = len(sources)
            sources.append(f"m{layer}")
        readers = list(visible := visible | {"logits": len(sources)})
        self.scores = np.zeros((len(sources), len(readers)))
        self.in_graph = np.zeros(self.scores.shape, bool)
        self.nodes_in_graph, self.nodes_scores = np.zeros(len(sources), bool), np.full(len(sources), np.nan)
        for name, node in written["nodes"].items():
            if name != "logits":
                self.nodes_in_graph[sources.index(name)] = node["in_graph"]
                self.nodes_scores[sources.index(name)] = node.get("score", np.nan)
        for name, edge in written["edges"].items():
            source, reader = name.split("->")
            place = sources.index(source), readers.index(reader)
            assert place[0] < visible[reader]
            self.scores[place], self.in_graph[place] = edge["score"], edge["in_graph"]


@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_eap_ig_reads_the_circuit_that_was_written(n_layers, n_heads, data):
    cfg = Config(n_layers=n_layers, n_heads=n_heads, parallel_attn_mlp=False, d_model=8)
    names = node_names(cfg)[1:-1]
    scores = {name: float(number) for number, name in enumerate(names, start=1)}
    members = data.draw(st.sets(st.sampled_from(names)))
    read = EapIgGraph(circuit_of_nodes(cfg, scores, members).to_json())
    assert read.nodes_scores[1:].tolist() == list(scores.values())
    assert np.isnan(read.nodes_scores[0])
    assert read.nodes_in_graph.tolist() == [True, *(name in members for name in names)]
    assert read.in_graph[0, -1]
    assert read.in_graph[:, -1].tolist() == [True, *(name in members for name in names)]
    assert (read.scores > 0).sum() == read.in_graph.sum()
    assert read.in_graph[0].sum() == 1 + sum(3 if ".h" in name else 1 for name in members)


def test_a_file_of_eap_ig_is_read():
    written = json.loads(circuit_of_nodes(CFG, SCORES, ["a0.h0", "m1"]).to_json())
    written["nodes"]["input"] |= {"score": float("nan"), "neurons": [True] * 8, "neurons_scores": [0.0] * 8}
    circuit = Circuit.from_json(json.dumps(written).encode(), "theirs.json")
    assert circuit.nodes["m1"] == Node(in_graph=True, score=5.0)


def test_networkx_has_the_members_only():
    graph = circuit_of_nodes(CFG, SCORES, ["a0.h0", "a1.h1"]).to_networkx()
    assert set(graph.nodes) == {"input", "a0.h0", "a1.h1", "logits"}
    assert {data["part"] for *_, data in graph.edges("a0.h0", data=True) if "part" in data} == set("qkv")
    assert nx.has_path(graph, "input", "logits")


@pytest.mark.parametrize(("family", "parallel"), [("gpt_neox", True), ("gpt_neox_serial", False)])
def test_heads_reach_the_mlp_of_their_layer_only_where_it_comes_after_them(tmp_path, family, parallel):
    """From a saved model to the circuit that the reduction writes, which sees no model."""
    saved_random(tmp_path / "model", family)
    study = small_study(tmp_path, prompts_per_task=8, wrong_answers=("foil",))
    finished(study)
    circuit = gbcd.load_circuit(study.out)
    assert circuit.cfg.parallel_attn_mlp is parallel
    assert ("a1.h2->m1" in edge_names(circuit.cfg)) is not parallel
    assert {"a1.h2->m2", "m1->a2.h0<k>", "a1.h2->a2.h0<q>"} <= set(edge_names(circuit.cfg))
    assert gbcd.components(study.out).collect_schema().names() == COMPONENTS.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda written: written.pop("cfg"), r"c\.json is not a circuit.*cfg: Field required"),
        (lambda written: written["nodes"].pop("m0"), "differ in 1 nodes or edges, first 'm0'"),
        (lambda written: written["edges"].update({"m1->m0": {"score": 1, "in_graph": True}}), "first 'm1->m0'"),
        (lambda written: written["edges"].update({"m0->a1.h0": {"score": 1, "in_graph": True}}), "first 'm0->a1.h0'"),
        (lambda written: written["edges"].update({"x->m1<q>": {"score": 1, "in_graph": True}}), "first 'x->m1<q>'"),
        (lambda written: written["nodes"].update(m0={"score": "x"}), r"nodes\.m0\.in_graph"),
    ],
)
def test_files_that_are_no_circuit_are_refused(change, message):
    written = json.loads(circuit_of_nodes(CFG, SCORES, []).to_json())
    change(written)
    with pytest.raises(BadInput, match=message):
        Circuit.from_json(json.dumps(written).encode(), "c.json")
