"""The L-GM loss against nn.Linear + cross entropy, forward and backward, side by side in one run.

    python -m tests.benchmarks.loss [--device cuda] [--classes 1000 --classes 10000] [--json results.json]

LGMLoss chooses by itself whether it holds the n x k matrix of scores: the table says "in blocks" where it does not.

Time: every round runs each case once, one after the other, so that whatever else the machine does meets all of
them; the ratio is the median over rounds of case / Linear of the same round. Memory: the peak of live tensor bytes
above what stood before the forward pass; activations are that peak less the gradients, which are there at the end.
The allocator is settled first, as a network before the head settles it: in a fresh process glibc may give pages back
after every pass, which costs the linear layer half of its time again.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from model import GaussianMixture, LGMLoss
from model.losses.lgm import LARGEST_WHOLE

NUM_INPUTS, NUM_FEATURES, SEED = 256, 128, 0
BASELINE = "linear"
ASKED = {"unit": 1.15, "isotropic": 1.15, "diagonal": 2.2}
ASKED_FROM_CLASSES = 1_000
ASKED_IN_BLOCKS, ACTIVATIONS_ASKED = 1.3, 0.25
SIZES = [10, 1_000, 10_000, 100_000, 1_000_000]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One case at one number of classes; ratios are against Linear + cross entropy."""

    num_classes: int
    case: str
    milliseconds: float
    time_ratio: float
    time_ratio_asked: float | None
    in_blocks: bool
    peak_bytes: int
    memory_ratio: float
    activation_bytes: int
    activation_ratio: float
    activation_ratio_asked: float | None


class Case:
    """A forward and backward pass that starts without gradients."""

    def __init__(self, inputs: Tensor, module: nn.Module, loss: Callable[[], Tensor]):
        self._tensors = [inputs, *module.parameters()]
        self._loss = loss

    def __call__(self) -> None:
        torch.autograd.backward(self._loss())

    def clear(self) -> None:
        for tensor in self._tensors:
            tensor.grad = None

    def gradient_bytes(self) -> int:
        """Of what the last pass left."""
        return sum(tensor.grad.nbytes for tensor in self._tensors if tensor.grad is not None)


def build_cases(num_classes: int, device: torch.device) -> dict[str, Case]:
    """Linear + cross entropy and the three forms of L-GM over the same inputs and labels."""
    torch.manual_seed(SEED)
    inputs = torch.randn(NUM_INPUTS, NUM_FEATURES, device=device, requires_grad=True)
    labels = torch.randint(num_classes, (NUM_INPUTS,), device=device)
    linear = nn.Linear(NUM_FEATURES, num_classes, device=device)
    cases = {BASELINE: Case(inputs, linear, lambda: F.cross_entropy(linear(inputs), labels))}
    for form in ASKED:
        cases[form] = _lgm_case(inputs, labels, GaussianMixture(num_classes, NUM_FEATURES, variance=form).to(device))
    return cases


def _lgm_case(inputs: Tensor, labels: Tensor, mixture: GaussianMixture) -> Case:
    criterion = LGMLoss(mixture, alpha=0.3, lambda_=0.1)
    return Case(inputs, mixture, lambda: criterion(inputs, labels).total)


def settle_allocator() -> None:
    """Free one large block: from then on glibc keeps what is freed, up to twice as much, rather than unmap it."""
    torch.empty(30 * 2**20, dtype=torch.uint8)  # its threshold follows blocks of up to 32 MiB


