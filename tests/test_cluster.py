"""ray_cluster.yaml: valid for Ray, a CPU head, spot GPU workers from none, a token, and what to change is named."""

import copy
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
FILE = ROOT / "ray_cluster.yaml"
TEXT = FILE.read_text(encoding="utf-8")
CLUSTER = yaml.safe_load(TEXT)
NODES = CLUSTER["available_node_types"]
WORKERS = {name: node for name, node in NODES.items() if name != CLUSTER["head_node_type"]}


def others() -> dict[str, dict]:
    """The file with each of its commented blocks in place of what the block replaces."""
    found = re.findall(r"^# >>> ([^:\n]+):(?:.*\n)+?(# provider:\n(?:.*\n)+?)# <<<", TEXT, re.MULTILINE)
    kept = {name: CLUSTER[name] for name in CLUSTER if name not in ("provider", "auth", "head_node_type",
                                                                   "available_node_types", "max_workers")}  # fmt: skip
    return {name: kept | yaml.safe_load(re.sub(r"^# ", "", block, flags=re.MULTILINE)) for name, block in found}


def schema() -> dict:
    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def test_it_fulfils_the_schema_that_ships_with_ray():
    jsonschema.Draft7Validator(schema()).validate(CLUSTER)


def test_the_schema_would_notice_a_wrong_key():
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.Draft7Validator(schema()).validate({**CLUSTER, "max_worker": 1})


def test_ray_up_would_accept_it():
    """What `ray up` does before it calls AWS: fill in Ray's defaults and validate."""
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(prepared)
    assert prepared["setup_commands"] == CLUSTER["setup_commands"]  # none of Ray's own, which pins another Ray
    assert prepared["head_setup_commands"] == CLUSTER["setup_commands"]


def test_the_commented_blocks_are_as_valid():
    assert {name: config["provider"]["type"] for name, config in others().items()} == {
        "Google Cloud": "gcp", "Machines of one's own": "local"
    }  # fmt: skip
    for config in others().values():
        jsonschema.Draft7Validator(schema()).validate(config)
        prepared = prepare_config({**config, "max_workers": 2})
        validate_config(prepared)
        assert prepared["setup_commands"] == CLUSTER["setup_commands"]
    own = prepare_config(others()["Machines of one's own"])
    assert own["available_node_types"]["local.cluster.node"]["max_workers"] == 2
    google = others()["Google Cloud"]["available_node_types"]
    assert {name: node["resources"] for name, node in google.items()} == {
        name: node["resources"] for name, node in NODES.items()
    }
    workers = [node["node_config"] for name, node in google.items() if name != "head"]
    assert all({"preemptible": True} in config["scheduling"] for config in workers)


def test_nobody_without_the_token_can_use_the_cluster():
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in CLUSTER["setup_commands"]
    starts = [each for key in ("head_start_ray_commands", "worker_start_ray_commands") for each in CLUSTER[key]]
    starts = [each for each in starts if "ray start" in each]
    assert len(starts) == 2
    assert all(re.search(r"export RAY_AUTH_MODE=token .*; .*ray start", each) for each in starts)
    assert "ray get-auth-token --generate" in TEXT[: TEXT.index("cluster_name:")]


def test_the_head_has_no_gpu_and_is_not_spot():
    head = NODES[CLUSTER["head_node_type"]]
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]


@pytest.mark.parametrize("name", WORKERS)
def test_workers_are_spot_gpu_machines_that_come_from_none(name: str):
    node = WORKERS[name]
    assert node["resources"]["GPU"] >= 1
    assert node["min_workers"] == 0 < node["max_workers"]
    assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_a_trial_of_several_workers_and_a_sweep_of_single_ones_find_room():
    assert {node["resources"]["GPU"] for node in WORKERS.values()} == {1, 4}
    assert CLUSTER["max_workers"] >= max(node["max_workers"] for node in WORKERS.values())


def test_everything_to_be_changed_is_named_in_the_comment_on_top():
    preamble = TEXT[: TEXT.index("cluster_name:")]
    values = yaml.safe_dump(CLUSTER)
    placeholders = set(re.findall(r"[\w-]*CHANGE_ME", values))
    assert placeholders == {"ami-CHANGE_ME", "fs-CHANGE_ME"}
    assert "ImageId" in preamble
    assert "fs-CHANGE_ME" in preamble


def test_the_files_it_copies_are_all_that_an_installation_needs():
    for source in CLUSTER["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["dev-mode-dirs"],
    }
    assert needed <= set(CLUSTER["file_mounts"].values())


def test_every_node_gets_a_ray_and_a_python_that_the_project_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    commands = " ".join(CLUSTER["setup_commands"])
    assert re.search(r"ray\[default\]==([\d.]+)", commands)[1] in allowed.specifier  # type: ignore[index]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(
        re.search(r"--python (3[\d.]+)", commands)[1]  # type: ignore[index]
    )
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all("~/venv/bin/ray" in command for command in CLUSTER[key])
