"""A checkpoint for another number of workers, through DeepSpeed's universal checkpoints.

ZeRO's shards are cut for the number of ranks that wrote them. DeepSpeed's converter joins them parameter
by parameter; it works on local files, so one rank of each machine brings all shards there first.
"""

import argparse
import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def convert(names: Sequence[str], read: Callable[[str], Any], folder: Path) -> None:
    """Write the universal form of a checkpoint into `folder`.

    Args:
        names: all its files.
        read: the state in the file of that name; it has been checked to hold no code.
        folder: local, empty or left by a convert that was killed.
    """
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(folder, ignore_errors=True)
    shards = folder.with_name(f"{folder.name}-shards")
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir(parents=True)
    for name in names:
        state = read(name)
        if name.endswith("model_states.pt"):
            state.setdefault("universal_checkpoint_info", {"universal_checkpoint_version": 0.2})
        torch.save(state, shards / name)
        del state
    options = argparse.Namespace(
        input_folder=str(shards),
        output_folder=str(folder),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(options)
    shutil.rmtree(shards)
