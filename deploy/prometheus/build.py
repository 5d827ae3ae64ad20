"""The rules for the Prometheus operator: `python deploy/prometheus/build.py` writes a PrometheusRule of rules.yml."""

import textwrap
from pathlib import Path

RULES = Path(__file__).parent / "rules.yml"
OBJECT = Path(__file__).parents[1] / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
---
# Written by deploy/prometheus/build.py from rules.yml beside it: change that, then make rules.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: lgm-guard
  labels:
    app.kubernetes.io/name: lgm-guard
spec:
"""


def prometheus_rule() -> str:
    """What kubectl applies; comments stay where they are."""
    return HEAD + textwrap.indent(RULES.read_text(encoding="utf-8").removeprefix("---\n"), "  ")


if __name__ == "__main__":
    OBJECT.write_text(prometheus_rule(), encoding="utf-8")
