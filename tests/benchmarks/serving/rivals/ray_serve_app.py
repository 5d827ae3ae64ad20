"""The service on a Ray of its own: `python -m tests.benchmarks.serving.rivals.ray_serve_app PORT BUNDLE REPLICAS`."""

import sys

import ray
from ray import serve

from service.scale import app

if __name__ == "__main__":
    port, bundle, replicas = sys.argv[1:]
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    args = {"bundle": bundle, "allow_anonymous": True, "quarantine": "off"}
    serve.run(app({**args, "min_replicas": replicas, "max_replicas": replicas}), blocking=True)
