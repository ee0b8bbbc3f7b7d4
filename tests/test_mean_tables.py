from __future__ import annotations

import torch

from gbcd.engine.calibration import TaskMeans
from gbcd.run.mean_tables import means_from_tables, tables_from_means
from gbcd.run.table_files import decode, encode


def test_means_come_back_from_their_files() -> None:
    means = TaskMeans(
        groups=("a", "b"),
        means={"m0.in": torch.randn(2, 3, 4), "a1.o": torch.randn(2, 3, 7), "embed": torch.randn(2, 3, 1)},
        tokens=torch.tensor([[5, 6, -1], [7, 8, 9], [1, -1, -1]]),
        token_groups=torch.tensor([1, 0, 1]),
        members=("p/0", "p/1", "p/2"),
    )
    tables = tables_from_means(means)
    assert tables.keys() == {"sample", "means"}
    found = means_from_tables([{name: decode(encode(table)) for name, table in tables.items()}])
    assert found.groups == means.groups
    assert found.means.keys() == means.means.keys()
    assert all(torch.equal(found.means[name], means.means[name]) for name in means.means)
    assert torch.equal(found.tokens, means.tokens)
    assert torch.equal(found.token_groups, means.token_groups)


def test_shards_of_a_sample_are_joined_and_short_groups_end_in_zeros() -> None:
    long = TaskMeans(("b",), {"x": torch.ones(1, 3, 2)}, torch.tensor([[7, 8, 9]]), torch.tensor([0]), ("p/1",))
    short = TaskMeans(("a",), {"x": torch.full((1, 2, 2), 5.0)}, torch.tensor([[5, 6]]), torch.tensor([0]), ("p/0",))
    found = means_from_tables([tables_from_means(one) for one in (long, short)])
    assert found.groups == ("a", "b")
    assert found.means["x"].tolist() == [[[5, 5], [5, 5], [0, 0]], [[1, 1], [1, 1], [1, 1]]]
    assert found.tokens.tolist() == [[7, 8, 9], [5, 6, -1]]
    assert (found.token_groups.tolist(), found.members) == ([1, 0], ("p/1", "p/0"))
    assert found.counts().tolist() == [[1, 1, 0], [1, 1, 1]]
