"""One rank of a stream shared out over several: python sequence_ranks.py FOLDER RANK WORLD.

Rank 0 writes what the ranks computed together, and what one process computes alone, as FOLDER/result.pt.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import tiny_model
import torch
from deepspeed.comm import comm
from torch import distributed

from lr_ray.training import sequence, shared_prefix
from lr_ray.training.batch import PairIds
from lr_ray.training.logps import Policy

PAIRS = [
    PairIds(list(range(41)), [1, 2, 3], [4, 5, 6, 7, 8]),
    PairIds(list(range(50, 73)), [9], [1, 1, 1, 1]),
]
WEIGHTS = torch.linspace(-1, 1, 13, dtype=torch.float64)  # a different one for each target


def learn(policy: Policy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs of the targets and the gradient of their weighted sum."""
    policy.zero_grad()
    logps = policy(shared_prefix.stream(PAIRS))
    (logps * WEIGHTS).sum().backward()
    return logps.detach(), {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}


def main() -> None:
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    made = {}
    for keys, checkpointing in ((4, False), (1, True)):
        model = tiny_model.model(num_key_value_heads=keys).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        shared_prefix.prepare(model)
        alone = learn(Policy(model))
        logps, gradients = learn(sequence.SequencePolicy(model, sequence.groups(world)))
        for gradient in gradients.values():
            distributed.all_reduce(gradient)
        made[f"{keys} keys, checkpointing {checkpointing}"] = alone, (logps, gradients)
    assert comm.cdb.shm_comm_op is None, "DeepSpeed compiled what it does not need"
    if rank == 0:
        torch.save(made, folder / "result.pt")
    distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
