"""Reads Ray Serve's configuration as Ray does, and builds its applications: python ray_serve_config.py < config.yaml

In a process of its own, since Ray's import warns. Prints what it made of it, as JSON.
"""

import importlib
import sys

import yaml
from ray.serve.schema import ServeDeploySchema

if __name__ == "__main__":
    config = ServeDeploySchema.model_validate(yaml.safe_load(sys.stdin))
    for application in config.applications:
        module, _, name = application.import_path.partition(":")
        getattr(importlib.import_module(module), name)(application.args)
    sys.stdout.write(config.model_dump_json(exclude_unset=True))
