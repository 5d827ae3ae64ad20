"""JSON schemas of KServe's kinds, from the models of its Python package: python kserve_schemas.py > schemas.json

Its generator left the schemas out, but each model still knows the names, types and required members.
"""

import json
import re
import sys
from typing import Any

import kserve.models
from kserve.configuration import Configuration

DEFINITIONS = "/api/_definitions.json#/$defs/"
PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "object": "object"}
CORE = "io.k8s.api.core.v1."
ELSEWHERE = {
    "V1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "ResourceQuantity": "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "V1beta1MetricQuantity": "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "K8sIoApiAppsV1DeploymentStrategy": "io.k8s.api.apps.v1.DeploymentStrategy",
    "K8sIoApiAutoscalingV2HorizontalPodAutoscalerBehavior": (
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerBehavior"
    ),
}
KINDS = {"ClusterServingRuntime": "V1alpha1ClusterServingRuntime", "InferenceService": "V1beta1InferenceService"}


class Collector:
    """Definitions of a model and of all models that it names."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of_type(self, name: str) -> dict[str, Any]:
        if name in PLAIN:
            return {"type": PLAIN[name]}
        if found := re.fullmatch(r"list\[(.+)\]", name):
            return {"type": "array", "items": self.of_type(found[1])}
        if found := re.fullmatch(r"dict\(str, (.+)\)", name):
            return {"type": "object", "additionalProperties": self.of_type(found[1])}
        if name in ELSEWHERE:
            return {"$ref": DEFINITIONS + ELSEWHERE[name]}
        if hasattr(kserve.models, name):
            self._define(name)
            return {"$ref": f"#/$defs/{name}"}
        return {"$ref": DEFINITIONS + CORE + name.removeprefix("V1")}

    def _define(self, name: str) -> None:
        if name in self.definitions:
            return
        model = getattr(kserve.models, name)
        self.definitions[name] = {}  # a model may name itself
        self.definitions[name] = {
            "type": "object",
            "additionalProperties": False,
            "required": [model.attribute_map[member] for member in required_members(model)],
            "properties": {
                model.attribute_map[member]: self.of_type(kind) for member, kind in model.openapi_types.items()
            },
        }


def required_members(model: Any) -> list[str]:
    """Those that do not take None."""
    blank = object.__new__(model)
    blank.local_vars_configuration = Configuration()
    return [member for member in model.openapi_types if not _takes_none(blank, member)]


def _takes_none(blank: Any, member: str) -> bool:
    try:
        setattr(blank, member, None)
    except ValueError:
        return False
    return True


def schema_of(kind: str, model: str) -> dict[str, Any]:
    collector = Collector()
    top = collector.of_type(model)
    identifier = f"https://kubernetes.io/api/{kind.lower()}-kserve.json"
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "$id": identifier, **top, "$defs": collector.definitions}


if __name__ == "__main__":
    json.dump({kind: schema_of(kind, model) for kind, model in KINDS.items()}, sys.stdout)
