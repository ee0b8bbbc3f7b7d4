"""What is submitted to clusters: study files, cluster descriptions, and a real job on a real local head."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from code_blocks import of_kind
from processes import script
from small_runs import N_SHARDS, as_toml, finished, same, small_study, tables, wait_for
from tiny_models import saved_tiny_gpt2

from gbcd import versions
from gbcd.run.commits import committed_ids
from gbcd.run.planning import open_plan
from gbcd.run.store import Store
from gbcd.run.verification import verify
from gbcd.study import read_study

ROOT = Path(__file__).parent.parent
STUDIES = sorted((ROOT / "jobs" / "studies").glob("*.toml"))


def test_weights_results_and_whatever_git_ignores_stay_at_home() -> None:
    excluded = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())["excludes"]
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/")]
    assert ignored
    assert set(ignored) <= {path.strip("/") for path in excluded}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_can_be_planned(file: Path, tmp_path: Path) -> None:
    study = read_study(file)
    assert study.out == f"results/{file.stem}"
    smaller: dict[str, Any] = {"out": str(tmp_path / "out"), "prompts_per_task": 12}
    if study.model == "gpt2":  # on the hub
        smaller["model"] = saved_tiny_gpt2(tmp_path / "model")
    definitions = tuple(name for name in study.wrong_answers if name != "semantic")  # needs a model of its own
    compute = study.compute.model_copy(update={"device": "cpu", "shard_size": 64, "batch_size": 64})  # or it is timed
    planned = open_plan(study.model_copy(update=smaller | {"wrong_answers": definitions, "compute": compute}))
    assert planned.plan.tasks == study.tasks
    assert planned.plan.n_prompts == 12 * len(study.tasks)


def test_the_version_that_plans_carry_is_the_package_s() -> None:
    assert version("gbcd") == versions.GBCD


@pytest.mark.filterwarnings("ignore")
def test_the_cluster_is_valid_for_ray_and_keeps_its_promises() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(cluster)
    head, worker = (cluster["available_node_types"][name] for name in ("head", "gpu_worker"))
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (worker["min_workers"], worker["max_workers"]) == (0, cluster["max_workers"])
    start = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in start if "ray start" in line)
    assert any("--dashboard-host=127.0.0.1" in line for line in start)
    assert not any("0.0.0.0" in line for line in start)


def test_the_kubernetes_job_names_what_there_is() -> None:
    job: dict[str, Any]
    policy: dict[str, Any]
    job, policy = yaml.safe_load_all((ROOT / "jobs" / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert f"ray=={cluster['rayVersion']}" in re.split(r"[\s]+", (ROOT / "constraints.txt").read_text())
    assert policy["kind"] == "NetworkPolicy"
    for word in job["spec"]["entrypoint"].split():
        assert not word.startswith("jobs/") or (ROOT / word).is_file()


def test_the_image_of_the_kubernetes_job_takes_what_there_is() -> None:
    """What it copies is there, and let through by the ignore file; manifest and guide have the package's version."""
    lines = (ROOT / "jobs" / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    ignored = (ROOT / "jobs" / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    image = f"YOUR-REGISTRY/gbcd:{versions.GBCD}"
    assert (ROOT / "jobs" / "kuberay.yaml").read_text().count(f"image: {image}\n") == 2
    assert (ROOT / "docs" / "cluster.md").read_text().count(image) == 2


@pytest.mark.parametrize(("file", "command"), [("run_study", "run"), ("reduce", "reduce"), ("evaluate", "evaluate")])
def test_every_job_is_a_command_and_has_its_exit_status(file: str, command: str, tmp_path: Path) -> None:
    status, said, _ = script(tmp_path / "said", ROOT / "jobs" / f"{file}.py", "--help").ended()
    assert status == 0
    assert f"Example: gbcd {command}" in said
    assert script(tmp_path / "said", ROOT / "jobs" / f"{file}.py", "nowhere").ended()[0] == 2


#: The page's commands for a cluster that is up: those of a laptop start a head, the others submit jobs to it.
LAPTOP, *SUBMISSIONS = [block.code for block in of_kind("sh") if block.page == "docs/cluster.md"][1:5]

#: In the place of `ray`: the head that it starts has ports and a folder of its own (jobs look for their cluster in its
#: folder), and ends alone, since `ray stop` ends all heads.
RAY = """#!/bin/sh
case $1 in
start) ports="--port=0 --dashboard-port={port} --dashboard-agent-listen-port=0"
       setsid {ray} "$@" --block $ports --temp-dir={session} --num-cpus=2 > {log} 2>&1 & echo $! > {pid} ;;
*) exec {ray} "$@" ;;
esac
"""


class Head(NamedTuple):
    """A Ray head that really runs."""

    address: str
    environment: dict[str, str]
    token: str

    def asked(self, path: str, data: bytes | None = None) -> dict[str, Any]:
        """What its job server answers to who has the token."""
        request = urllib.request.Request(
            f"{self.address}/api/jobs/{path}", data, {"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def ran(self, script: str) -> tuple[int, str]:
        """Exit status and output of lines of a shell."""
        words = ["bash", "-ec", script]
        done = subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def submitted(self, study: Path, *, options: str = "", flags: str = "") -> tuple[int, str]:
        """Exit status and log of a job, submitted as the page says."""
        words = f"submit {options} --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/run_study.py"
        return self.ran(f"ray job {words} {study} {flags}")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Generator[Head]:
    """A Ray head, as the page's first commands start it; jobs are not taken yet."""
    folder = tmp_path_factory.mktemp("head")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, pid = folder / "ray", folder / "pid"
    session = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of sockets below it must be short
    ray = f"{sys.executable} -m ray.scripts.scripts"
    program.write_text(RAY.format(ray=ray, port=port, pid=pid, session=session, log=folder / "log"))
    program.chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"PATH": path, "HOME": str(folder), "RAY_AUTH_MODE": "token"}
    subprocess.run(["bash", "-ec", LAPTOP], env=environment, check=True)
    token = (folder / ".ray" / "auth_token").read_text().strip()
    yield Head(address, environment | {"RAY_API_SERVER_ADDRESS": address}, token)
    os.killpg(int(pid.read_text()), signal.SIGTERM)
    wait_for(lambda: not listens(port))
    shutil.rmtree(session, ignore_errors=True)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_the_page_s_commands_submit_resume_and_follow_jobs(head: Head, tmp_path: Path) -> None:
    """As they stand, at once after `ray start`, but for the port, the study and its folder."""
    study = small_study(tmp_path)
    finished(study)
    file, out = tmp_path / "study.toml", str(tmp_path / "job")
    file.write_text(as_toml(study, workers=1))
    script = "".join(SUBMISSIONS)
    for shown, mine in (
        ("http://127.0.0.1:8265", head.address),
        ("jobs/studies/ioi.toml", str(file)),
        ("s3://BUCKET/ioi", out),
    ):
        assert shown in script
        script = script.replace(shown, mine)
    status, log = head.ran(script)
    assert status == 0, log
    assert "40 of 40 prompts" in log
    assert f"resuming, {N_SHARDS} of them committed before" in log
    assert same(tables(out), tables(study.out))


@pytest.mark.slow
def test_a_job_that_is_stopped_ends_cleanly_and_says_how_to_go_on(head: Head, tmp_path: Path) -> None:
    study = small_study(tmp_path, prompts_per_task=100, shard_size=1, batch_size=1)
    file = tmp_path / "study.toml"
    file.write_text(as_toml(study, workers=1))
    status, said = head.submitted(file, options="--no-wait --submission-id stopped")
    assert status == 0, said
    wait_for(lambda: bool(committed_ids(Store(study.out))) or head.asked("stopped")["status"] == "FAILED")
    assert head.asked("stopped")["status"] == "RUNNING", head.asked("stopped/logs")["logs"] + str(head.asked("stopped"))
    head.asked("stopped/stop", b"")  # as `ray job stop` does, without the seconds that it takes to start
    wait_for(lambda: head.asked("stopped")["status"] not in ("PENDING", "RUNNING"))
    found = len(committed_ids(Store(study.out)))
    assert 0 < found < 100
    assert head.asked("stopped")["status"] == "STOPPED"
    assert "The same command goes on from here" in head.asked("stopped/logs")["logs"]
    assert finished(study).found == found
    assert verify(study.out).is_sound
