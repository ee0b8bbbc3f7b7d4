import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from gbcd.evaluation.circuit_sets import SIZES, Circuits, of_nodes
from gbcd.evaluation.curves import cmd, cpr, faithfulness
from gbcd.evaluation.recovery import Method, Score, auprc, auroc, spearman


def test_ties_count_half():
    scores, members = np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])
    # of the four pairs three are in order and one is a tie
    assert auroc(scores, members) == pytest.approx(3.5 / 4)
    assert auroc(np.zeros(4), members) == 0.5


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_areas_are_those_of_scikit_learn(pairs):
    scores, members = (
        np.array(column, kind) for column, kind in zip(zip(*pairs, strict=True), (float, bool), strict=True)
    )
    if members.all() or not members.any():
        assert np.isnan(auroc(scores, members))
        assert np.isnan(auprc(scores, members))
    else:
        assert auroc(scores, members) == pytest.approx(roc_auc_score(members, scores))
        assert auprc(scores, members) == pytest.approx(average_precision_score(members, scores))


def test_resamples_are_taken_one_by_one():
    rng = np.random.default_rng(0)
    scores, effects = rng.integers(0, 4, (5, 12)).astype(float), rng.normal(size=(5, 12))
    members = rng.random((5, 12)) < 0.4
    members[0], members[1] = True, False
    for figure, truth in ((auroc, members), (auprc, members), (spearman, effects)):
        np.testing.assert_array_equal(figure(scores, truth), [figure(*row) for row in zip(scores, truth, strict=True)])


def test_precision_by_hand():
    # members at ranks 1 and 3: precision 1 and 2/3
    assert auprc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)


def test_spearman_is_of_the_size_of_effects():
    rng = np.random.default_rng(0)
    scores, effects = rng.normal(size=20), rng.normal(size=20)
    assert spearman(scores, effects) == pytest.approx(spearmanr(scores, np.abs(effects)).statistic)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_circuits_are_whole_components_in_order():
    circuits = Circuits()
    numbers = of_nodes(circuits, Score(Method("mine", None, 0.0), np.array([[1.0, 5.0, 5.0, 0.0]])))
    found = dict(zip(SIZES, (circuits.lists("nodes")[number] for number in numbers), strict=True))
    assert (found[0.1], found[0.2], found[0.5], found[1.0]) == ([], [1], [1, 2], [0, 1, 2, 3])


def test_areas_by_hand():
    found = faithfulness(np.array([[2.0, 5.0]]), nothing=np.array([[1.0]]), everything=np.array([[5.0]]))
    np.testing.assert_allclose(found, [[0.25, 1.0]])
    assert cpr(np.ones(len(SIZES))) == pytest.approx(0.999)
    assert cmd(np.full(len(SIZES), 1.5)) == pytest.approx(0.999 / 2)
    last = np.array([0.0] * (len(SIZES) - 1) + [1.0])
    assert cpr(last) == pytest.approx(0.25)


def test_without_a_gap_there_is_no_share_of_it():
    nothing, everything = np.array([[1.0], [1.0], [3.0]]), np.array([[5.0], [1.0], [1.0]])
    found = faithfulness(np.array([[2.0, 5.0]] * 3), nothing, everything)
    np.testing.assert_array_equal(found, [[0.25, 1.0], [np.nan, np.nan], [0.5, -1.0]])
