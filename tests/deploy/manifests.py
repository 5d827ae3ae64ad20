"""Kubernetes manifests: built as `kubectl apply -k` would, and held against the schemas of their kinds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate.utils import latest_version, schema_contents
from referencing import Registry, Resource

HERE = Path(__file__).parent
KUBECTL = Path(sys.executable).with_name("kubectl")  # the package's; Debian 12's does not know components
FOLDER = HERE.parents[1] / "deploy" / "kubernetes"
TARGETS = ("overlays/cpu", "overlays/gpu", "kserve", "kuberay")
BUILT_IN = f"kubernetes-json-schema/v{latest_version()}-local-strict"


@cache
def build(target: str) -> tuple[dict[str, Any], ...]:
    return build_folder(FOLDER / target)


def build_folder(folder: Path) -> tuple[dict[str, Any], ...]:
    command = [KUBECTL, "kustomize", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not built.stderr, built.stderr
    return tuple(yaml.safe_load_all(built.stdout))


def written() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every document that is a whole object as it stands, not a patch or kustomize's own."""
    for path in sorted(FOLDER.rglob("*.yaml")):
        if path.name != "kustomization.yaml" and "overlays" not in path.parts:
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                yield path, document


def pod_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a Deployment, a ClusterServingRuntime and a RayService."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Deployment":
            return [spec["template"]["spec"]]
        case "ClusterServingRuntime":
            return [spec]
        case "RayService":
            cluster = spec["rayClusterConfig"]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            return [group["template"]["spec"] for group in groups]
    return []


def faults(document: dict[str, Any]) -> list[str]:
    """What is wrong with it by the schema of its kind; a kind without a schema is a fault."""
    schema = _schema(document["apiVersion"], document["kind"])
    if schema is None:
        return [f"no schema for {document['apiVersion']} {document['kind']}"]
    validator = jsonschema.Draft202012Validator(schema, registry=_registry())
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


def _schema(api_version: str, kind: str) -> dict[str, Any] | None:
    group, _, version = api_version.rpartition("/")
    if group == "serving.kserve.io":
        return _kserve().get(kind)
    name = f"{kind.lower()}-{group.split('.')[0] + '-' if group else ''}{version}.json"
    if (HERE / "schemas" / name).exists():
        schema: dict[str, Any] = json.loads((HERE / "schemas" / name).read_text(encoding="utf-8"))
        return schema
    try:
        return schema_contents(f"{BUILT_IN}/{name}", latest_version())
    except FileNotFoundError:
        return None


@cache
def _kserve() -> dict[str, Any]:
    """In a process of its own: the package sets up logging and metrics when it is imported."""
    command = [sys.executable, str(HERE / "kserve_schemas.py")]
    schemas: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, timeout=600, check=True).stdout)
    return schemas


@cache
def _registry() -> Registry[Any]:
    definitions = schema_contents(f"{BUILT_IN}/_definitions.json", latest_version())
    registry: Registry[Any] = Registry()
    return Resource.from_contents(definitions) @ registry
