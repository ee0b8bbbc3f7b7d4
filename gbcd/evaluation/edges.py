"""Edge attribution of a metric: the mean over pairs of what cutting each edge would change (`gbcd.engine.edges`)."""

from __future__ import annotations

import torch

from gbcd.analysis.circuits import Config, edge_names
from gbcd.engine.edges import EdgeScores, recorded
from gbcd.evaluation.metrics import Metric, metric_gradient
from gbcd.evaluation.pairs import Pairs
from gbcd.models.decoder import Options
from gbcd.models.load import LoadedModel


def edge_attribution(loaded: LoadedModel, pairs: Pairs, metric: Metric, cfg: Config) -> dict[str, float]:
    """Mean over pairs of the attribution of each edge of `cfg`, by name: positive where the edge helps."""
    decoder, names = loaded.decoder, recorded(loaded.decoder)
    sums: list[torch.Tensor] = []
    for batch in pairs.batches:
        run = decoder.run(batch.packed(loaded), Options(graph=True, record=names, edges=True))
        other = decoder.run(batch.packed_references(loaded), Options(record=names))
        scores = EdgeScores(decoder, run, other)
        run.backward(metric_gradient(metric, run, batch.rows), scores)
        sums.append(scores.values().double().sum(0))
    means = torch.stack(sums).sum(0) / len(pairs.encoded)
    return dict(zip(edge_names(cfg), means.tolist(), strict=True))
