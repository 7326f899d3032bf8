"""Dockerfile and deploy/: valid for what reads them, and of one piece with the project."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from eagleray.tracking import sync_all
from ray_heads import PYTHON, free_ports
from recorded_runs import recorded_run

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = json.loads((Path(__file__).parent / "kuberay.json").read_text())
PASSWORD = "a-long-password"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def manifest(name: str) -> dict:
    return yaml.safe_load((DEPLOY / f"kuberay/{name}.yaml").read_text())


def clusters() -> list[dict]:
    return [manifest("raycluster")["spec"], manifest("rayjob")["spec"]["rayClusterSpec"]]


def violations(document: dict) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMAS[document["kind"]])
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/mlflow/Dockerfile"])
def test_images_are_written_as_hadolint_wants(file: str):
    hadolint = Path(sys.executable).with_name("hadolint")
    lax = ["--ignore", "DL3013", "--ignore", "DL3066"]  # pyproject.toml has the versions; the user is ours
    done = subprocess.run([hadolint, *lax, ROOT / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_has_what_an_installation_needs_and_installs_as_the_readme_does():
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()]
    assert all((ROOT / each).exists() for each in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"],
              *wheel["force-include"], *(each.partition("/")[0] for each in wheel["packages"])}  # fmt: skip
    assert needed == set(copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == needed, "nothing else reaches the image"
    install = re.search(r"pip install --no-cache-dir ('\S+')", text)[1]  # type: ignore[index]
    assert f"pip install {install}" in (ROOT / "README.md").read_text()
    python = re.search(r"FROM python:(3\.\d+)", text)[1]  # type: ignore[index]
    assert f"--python {python}" in (ROOT / "ray_cluster.yaml").read_text()


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_manifests_fulfil_the_schemas_of_kuberay(name: str):
    assert violations(manifest(name)) == []
    for wrong in (("rayClusterSpecs", {}), ("workerGroupSpec", []), ("entrypointt", "x")):
        broken = copy.deepcopy(manifest(name))
        broken["spec"][wrong[0]] = wrong[1]
        assert violations(broken)
    broken = copy.deepcopy(manifest(name))
    spec = broken["spec"].get("rayClusterSpec", broken["spec"])
    spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert any("imagee" in each for each in violations(broken))


def test_clusters_have_a_token_and_gpu_workers_that_come_from_none():
    for spec in clusters():
        assert spec["rayVersion"] == ray.__version__
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["enableInTreeAutoscaling"] is True
        assert "nvidia.com/gpu" not in str(spec["headGroupSpec"])
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] == 0 < group["maxReplicas"]
            (container,) = group["template"]["spec"]["containers"]
            assert int(container["resources"]["limits"]["nvidia.com/gpu"]) >= 1
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert {"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]
            claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if each["name"] == "shared"]
            assert claims == [manifest("storage")["metadata"]["name"]]


def test_the_job_runs_a_sweep_of_the_image_and_continues_it_on_a_new_cluster(tmp_path: Path):
    """The entrypoint itself, with an `eagleray` that notes its arguments."""
    entrypoint = manifest("rayjob")["spec"]["entrypoint"]
    file = re.search(r"/home/ray/eagleray/(\S+\.yaml)", entrypoint)[1]  # type: ignore[index]
    assert (ROOT / file).exists()
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    (tmp_path / "python").chmod(0o755)
    entrypoint = entrypoint.replace("/shared/runs", str(tmp_path / "runs"))
    for _ in range(2):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(["sh", "-c", entrypoint], env=environment, check=True)
        (tmp_path / "runs/temperature").mkdir(parents=True, exist_ok=True)
    first, second = (tmp_path / "said").read_text().splitlines()
    assert first.startswith(f"-m eagleray sweep /home/ray/eagleray/{file} --address auto --plain gpus_per_trial=1")
    assert second == f"{first} --resume"


def test_the_services_of_mlflow_belong_together():
    compose = yaml.safe_load((DEPLOY / "mlflow/compose.yaml").read_text())
    services = compose["services"]
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        assert set(service.get("depends_on", ())) <= services.keys()
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in compose["volumes"]
    settings = services["mlflow"]["environment"]
    asked = re.findall(r"^: \"\$\{(\w+):\?", (DEPLOY / "mlflow/serve.sh").read_text(), re.MULTILINE)
    assert len(asked) == 3
    assert set(asked) <= settings.keys()
    assert all(":?" in value or "_PASSWORD}@" in value for value in settings.values() if "$" in value)
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"], "on loopback, unless somebody decides otherwise"


def test_mlflow_does_not_start_without_a_password():
    known = {"PATH": os.environ["PATH"], "MLFLOW_BACKEND_STORE_URI": "x", "MLFLOW_ARTIFACTS_DESTINATION": "y"}
    done = subprocess.run(["sh", DEPLOY / "mlflow/serve.sh"], env=known, capture_output=True, text=True)
    assert done.returncode != 0
    assert "MLFLOW_AUTH_ADMIN_PASSWORD: is not set: the password of the user admin" in done.stderr


@contextmanager
def database(place: Path) -> Iterator[str]:
    """Start PostgreSQL as Debian's package brings it, and return the address of a database."""
    (port,) = free_ports(1)
    place.mkdir(mode=0o700)
    shutil.chown(place, "postgres")

    def run(name: str, *words: object) -> None:
        command = ["runuser", "-u", "postgres", "--", POSTGRES[-1].with_name(name), *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")

    run("initdb", "-D", place / "data", "-A", "trust", "-U", "postgres")
    run("pg_ctl", "-D", place / "data", "-o", f"-p {port} -k {place} -h 127.0.0.1", "-l", place / "log", "-w", "start")
    try:
        run("psql", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-qc", "create role mlflow login password 'a%b'",
            "-c", "create database mlflow owner mlflow")  # fmt: skip
        yield f"postgresql+psycopg2://mlflow:a%25b@127.0.0.1:{port}/mlflow"
    finally:
        run("pg_ctl", "-D", place / "data", "-m", "immediate", "-w", "stop")


def answers(url: str, user: str = "") -> int:
    """Return the status of an answer; 0: there is none yet."""
    asked = urllib.request.Request(url, headers={"Authorization": f"Basic {b64encode(user.encode()).decode()}"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


@contextmanager
def served(command: list[str | Path], port: int, log: Path, **settings: str) -> Iterator[str]:
    """Start a server of MLflow's pages and wait until it answers."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    environment |= {"PATH": f"{PYTHON.parent}:{os.environ['PATH']}", **settings}
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=log.parent)
    try:
        end = time.monotonic() + 120
        while answers(f"http://127.0.0.1:{port}/health") != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRES or os.geteuid() != 0, reason="needs Debian's postgresql, and root to start it")
def test_mlflow_on_postgresql_keeps_what_is_sent_and_asks_for_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient  # takes seconds

    short = Path(f"/tmp/pg-{os.getpid()}")  # its socket lies there: a longer path is too long
    (port,) = free_ports(1)
    record = recorded_run(tmp_path / "run")
    (record.artifacts / "note.txt").write_text("kept")
    try:
        with database(short) as uri, served(
            ["sh", DEPLOY / "mlflow/serve.sh", "--port", str(port), "--workers", "1"], port, tmp_path / "log",
            MLFLOW_BACKEND_STORE_URI=uri, MLFLOW_ARTIFACTS_DESTINATION=(tmp_path / "art").as_uri(),
            MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        ) as server:  # fmt: skip
            asked = f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0"
            assert [answers(asked, user) for user in ("", "admin:wrong", f"admin:{PASSWORD}")] == [401, 401, 200]
            assert sync_all(record.directory, server).unsent, "the password was not given"
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            assert sync_all(record.directory, server).sent == 1
            client = MlflowClient(server)
            experiment = client.get_experiment_by_name(record.experiment)
            assert experiment is not None
            read = client.search_runs([experiment.experiment_id])
            assert [run.data.metrics["knn"] for run in read] == [record.summary["knn"]]
            assert [path.read_text() for path in (tmp_path / "art").rglob("note.txt")] == ["kept"]
    finally:
        shutil.rmtree(short, ignore_errors=True)
