"""Trim KubeRay's schemas to what the manifests here use; see the comment in the schema it prints.

python tests/deploy/trim_schema.py KUBERAY/ray-operator/config/crd/bases VERSION > tests/deploy/kuberay.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "deploy/kuberay"
KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum", "x-kubernetes-int-or-string", "anyOf")


def trimmed(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """Return a schema in which values that no manifest uses have no details, but unknown keys are still refused."""
    short = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        mappings = [each for each in used if isinstance(each, dict)]
        short["additionalProperties"] = False
        short["properties"] = {
            name: trimmed(below, [each[name] for each in mappings if name in each]) if any(name in m for m in mappings)
            else {}
            for name, below in schema["properties"].items()
        }  # fmt: skip
    elif isinstance(below := schema.get("additionalProperties"), dict):
        short["additionalProperties"] = trimmed(below, [v for e in used if isinstance(e, dict) for v in e.values()])
    if "items" in schema:
        short["items"] = trimmed(schema["items"], [each for some in used if isinstance(some, list) for each in some])
    return short


def main(folder: Path, version: str) -> None:
    manifests = [each for path in MANIFESTS.glob("*.yaml") for each in yaml.safe_load_all(path.read_text())]
    comment = f"KubeRay {version} (Apache-2.0), its CRDs without what deploy/kuberay does not use; by trim_schema.py"
    kinds: dict[str, Any] = {"$comment": comment}
    for kind in ("RayCluster", "RayJob"):
        crd = yaml.safe_load((folder / f"ray.io_{kind.lower()}s.yaml").read_text())
        schema = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
        kinds[kind] = trimmed(schema, [each for each in manifests if each["kind"] == kind])
        kinds[kind]["properties"]["metadata"] = {}
    print(json.dumps(kinds, separators=(",", ":"), sort_keys=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
