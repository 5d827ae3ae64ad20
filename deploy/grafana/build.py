"""The dashboard as code: `python deploy/grafana/build.py` writes dashboards/lgm-guard.json.

A row a concern, two or three panels a row, a unit on every axis. What a panel asks is tested against a running
service (tests/e2e/test_prometheus.py); DCGM's series come from NVIDIA's exporter and are empty without GPUs.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "dashboards" / "lgm-guard.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, HEIGHT = 24, 8
WHERE = 'job="lgm-guard", instance=~"$instance"'
ROUTES = 'route=~"/v1/predict|/v2/.*/infer|grpc/ModelInfer"'


@dataclass(frozen=True, kw_only=True)
class Panel:
    """queries: legend -> PromQL. unit: Grafana's name of it. kind: timeseries, stat or heatmap."""

    title: str
    queries: dict[str, str]
    unit: str
    description: str = ""
    kind: str = "timeseries"
    maximum: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels about one concern."""

    title: str
    panels: list[Panel] = field(default_factory=list)


def quantile(level: float, histogram: str, selector: str = WHERE) -> str:
    """Of a histogram's values in the last five minutes."""
    return f"histogram_quantile({level}, sum by (le) (rate({histogram}_bucket{{{selector}}}[5m])))"


SERVICE = Row(
    title="Service",
    panels=[
        Panel(
            title="Requests by status",
            unit="reqps",
            queries={"{{status}}": f"sum by (status) (rate(lgm_requests_total{{{WHERE}, {ROUTES}}}[5m]))"},
        ),
        Panel(
            title="Latency",
            description="From a request's head to its answer's end.",
            unit="s",
            queries={
                f"p{level * 100:g}": quantile(level, "lgm_request_duration_seconds", f"{WHERE}, {ROUTES}")
                for level in (0.5, 0.95, 0.99)
            },
        ),
        Panel(
            title="Refused, by reason",
            unit="reqps",
            queries={"{{reason}}": f"sum by (reason) (rate(lgm_rejected_total{{{WHERE}}}[5m]))"},
        ),
        Panel(
            title="Images that wait",
            unit="short",
            queries={"waiting": f"sum(lgm_queue_depth{{{WHERE}}})"},
        ),
        Panel(
            title="Wait in the queue and judging",
            unit="s",
            queries={
                "wait p95": quantile(0.95, "lgm_queue_wait_seconds"),
                "judging a batch p95": quantile(0.95, "lgm_inference_duration_seconds"),
            },
        ),
        Panel(
            title="Images in a batch",
            unit="short",
            queries={
                "mean": f"sum(rate(lgm_batch_size_sum{{{WHERE}}}[5m])) "
                f"/ sum(rate(lgm_batch_size_count{{{WHERE}}}[5m]))"
            },
        ),
        Panel(
            title="Workers",
            unit="short",
            queries={
                "up": f"sum(lgm_worker_up{{{WHERE}}})",
                "restarts in an hour": f"sum(increase(lgm_worker_restarts_total{{{WHERE}}}[1h]))",
            },
        ),
        Panel(
            title="Model", unit="short", kind="stat", queries={"{{name}} {{version}}": f"lgm_model_info{{{WHERE}}}"}
        ),
        Panel(
            title="Age of the calibration",
            unit="s",
            kind="stat",
            queries={"{{name}}": f"lgm:calibration_age_seconds{{{WHERE}}}"},
        ),
    ],
)
DETECTION = Row(
    title="Detection",
    panels=[
        Panel(
            title="Flagged share against the promise",
            unit="percentunit",
            queries={
                "flagged, 5 minutes": f"lgm:flagged:ratio5m{{{WHERE}}}",
                "flagged, 1 hour": f"lgm:flagged:ratio1h{{{WHERE}}}",
                "promised at most": f"lgm_false_alarm_target_ratio{{{WHERE}}}",
            },
        ),
        Panel(
            title="Images by decision",
            unit="cps",
            queries={"{{decision}}": f"sum by (decision) (rate(lgm_images_total{{{WHERE}}}[5m]))"},
        ),
        Panel(
            title="Flagged share by predicted class",
            description="The ten highest, over an hour; nothing where the policy withholds the labels.",
            unit="percentunit",
            queries={
                "{{label}}": "topk(10, sum by (label) (increase("
                f'lgm_class_images_total{{{WHERE}, decision="flagged", label!="withheld"}}[1h])) '
                f"/ (sum by (label) (increase(lgm_class_images_total{{{WHERE}}}[1h])) > 0))"
            },
        ),
        Panel(
            title="P-values at most 0.1, and at most 0.5",
            description="A tenth and a half on clean traffic.",
            unit="percentunit",
            maximum=1,
            queries={
                "at most 0.1": f"lgm:p_values_at_most_one_tenth:ratio1h{{{WHERE}}}",
                "at most 0.5": f"lgm:p_values_at_most_one_half:ratio1h{{{WHERE}}}",
            },
        ),
        Panel(
            title="P-values",
            description="Over the last hour; clean traffic fills the range evenly.",
            unit="short",
            kind="heatmap",
            queries={"{{le}}": f"sum by (le) (increase(lgm_p_value_bucket{{{WHERE}}}[5m]))"},
        ),
        Panel(
            title="Log-likelihood, in nats",
            unit="short",
            queries={
                f"{level:.0%} quantile": quantile(level, "lgm_log_likelihood")
                for level in (0.05, 0.25, 0.5, 0.75, 0.95)
            },
        ),
        Panel(
            title="Images at most 1 % likely, by detector",
            description="Which detector sees what is unlike the calibration images.",
            unit="percentunit",
            queries={
                "{{detector}}": f'sum by (detector) (rate(lgm_detector_p_value_bucket{{{WHERE}, le="0.01"}}[5m])) '
                f"/ sum by (detector) (rate(lgm_detector_p_value_count{{{WHERE}}}[5m]))"
            },
        ),
        Panel(
            title="Drifts seen now",
            description="By the service's own test; GET /v1/monitor says them in words.",
            unit="short",
            queries={"{{kind}}": f"sum by (kind) (lgm_drift_alarms{{{WHERE}}})"},
        ),
    ],
)
QUARANTINE = Row(
    title="Quarantine",
    panels=[
        Panel(
            title="Images by what became of them",
            unit="cps",
            queries={"{{outcome}}": f"sum by (outcome) (rate(lgm_quarantine_total{{{WHERE}}}[5m]))"},
        ),
        Panel(
            title="Kept, by state of review",
            description="Replicas share one quarantine, and each tells the whole of it.",
            unit="short",
            queries={"{{state}}": f"max by (state) (lgm_quarantine_items{{{WHERE}}})"},
        ),
        Panel(title="Bytes kept", unit="bytes", queries={"kept": f"max(lgm_quarantine_bytes{{{WHERE}}})"}),
        Panel(
            title="Images that wait to be kept",
            unit="short",
            queries={"waiting": f"sum(lgm_quarantine_queue_depth{{{WHERE}}})"},
        ),
    ],
)
DEVICE = Row(
    title="Device (DCGM exporter)",
    panels=[
        Panel(
            title="GPU utilisation",
            unit="percent",
            maximum=100,
            queries={"{{gpu}}": "DCGM_FI_DEV_GPU_UTIL"},
        ),
        Panel(title="GPU memory used", unit="mbytes", queries={"{{gpu}}": "DCGM_FI_DEV_FB_USED"}),
        Panel(title="GPU temperature", unit="celsius", queries={"{{gpu}}": "DCGM_FI_DEV_GPU_TEMP"}),
        Panel(title="GPU power", unit="watt", queries={"{{gpu}}": "DCGM_FI_DEV_POWER_USAGE"}),
        Panel(title="GPU errors (XID)", unit="short", queries={"{{gpu}}": "DCGM_FI_DEV_XID_ERRORS"}),
    ],
)
ROWS = [DETECTION, SERVICE, QUARANTINE, DEVICE]


