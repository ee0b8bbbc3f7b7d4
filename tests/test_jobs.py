"""What is submitted to clusters: study files, cluster descriptions, and a real job on a real local head."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
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
    compute = study.compute.model_copy(update={"device": "cpu"})
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
def test_every_job_is_a_command(file: str, command: str) -> None:
    job = subprocess.run(
        [sys.executable, f"jobs/{file}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"Example: gbcd {command}" in job.stdout


@pytest.fixture(scope="module")
def head() -> Generator[str]:
    """Address of the job server of a Ray head that is really started, and asks for a token."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["ray", "start", "--head", "--block", "--port=0", "--num-cpus=2", f"--dashboard-port={port}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *command[1:], "--dashboard-host=127.0.0.1"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: listens(port))
    wait_for(lambda: takes_jobs(f"http://127.0.0.1:{port}"))
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    monkeypatch.undo()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def takes_jobs(head: str) -> bool:
    """Whether a job can be submitted: the server listens some time before the agent that starts jobs is there."""
    try:
        return bool(asked(head, "", json.dumps({"entrypoint": "true"}).encode())["submission_id"])
    except OSError:
        return False


def submitted(head: str, *arguments: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Submit a study as cluster.yaml says; returns exit status and log."""
    job = subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head, *options),
            *("--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"),
            *("--", sys.executable, "jobs/run_study.py", *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return job.returncode, job.stdout + job.stderr


def asked(head: str, path: str, data: bytes | None = None) -> dict[str, Any]:
    """What the job server answers to who has the token."""
    token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(f"{head}/api/jobs/{path}", data, token)) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_a_submitted_job_runs_resumes_and_fails_with_its_status(head: str, tmp_path: Path) -> None:
    study = small_study(tmp_path)
    finished(study)
    file = tmp_path / "study.toml"
    file.write_text(as_toml(study, workers=2))
    out = str(tmp_path / "job")
    status, log = submitted(head, str(file), "--out", out)
    assert status == 0, log
    assert "40 of 40 prompts" in log
    assert same(tables(out), tables(study.out))
    status, log = submitted(head, str(file), "--out", out)
    assert status == 0, log
    assert f"resuming, {N_SHARDS} of them committed before" in log
    status, log = submitted(head, str(file), "--out", out, "--seed", "1")
    assert status != 0
    assert "holds another study" in log


@pytest.mark.slow
def test_a_job_that_is_stopped_ends_cleanly_and_says_how_to_go_on(head: str, tmp_path: Path) -> None:
    study = small_study(tmp_path, workers=0, prompts_per_task=100)
    study = study.model_copy(update={"compute": study.compute.model_copy(update={"shard_size": 1, "batch_size": 1})})
    file = tmp_path / "study.toml"
    file.write_text(as_toml(study, workers=2))
    status, said = submitted(head, str(file), options=("--no-wait", "--submission-id", "stopped"))
    assert status == 0, said
    wait_for(lambda: bool(committed_ids(Store(study.out))) or asked(head, "stopped")["status"] == "FAILED")
    asked(head, "stopped/stop", b"")  # as `ray job stop` does, without the seconds that it takes to start
    wait_for(lambda: asked(head, "stopped")["status"] not in ("PENDING", "RUNNING"))
    found = len(committed_ids(Store(study.out)))
    assert 0 < found < 100
    assert asked(head, "stopped")["status"] == "STOPPED"
    assert "The same command goes on from here" in asked(head, "stopped/logs")["logs"]
    assert finished(study).found == found
    assert verify(study.out).is_sound
