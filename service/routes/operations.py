"""For those who run the service: alive, ready, metrics, and an index of what is here."""

from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from service.array_metrics import WithoutLoneCounts
from service.routes.context import runtime_of
from service.schemas import Health, Index, Model, Problem, Readiness

LINKS = {
    "predict": "/v1/predict",
    "docs": "/docs",
    "openapi": "/openapi.json",
    "alive": "/healthz",
    "ready": "/readyz",
    "metrics": "/metrics",
    "monitor": "/v1/monitor",
    "inference protocol": "/v2",
}

router = APIRouter(tags=["operations"])


@router.get("/", summary="What is here")
async def index() -> Index:
    return Index(name="lgm-guard", version=version("lgm-guard"), links=LINKS)


@router.get("/healthz", summary="Whether the process is alive")
async def alive() -> Health:
    return Health(status="alive")


@router.get("/readyz", summary="Whether to send traffic here", responses={503: {"model": Problem}})
async def ready(request: Request) -> Readiness:
    engine = runtime_of(request).check_ready()
    return Readiness(status="ready", model=Model(name=engine.name, version=engine.version))


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    registry = runtime_of(request).metrics.registry
    is_open_metrics = content_type.startswith("application/openmetrics-text")
    return Response(encode(WithoutLoneCounts(registry) if is_open_metrics else registry), media_type=content_type)
