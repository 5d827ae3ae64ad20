"""Classes spread over two and four gloo processes, against the loss of a mixture that is whole."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.devices import Devices
from model.errors import CheckpointError, ConfigurationError
from model.losses import LGMLoss
from model.mixture import GaussianMixture
from model.shard_files import load_mixture, shard_name

NUM_CLASSES, NUM_FEATURES = 23, 6  # neither two nor four divide them
CASES = [
    {"variance": variance, "prior": prior, "alpha": alpha, "lambda_": lambda_, "block_size": block_size}
    for variance, prior, alpha, lambda_, block_size in [
        ("unit", "uniform", 0.0, 0.0, 1024),
        ("unit", "learned", 0.3, 0.1, 2),
        ("isotropic", "learned", 1.0, 0.0, 1024),
        ("isotropic", "counts", 0.3, 2.0, 3),
        ("diagonal", "learned", 0.3, 0.1, 1024),
        ("diagonal", "uniform", 0.0, 0.1, 1),
    ]
]

CHILD = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from model.devices import Devices
from model.losses import LGMLoss
from model.mixture import GaussianMixture
from model.shard_files import load_shard, save_shard

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
answers = []
for index, case in enumerate(torch.load(folder / "cases.pt")):
    state = case["state"]
    k, d = state["means"].shape
    mixture = GaussianMixture(k, d, variance=case["variance"], prior=case["prior"])
    mixture.load_state_dict(state)
    shard = mixture.shard(Devices.of())
    criterion = LGMLoss(
        shard, alpha=case["alpha"], lambda_=case["lambda_"], block_size=case["block_size"]
    )
    features = case["features"].requires_grad_()
    terms = criterion(features, case["labels"])
    terms.total.backward()
    fresh = GaussianMixture(k, d, variance=case["variance"], prior=case["prior"], peers=Devices.of())
    answers.append({
        "rows": tuple(shard.part),
        "terms": [term.detach() for term in terms],
        "features": features.grad,
        "shard": {name: values.grad for name, values in shard.named_parameters()},
        "predicted": shard.predict(features.detach()),
        "step": criterion.step,
        "fresh": [len(fresh.means), fresh.log_priors.exp().sum().item()],
    })
    save_shard(shard, folder / f"case{index}", step=7)
    dist.barrier()
    back = load_shard(folder / f"case{index}", Devices.of()).state_dict()
    assert all(torch.equal(back[name], values) for name, values in shard.state_dict().items())
others = folder.parent / "4" / "case0"
if size == 2 and others.is_dir():
    part = load_shard(others, Devices.of())
    answers[0]["from four"] = part.means.detach()
torch.save(answers, folder / f"{rank}.pt")
dist.destroy_process_group()
"""


