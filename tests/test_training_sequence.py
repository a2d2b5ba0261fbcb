"""A stream over two ranks gives what one process gives."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sequence_ranks import PAIRS, WEIGHTS

from lr_ray.training import sequence, shared_prefix

HERE = Path(__file__).parent


def test_slices_put_together_are_the_stream() -> None:
    batch = shared_prefix.stream(PAIRS)
    length = batch.ids.shape[1]
    for ranks in (1, 2, 3, 4):
        slices = [sequence.cut(batch, rank, ranks) for rank in range(ranks)]
        assert len({one.ids.shape for one in slices}) == 1
        assert torch.cat([one.ids for one in slices], 1)[:, :length].equal(batch.ids)
        assert torch.cat([one.positions for one in slices], 1)[:, :length].equal(batch.positions)
        places = torch.cat([one.places for one in slices])
        assert sorted(places.tolist()) == list(range(len(WEIGHTS)))
        width = slices[0].ids.shape[1]
        sources = torch.cat([one.sources + rank * width for rank, one in enumerate(slices)])
        assert sources.equal(batch.sources[places])
        assert torch.cat([one.labels for one in slices]).equal(batch.labels[places])
        assert sum(sum(span[1:]) for span in slices[0].spans) == width * ranks


def test_heads_that_cannot_be_shared_out_are_refused_by_name() -> None:
    config = SimpleNamespace(num_attention_heads=12, num_key_value_heads=3)
    assert sequence.unsupported(config, 3) is None
    assert sequence.unsupported(config, 6) is None  # keys are copied
    assert "sequence_parallel_size 8" in str(sequence.unsupported(config, 8))
    assert "(3 for keys)" in str(sequence.unsupported(config, 4))


@pytest.mark.slow
def test_two_ranks_give_the_log_probs_and_gradients_of_one(tmp_path: Path) -> None:
    script = [sys.executable, str(HERE / "sequence_ranks.py"), str(tmp_path)]
    ranks = [subprocess.Popen([*script, str(rank), "2"], cwd=HERE.parent) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for (alone, gradients), (together, summed) in torch.load(tmp_path / "result.pt").values():
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
        assert gradients.keys() == summed.keys()
        for name in gradients:
            # transformers computes norms in float32, whose rounding depends on how rows are cut.
            torch.testing.assert_close(summed[name], gradients[name], rtol=1e-6, atol=1e-6, msg=name)