def dashboard() -> dict[str, Any]:
    """What Grafana reads."""
    return {
        "uid": "lgm-guard",
        "title": "lgm-guard",
        "tags": ["lgm-guard"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [INSTANCE]},
        "annotations": {"list": [ALERTS]},
        "panels": list(panels()),
    }


INSTANCE = {
    "name": "instance",
    "label": "Instance",
    "type": "query",
    "datasource": SOURCE,
    "query": 'label_values(lgm_worker_up{job="lgm-guard"}, instance)',
    "refresh": 2,
    "multi": True,
    "includeAll": True,
    "allValue": ".+",
    "current": {"text": "All", "value": "$__all"},
}
ALERTS = {
    "name": "Alerts",
    "datasource": SOURCE,
    "enable": True,
    "expr": 'ALERTS{alertname=~"Lgm.+", alertstate="firing"}',
    "titleFormat": "{{alertname}}",
    "iconColor": "red",
}


def panels() -> Iterator[dict[str, Any]]:
    """Rows and their panels, three side by side."""
    top, number = 0, 0
    for row in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": position(0, top, COLUMNS, 1),
        }
        top += 1
        for start in range(0, len(row.panels), 3):
            line = row.panels[start : start + 3]
            width = COLUMNS // len(line)
            for place, panel in enumerate(line):
                number += 1
                yield {"id": number, "gridPos": position(place * width, top, width, HEIGHT), **described(panel)}
            top += HEIGHT


def position(left: int, top: int, width: int, height: int) -> dict[str, int]:
    """On a grid of 24 columns."""
    return {"x": left, "y": top, "w": width, "h": height}


def described(panel: Panel) -> dict[str, Any]:
    """One panel, but for its place."""
    limits = {} if panel.maximum is None else {"max": panel.maximum}
    lowest = {} if "nats" in panel.title else {"min": 0}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, **lowest, **limits}, "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            }
            for number, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"textMode": "value_and_name", "reduceOptions": {"calcs": ["lastNotNull"]}},
    "heatmap": {"calculate": False, "yAxis": {"unit": "short", "min": 0, "max": 1}, "color": {"scheme": "Blues"}},
}


if __name__ == "__main__":
    DASHBOARD.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
