"""Where a study is computed: what `auto` means, and whether what was asked for can be had, settled before a plan is."""

from __future__ import annotations

import os
from typing import Literal

import torch

from gbcd.errors import BadInput
from gbcd.study import Compute

Device = Literal["cpu", "cuda"]


def settled_device(compute: Compute) -> Device:
    """The device of a study: `auto` is a GPU where workers can have one.

    Workers have what their cluster can offer, which on one that scales is more than it has now.

    Raises:
        BadInput: a GPU is asked for, and none is on offer.
    """
    if compute.device == "cpu":
        return "cpu"
    on_cluster = bool(compute.workers and os.environ.get("RAY_ADDRESS"))
    if _cluster_offers_gpu() if on_cluster else torch.cuda.is_available():
        return "cuda"
    if compute.device == "auto":
        return "cpu"
    where = "the cluster has no node with a GPU and can start none" if on_cluster else "torch finds no GPU here"
    raise BadInput(f"device 'cuda': {where}. Give --device cpu, or auto, which takes a GPU where there is one")


def _cluster_offers_gpu() -> bool:
    from gbcd.run import ray_pool

    ray_pool.connect(0)
    return ray_pool.cluster_offers_gpu()
