"""Who is measured: how each is started, with which settings, and how it wants to be asked."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from service.cpus import available_cpus
from tests.benchmarks.serving import forms
from tests.benchmarks.serving.forms import Form
from tests.benchmarks.serving.processes import ServerProcess, free_ports, get
from tests.benchmarks.serving.work import BUNDLE, MAX_BATCH_SIZE, THREADS, WORKERS

REPOSITORY = Path(__file__).parents[3]
RIVALS = "tests.benchmarks.serving.rivals"
BATCH = MAX_BATCH_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is served, and where the environments and this run's files lie."""

    bundle: Path
    name: str
    shape: tuple[int, int, int]
    rivals: Path
    folder: Path
    cpus: int = field(default_factory=available_cpus)

    def own(self, command: str) -> str:
        """A command beside the Python that runs this."""
        return str(Path(sys.executable).with_name(command))

    def rival(self, command: str) -> str:
        """A command of the rivals' environment."""
        return str(self.rivals / "bin" / command)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A command, the port it listens on, the folder it runs in; the work's threads in each of its workers."""

    command: list[str]
    port: int
    folder: Path = REPOSITORY
    threads: int = 1
    workers: int = 1
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A server: its settings in words, how it starts, when it is ready, and its two request forms.

    announced: what its output must say besides, where an answer does not tell that all of it is there.
    The form of a batch may depend on what the running server, found at its port, knows.
    """

    name: str
    settings: str
    start: Callable[[Setting], Start]
    ready: str
    single: Callable[[Setting], Form]
    batch: Callable[[Setting, int], Form]
    announced: str = ""

    def launch(self, setting: Setting) -> ServerProcess:
        """Start it; it is not ready yet."""
        start = self.start(setting)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("LGM_", "OMP_"))}
        environment |= {BUNDLE: str(setting.bundle), THREADS: str(start.threads), WORKERS: str(start.workers)}
        environment |= {"PYTHONPATH": str(REPOSITORY), **start.environment}
        return ServerProcess(
            start.command,
            port=start.port,
            environment=environment,
            folder=start.folder,
            log=setting.folder / f"{self.name}.log",
        )


def _start_ours(setting: Setting) -> Start:
    (port,) = free_ports(1)
    return Start(
        command=[setting.own("lgm"), "serve", "--bundle", str(setting.bundle), "--port", str(port)], port=port
    )


def _start_fastapi(setting: Setting) -> Start:
    (port,) = free_ports(1)
    command = [setting.own("uvicorn"), f"{RIVALS}.fastapi_app:app", "--port", str(port), "--no-access-log"]
    return Start(command=[*command, "--workers", str(setting.cpus)], port=port)


def _start_litserve(setting: Setting) -> Start:
    (port,) = free_ports(1)
    command = [setting.rival("python"), "-m", f"{RIVALS}.litserve_app", str(port)]
    return Start(command=command, port=port, workers=setting.cpus)


def _start_bentoml(setting: Setting) -> Start:
    (port,) = free_ports(1)
    command = [setting.rival("bentoml"), "serve", f"{RIVALS}.bentoml_service:Screening", "--host", "127.0.0.1"]
    return Start(
        command=[*command, "--port", str(port)],
        port=port,
        workers=setting.cpus,
        environment={
            "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(setting.folder / "bentoml"),
        },
    )


def _start_mlserver(setting: Setting) -> Start:
    port, grpc_port, metrics_port = free_ports(3)
    folder = setting.folder / "mlserver"
    model = folder / setting.name
    model.mkdir(parents=True, exist_ok=True)
    server_settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "parallel_workers": 1,
    }
    model_settings = {
        "name": setting.name,
        "implementation": f"{RIVALS}.mlserver_runtime.ScreeningRuntime",
        "max_batch_size": BATCH,
        "max_batch_time": 0.001,
    }
    (folder / "settings.json").write_text(json.dumps(server_settings))
    (model / "model-settings.json").write_text(json.dumps(model_settings))
    return Start(command=[setting.rival("mlserver"), "start", "."], port=port, folder=folder, threads=setting.cpus)


def _infer(setting: Setting) -> str:
    return f"/v2/models/{setting.name}/infer"


def batch_for_ours(setting: Setting, port: int) -> Form:
    if get(port, f"/v2/models/{setting.name}") == 200:
        return forms.binary_tensors(_infer(setting), size=BATCH, shape=setting.shape)
    return forms.png_files("/v1/predict")


OURS, LITSERVE = "lgm-guard", "LitServe"
CONTENDERS = (
    Contender(
        name=OURS,
        settings="lgm serve as it comes",
        start=_start_ours,
        ready="/readyz",
        single=lambda setting: forms.png_file("/v1/predict"),
        batch=batch_for_ours,
    ),
    Contender(
        name=LITSERVE,
        settings=f"a worker and an HTTP process a core, batches of up to {BATCH} in 1 ms, fast_queue, no access log",
        start=_start_litserve,
        ready="/health",
        single=lambda setting: forms.png_file("/predict"),
        batch=lambda setting, port: forms.raw_pixels("/predict"),
    ),
    Contender(
        name="FastAPI",
        settings="uvicorn, a worker a core with one handler thread, no batching, no access log",
        start=_start_fastapi,
        ready="/ready",
        single=lambda setting: forms.png_file("/predict"),
        batch=lambda setting, port: forms.raw_pixels("/predict"),
    ),
    Contender(
        name="BentoML",
        settings=f"a worker a core, adaptive batches of up to {BATCH}, no access log",
        start=_start_bentoml,
        ready="/readyz",
        single=lambda setting: forms.png_file("/predict"),
        batch=lambda setting, port: forms.raw_pixels("/predict"),
    ),
    Contender(
        name="MLServer",
        settings=f"one parallel worker with all cores, batches of up to {BATCH} in 1 ms, no access log",
        start=_start_mlserver,
        ready="/v2/health/ready",
        single=lambda setting: forms.base64_json(_infer(setting), told="a PNG file in base64 in JSON", encode=_png),
        batch=lambda setting, port: forms.base64_json(
            _infer(setting), told="float32 in base64 in JSON", encode=forms.pixels
        ),
    ),
)


def _png(images: Tensor) -> bytes:
    return forms.png(images[0])
