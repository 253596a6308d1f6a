"""Two gloo processes on a CPU do what one does: the same plans, the same training, one writer."""

import json

import pytest
import torch
from safetensors.torch import load_file

import hfprune
from hfprune import distributed
from hfprune.publishing.verification import verify
from tests.support.processes import run_python
from tests.support.together import HYBRID, REPAIRED_WITH, SCORERS, TASKS, repaired, work


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What this process and two others left of the same work: one start for all tests, as it takes seconds."""
    found = tmp_path_factory.mktemp("together")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have
    work(found, "alone", 1)
    torch.set_num_threads(threads)
    run_python("-m", "tests.support.together", found, processes=2)
    return found


def reports(folder):
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in ("alone", "0", "1")]


@pytest.mark.distributed
def test_plans_of_every_kind_of_scorer(folder):
    alone, *others = (report["plans"] for report in reports(folder))
    assert set(alone) == {"default", *SCORERS, HYBRID}
    assert others == [alone, alone]


@pytest.mark.distributed
@pytest.mark.parametrize("batches", REPAIRED_WITH)
def test_repaired_models_are_those_of_one_process(folder, batches):
    """The processes share the batches, and one may be idle."""
    alone = repaired(batches)
    for rank in ("0", "1"):
        other = hfprune.load(folder / "repaired" / str(batches) / rank)
        assert other.pruning_plan.digest == alone.pruning_plan.digest
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.distributed
def test_the_main_process_decides_where_others_compute_otherwise(folder):
    alone, first, second = (report["unlike"] for report in reports(folder))
    assert first == second
    assert first.split()[0] == alone.split()[0]


@pytest.mark.distributed
def test_an_error_in_one_process_ends_all(folder):
    alone, first, second = (report["failures"] for report in reports(folder))
    assert alone.keys() == {"kl_fisher", "fluctuation", "obs"}
    assert all("are not finite" in message and "batch 1" in message for message in alone.values())
    assert second == alone
    assert all(message.startswith("HfpruneError: another process could not go on") for message in first.values())
    assert first.keys() == alone.keys()


@pytest.mark.distributed
@pytest.mark.parametrize("task", TASKS)
def test_equal_global_batches_train_alike(folder, task):
    alone, *others = (report["trained"][task] for report in reports(folder))
    assert len(alone["losses"]) == 3
    assert alone["moved"] > 2e-2
    assert others[0]["losses"] == pytest.approx(alone["losses"], abs=1e-3)
    # each row once, in the order of the rows
    for other in others:
        torch.testing.assert_close(
            torch.tensor(other["predicted"]), torch.tensor(alone["predicted"]), rtol=0, atol=1e-2
        )
    expected = load_file(folder / f"{task}-alone.safetensors")
    for rank in (0, 1):
        found = load_file(folder / f"{task}-{rank}.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3)


@pytest.mark.distributed
def test_replicas_stay_alike_when_half_precision_trains_twice(folder):
    """DistributedDataParallel goes by the tensors that it was made for; another dtype makes them others."""
    _, first, second = (report["twice"] for report in reports(folder))
    assert first[0] != first[1]
    assert first == second


@pytest.mark.distributed
def test_only_the_main_process_writes_and_all_is_there(folder):
    alone, first, second = (report["writes"] for report in reports(folder))
    assert (alone, first, second) == (1, 1, 0)
    for name in ("saved", *(f"{task}/checkpoint-3" for task in TASKS)):
        assert verify(folder / "of-2" / name) == []
    last = load_file(folder / f"{TASKS[-1]}-0.safetensors")
    for name in ("saved", f"{TASKS[-1]}/checkpoint-3"):
        again = hfprune.load(folder / "of-2" / name)
        assert all(torch.equal(again.state_dict()[key], value) for key, value in last.items())
    files = [{p.relative_to(folder / kind) for p in (folder / kind).rglob("*")} for kind in ("of-1", "of-2")]
    extra = {str(path) for path in files[1] ^ files[0]}
    assert all("rng_state" in path for path in extra)  # each process keeps its own random state


@pytest.mark.parametrize(
    ("config", "sent"),
    [("cpu:gloo,cuda:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda"), ("xpu:xccl", "xpu")],
)
def test_tensors_go_where_the_backend_can_send_them(config, sent, monkeypatch):
    monkeypatch.setattr(distributed.dist, "get_backend_config", lambda: config)
    assert distributed._transfer_device(torch.device("cpu")).type == sent