def time_rounds(cases: dict[str, Case], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of every round by case; the first rounds warm up and are dropped."""
    warm_up = max(2, repeats // 20)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(warm_up + repeats):
        for name, case in cases.items():
            case.clear()
            seconds[name].append(_time(case, device))
            case.clear()  # a million classes' gradients need not wait for the next round
    return {name: values[warm_up:] for name, values in seconds.items()}


def _time(case: Case, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    case()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(case: Case, device: torch.device) -> int:
    """The largest sum of live tensor bytes during the case, above what stood before it."""
    case.clear()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        case()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        case()
    results = profiler.profiler.kineto_results if profiler.profiler else None
    changes = [event for event in (results.events() if results else []) if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def measure(num_classes: int, device: torch.device, repeats: int) -> list[Measurement]:
    """All cases at one number of classes."""
    cases = build_cases(num_classes, device)
    settle_allocator()
    seconds = time_rounds(cases, device, repeats)
    peaks, activations = {}, {}
    for name, case in cases.items():
        peaks[name] = peak_bytes(case, device)
        activations[name] = peaks[name] - case.gradient_bytes()
        case.clear()
    in_blocks = num_classes * NUM_INPUTS > LARGEST_WHOLE
    return [
        Measurement(
            num_classes=num_classes,
            case=name,
            milliseconds=1e3 * statistics.median(values),
            time_ratio=statistics.median(own / base for own, base in zip(values, seconds[BASELINE], strict=True)),
            time_ratio_asked=_asked(name, num_classes, in_blocks=in_blocks),
            in_blocks=in_blocks and name != BASELINE,
            peak_bytes=peaks[name],
            memory_ratio=peaks[name] / peaks[BASELINE],
            activation_bytes=activations[name],
            activation_ratio=activations[name] / activations[BASELINE],
            activation_ratio_asked=ACTIVATIONS_ASKED if in_blocks and name != BASELINE else None,
        )
        for name, values in seconds.items()
    ]


def _asked(name: str, num_classes: int, *, in_blocks: bool) -> float | None:
    if name == BASELINE or num_classes < ASKED_FROM_CLASSES:
        return None
    return max(ASKED[name], ASKED_IN_BLOCKS) if in_blocks else ASKED[name]


def describe_run(device: torch.device, repeats: dict[int, int]) -> dict[str, object]:
    """What a reader needs to judge or repeat the figures."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "hardware": f"{hardware}, {os.cpu_count()} cores, {platform.system()}",
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": str(device),
        "n": NUM_INPUTS,
        "d": NUM_FEATURES,
        "seed": SEED,
        "repeats": repeats,
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def tabulate(measurements: list[Measurement]) -> Table:
    """One row a measurement."""
    table = Table("K", "case", "ms", "time ratio", "asked", "peak MB", "ratio", "activations MB", "ratio", "asked")
    for row in measurements:
        table.add_row(
            f"{row.num_classes:,}",
            f"{row.case}{', in blocks' if row.in_blocks else ''}",
            f"{row.milliseconds:.2f}",
            f"{row.time_ratio:.2f}",
            "" if row.time_ratio_asked is None else f"<= {row.time_ratio_asked}",
            f"{row.peak_bytes / 1e6:.2f}",
            f"{row.memory_ratio:.2f}",
            f"{row.activation_bytes / 1e6:.2f}",
            f"{row.activation_ratio:.2f}",
            "" if row.activation_ratio_asked is None else f"<= {row.activation_ratio_asked}",
            end_section=row.case == list(ASKED)[-1],
        )
    return table


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    classes: Annotated[list[int] | None, typer.Option(help="K; repeat the option for several.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of a CPU run.")] = 2,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Time and peak memory of the L-GM loss against nn.Linear + cross entropy, forward and backward."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces every start on stderr
    torch.set_num_threads(threads)
    repeats = {size: max(5, min(400, 2 * 10**6 // size)) for size in classes or SIZES}
    place, console = torch.device(device), Console(width=130)
    run = describe_run(place, repeats)
    for name, value in run.items():
        console.print(f"{name}: {value}", highlight=False)
    measurements = [row for size, count in repeats.items() for row in measure(size, place, count)]
    console.print(tabulate(measurements))
    if json_path is not None:
        rows = [asdict(row) for row in measurements]
        json_path.write_text(json.dumps({"run": run, "measurements": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