def whole(case: dict[str, Any], seed: int) -> tuple[GaussianMixture, torch.Tensor, torch.Tensor]:
    """Every parameter away from its start; the first shard has no input of the batch, one class has several."""
    generator = torch.Generator().manual_seed(seed)
    mixture = GaussianMixture(
        NUM_CLASSES, NUM_FEATURES, variance=case["variance"], prior=case["prior"], generator=generator
    )
    with torch.no_grad():
        if case["prior"] == "learned":
            mixture.raw_log_priors.normal_(generator=generator)
        if case["prior"] == "counts":
            mixture.set_priors(torch.arange(NUM_CLASSES))
        if case["variance"] != "unit":
            mixture.raw_log_variances.normal_(generator=generator)
    features = torch.randn(17, NUM_FEATURES, generator=generator)
    labels = torch.randint(12, NUM_CLASSES, (17,), generator=generator)
    labels[3] = labels[0]
    return mixture, features, labels


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[dict[str, Any]]]]:
    """What every rank of four, then of two, says to every case."""
    root = tmp_path_factory.mktemp("shards")
    told = {}
    for size in (4, 2):
        folder = root / str(size)
        folder.mkdir()
        cases = []
        for seed, case in enumerate(CASES):
            mixture, features, labels = whole(case, seed)
            cases.append({**case, "state": mixture.state_dict(), "features": features, "labels": labels})
        torch.save(cases, folder / "cases.pt")
        arguments = [[sys.executable, "-c", CHILD, str(rank), str(size), str(folder)] for rank in range(size)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ranks = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) for words in arguments]
        said = [rank.communicate(timeout=600)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(said)
        told[size] = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    told[0] = [[{"root": root}]]
    return told


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{case['variance']}-{case['prior']}" for case in CASES])
def test_shards_give_the_loss_and_gradients_of_the_whole(
    size: int, index: int, answers: dict[int, list[list[dict[str, Any]]]]
) -> None:
    case = CASES[index]
    mixture, features, labels = whole(case, index)
    features.requires_grad_()
    terms = LGMLoss(mixture, alpha=case["alpha"], lambda_=case["lambda_"])(features, labels)
    terms.total.backward()
    ranks = [rank[index] for rank in answers[size]]
    for answer in ranks:
        torch.testing.assert_close(answer["terms"], [term.detach() for term in terms], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(answer["features"], features.grad, rtol=1e-5, atol=1e-5)
        assert torch.equal(answer["predicted"], mixture(features).argmax(1))
        assert answer["step"] == 1
    for name, values in mixture.named_parameters():
        joined = torch.cat([answer["shard"][name] for answer in ranks])
        torch.testing.assert_close(joined, values.grad, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("size", [2, 4])
def test_fresh_shards_are_parts_of_one_mixture(size: int, answers: dict[int, list[list[dict[str, Any]]]]) -> None:
    for index in range(len(CASES)):
        fresh = [rank[index]["fresh"] for rank in answers[size]]
        assert sum(count for count, _ in fresh) == NUM_CLASSES
        assert sum(share for _, share in fresh) == pytest.approx(1)


@pytest.fixture
def saved(answers: dict[int, list[list[dict[str, Any]]]], tmp_path: Path) -> Path:
    """A copy of the shards that four ranks saved of the last case."""
    folder = tmp_path / "shards"
    shutil.copytree(answers[0][0][0]["root"] / "4" / "case5", folder)
    return folder


def test_a_whole_mixture_is_put_together_from_shards(saved: Path) -> None:
    mixture, features, _ = whole(CASES[5], 5)
    back = load_mixture(saved)
    for name, values in mixture.state_dict().items():
        assert torch.equal(back.state_dict()[name], values), name
    assert torch.equal(back(features), mixture(features))


def test_shards_are_read_by_another_number_of_processes(answers: dict[int, list[list[dict[str, Any]]]]) -> None:
    means = torch.cat([rank[0]["from four"] for rank in answers[2]])
    assert torch.equal(means, whole(CASES[0], 0)[0].means)


def test_a_missing_shard_is_named(saved: Path) -> None:
    (saved / shard_name(2, 4)).unlink()
    with pytest.raises(CheckpointError, match=r"mixture-00003-of-00004\.safetensors is missing"):
        load_mixture(saved)


def test_a_damaged_shard_is_named(saved: Path) -> None:
    (saved / shard_name(1, 4)).write_bytes(b"not a shard")
    with pytest.raises(CheckpointError, match=r"mixture-00002-of-00004\.safetensors is damaged"):
        load_mixture(saved)


def test_a_shard_of_another_time_is_named(saved: Path, answers: dict[int, list[list[dict[str, Any]]]]) -> None:
    other = answers[0][0][0]["root"] / "4" / "case4" / shard_name(3, 4)
    shutil.copy(other, saved)
    with pytest.raises(CheckpointError, match=r"mixture-00004-of-00004\.safetensors: its prior is learned"):
        load_mixture(saved)


def test_two_sets_of_shards_and_none_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no shard of a mixture"):
        load_mixture(tmp_path)
    shutil.copy(saved / shard_name(0, 4), saved / shard_name(0, 2))
    with pytest.raises(CheckpointError, match="holds shards of 2 and of 4 processes"):
        load_mixture(saved)


def test_what_does_not_fit_says_so(one_process: None) -> None:
    shard = GaussianMixture(5, 3, peers=Devices.of())
    criterion = LGMLoss(shard)
    for features, labels, said in [
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"features must be \(n >= 1, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0, 5]), r"labels must lie in \[0, 5\), got 0 to 5"),
        (torch.zeros(2, 3), torch.tensor([-1, 4]), r"labels must lie in \[0, 5\), got -1 to 4"),
        (torch.zeros(2, 3), torch.tensor([0]), "labels must be 2 integers, got"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            criterion(features, labels)
    with pytest.raises(ConfigurationError, match="block_size must be at least 1"):
        LGMLoss(shard, block_size=0)


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
