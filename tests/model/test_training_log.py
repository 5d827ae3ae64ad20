import csv
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.config import parse_config
from model.losses import LossTerms
from model.train import train
from model.training_log import Report, Reporter, RunLog, Silent

CONFIG = parse_config(
    {
        "name": "logged",
        "data": {"name": "digits"},
        "network": {"backbone": "small28", "width": 4, "num_features": 8},
        "optimizer": {"learning_rate": 0.02},
        "training": {"epochs": 2, "batch_size": 64},
    }
)


def terms(total: float, classification: float, likelihood: float) -> LossTerms:
    return LossTerms(*(torch.tensor(value) for value in (total, classification, likelihood)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logged")
    with RunLog(folder) as log:
        train(CONFIG, folder, log)
    return folder


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_report_weights_batches_by_their_images() -> None:
    report = Report()
    report.add(terms(2.0, 1.5, 5.0), torch.tensor(3), 4, alpha=0.1)
    report.add(terms(4.0, 3.0, 10.0), torch.tensor(1), 12, alpha=0.2)
    assert report.count == 16
    assert report.figures() == pytest.approx(
        {"loss": 3.5, "classification": 2.625, "likelihood": 8.75, "accuracy": 0.25, "alpha": 0.2}
    )


def test_a_report_holds_no_graph() -> None:
    report = Report()
    leaf = torch.ones((), requires_grad=True)
    report.add(LossTerms(leaf * 2, leaf * 1, leaf * 1), torch.tensor(1), 1)
    assert report.figures()["loss"] == 2.0


def test_the_csv_has_a_row_an_epoch(run: Path) -> None:
    written = read(run)
    assert [float(row["epoch"]) for row in written] == [1, 2]
    assert list(written[0]) == [
        *("epoch", "loss", "classification", "likelihood", "accuracy"),
        *("alpha", "lambda", "learning_rate", "held_out_accuracy", "seconds", "threads"),
    ]
    assert float(written[1]["alpha"]) == 0.1
    assert float(written[1]["classification"]) < float(written[0]["classification"])
    assert not list(run.glob("*.tmp"))


def test_tensorboard_reads_the_same_values(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    written = read(run)
    assert set(events.Tags()["scalars"]) == set(written[0])
    for name in ("loss", "likelihood", "accuracy", "lambda"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx([float(row[name]) for row in written])


def test_progress_tells_accuracy_terms_and_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path) as log:
        train(CONFIG, tmp_path, log)
    told = " ".join(capsys.readouterr().out.split())
    for epoch in (1, 2):
        assert f"epoch {epoch}: accuracy" in told
    for name in ("classification", "likelihood", "alpha 0.1", "lambda 0.1", "held-out accuracy"):
        assert name in told
    assert "38/38" in told  # all steps done: two epochs of nineteen


def test_a_resumed_log_begins_with_the_rows_of_the_checkpoint(tmp_path: Path) -> None:
    row = {"epoch": 1.0, "accuracy": 0.5, "classification": 1.0, "likelihood": 2.0, "alpha": 0.1, "lambda_": 0.2}
    (tmp_path / "metrics.csv").write_text("epoch,accuracy\n1,0.9\n2,0.9\n3,0.9\n")
    with RunLog(tmp_path) as log:
        log.start(CONFIG, 10, [row])
        log.finish_epoch({**row, "epoch": 2.0})
    assert [(entry["epoch"], entry["accuracy"]) for entry in read(tmp_path)] == [("1.0", "0.5"), ("2.0", "0.5")]


def test_nothing_is_written_before_the_start(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run"):
        assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()


def test_both_are_reporters() -> None:
    reporters: list[Reporter] = [Silent(), RunLog(Path("unused"))]
    assert all(isinstance(reporter, Reporter) for reporter in reporters)
