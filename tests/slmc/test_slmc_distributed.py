"""Two gloo processes: one computation, identical weights and memory, errors and vetoes on every rank."""

import copy
import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing


def worker(rank, folder):
    sys.path.insert(0, str(Path(__file__).parent))
    from slmc_helpers import disturb, live, tiny_model

    from hf_lifealign.slmc import ConsolidationError, ConsolidationVetoed
    from hf_lifealign.slmc import model as slmc_model

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    computed = []
    original = slmc_model.consolidate_delta
    slmc_model.consolidate_delta = lambda *args: computed.append(1) or original(*args)
    model = tiny_model(space="delta", memory_rank=2)
    live(model, 3)
    outcome = {
        "computed": len(computed),
        "weights": copy.deepcopy(dict(model.state_dict())),
        "memory": model.memory.tensors(),
    }

    model.begin_task("vetoed")
    disturb(model, 9)
    handle = model.register_consolidation_hook(lambda stage, report: "only rank 1 objects" if rank == 1 else None)
    try:
        model.consolidate()
    except ConsolidationVetoed as veto:
        outcome["veto"] = veto.reason
    handle.remove()
    slmc_model.consolidate_delta = lambda *args: (_ for _ in ()).throw(ConsolidationError("m: broken"))
    try:
        model.consolidate()
    except ConsolidationError as error:
        outcome["error"] = str(error)
    outcome["running"] = model.is_task_running
    torch.save(outcome, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_agree(tmp_path):
    from slmc_helpers import live, same, tiny_model

    multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (one["computed"] > 0, two["computed"]) == (True, 0)
    assert same(one["weights"], two["weights"])
    assert same(one["memory"], two["memory"])
    assert one["veto"] == two["veto"] == "only rank 1 objects"
    assert one["error"] == two["error"] == "m: broken"
    assert one["running"]
    assert two["running"]
    alone = tiny_model(space="delta", memory_rank=2)
    live(alone, 3)
    assert all(torch.allclose(alone.state_dict()[key], value, atol=1e-5) for key, value in one["weights"].items())
