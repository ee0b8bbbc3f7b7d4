"""The pool grows with the cluster and survives nodes that are taken away."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fault_engines
import pytest
import ray
from fault_engines import faulty
from ray import cloudpickle
from ray.cluster_utils import Cluster
from small_runs import finished, same, small_study, tables, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster() -> Generator[Cluster]:
    """A head with room for one worker."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cloudpickle.register_pickle_by_value(fault_engines)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_workers_come_with_nodes_and_go_with_them(cluster: Cluster, tmp_path: Path) -> None:
    study = small_study(tmp_path, workers=2, shard_size=1, batch_size=1)
    alone = small_study(tmp_path, out=str(tmp_path / "alone"), shard_size=1, batch_size=1)
    finished(alone)
    seen, gone = tmp_path / "seen", tmp_path / "gone"
    seen.mkdir()

    def slowly(prompts: object) -> None:
        (seen / str(os.getpid())).touch()
        if not gone.exists():
            time.sleep(1.0)

    with ThreadPoolExecutor(1) as beside:  # Ray's test cluster adds nodes from the main thread only
        running = beside.submit(finished, study, faulty(slowly))
        wait_for(lambda: len(list(seen.iterdir())) == 1)
        node = cluster.add_node(num_cpus=1)
        wait_for(lambda: len(list(seen.iterdir())) == 2)
        cluster.remove_node(node, allow_graceful=False)
        gone.touch()
        run = running.result()
    assert (run.missing, run.given_up) == ((), ())
    assert same(tables(study.out), tables(alone.out))
