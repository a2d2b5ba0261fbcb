"""A short-context reward model: what it sees, what it refuses, and that batches change nothing."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    set_seed,
)

from lr_ray import rewards
from lr_ray.config import Srm
from lr_ray.rewards.srm import RewardModel, rated
from tests import tiny_model
from tests.test_rewards import row, settings

ANSWERS = ["Mira bakes.", "She bakes bread every single day of the week.", "No."]


def saved(folder: Path, labels: int = 1, template: bool = True, **changes: Any) -> str:
    """A random Llama with a classification head of `labels` logits."""
    set_seed(0)
    shape = {**tiny_model.SHAPE, "pad_token_id": 256, "bos_token_id": None, "eos_token_id": 257, **changes}
    LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=labels)).save_pretrained(folder)
    tokenizer = tiny_model.tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def model(folder: str, **changes: Any) -> RewardModel:
    return RewardModel(Srm(model=folder, **changes))


def test_a_batch_says_what_one_after_another_says(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    alone = model(folder, batch_size=1).rate("What does Mira do?", ANSWERS)
    together = model(folder, batch_size=8).rate("What does Mira do?", ANSWERS)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 3
    assert model(folder).rate("What does Toben do?", ANSWERS) != pytest.approx(alone, abs=1e-5)


def test_a_model_without_padding_is_not_given_any(tmp_path: Path) -> None:
    whole = saved(tmp_path / "padded")
    bare = saved(tmp_path / "bare", pad_token_id=None)
    expected = model(whole).rate("What does Mira do?", ANSWERS)
    assert model(bare).rate("What does Mira do?", ANSWERS) == pytest.approx(expected, abs=1e-5)


def test_the_context_is_not_seen(tmp_path: Path) -> None:
    rater = model(saved(tmp_path))
    one, other = row(), row()
    other["context"] = "Something else altogether."
    other["prompt"] = [{"role": "user", "content": "Something else altogether."}]
    assert rated(one, rater) == rated(other, rater)


def test_what_is_too_long_has_no_reward_and_a_reason(tmp_path: Path) -> None:
    rater = model(saved(tmp_path), max_length=60)
    short, long = rater.rate("What does Mira do?", ["Mira bakes.", "Mira bakes. " * 10])
    assert isinstance(short, float)
    assert long == "question and answer have 142 tokens, the reward model takes 60"
    one = row("p", ("Mira bakes.", "Mira bakes. " * 10))
    assert [c["reward"] is None for c in rated(one, rater)] == [False, True]


def test_the_window_is_the_models(tmp_path: Path) -> None:
    assert model(saved(tmp_path, max_position_embeddings=128)).window == 128
    with pytest.raises(ValueError, match="over the model's window of 128 tokens"):
        model(str(tmp_path), max_length=129)


def test_a_model_without_template_gets_two_segments(tmp_path: Path) -> None:
    set_seed(0)
    shape: dict[str, Any] = {
        **{"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 256, "num_labels": 3},
    }
    BertForSequenceClassification(BertConfig(**shape)).save_pretrained(tmp_path)
    tokenizer = tiny_model.tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    by_label = [model(str(tmp_path), label=label).rate("Who?", ANSWERS) for label in range(3)]
    assert len({tuple(found) for found in by_label}) == 3
    alone = model(str(tmp_path), label=1, batch_size=1).rate("Who?", ANSWERS)
    assert by_label[1] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "changes", "says"),
    [
        (2, {}, "has 2 labels: set rewards.srm.label"),
        (2, {"label": 2}, "has 2 labels only"),
    ],
)
def test_which_logit_counts_must_be_clear(
    tmp_path: Path, labels: int, changes: dict[str, Any], says: str
) -> None:
    srm = {"model": saved(tmp_path, labels), **changes}
    with pytest.raises(ValueError, match=says):
        rewards.check(settings(tmp_path, "srm", rewards={"srm": srm}))


def test_a_model_that_cannot_rate_is_refused(tmp_path: Path) -> None:
    """Transformers would draw the missing head at random, and warn."""
    folder = tiny_model.save(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"no sequence classification model: no score\.weight"):
        model(folder, label=0)
    with pytest.raises(ValueError, match="no such model folder"):
        rewards.check(settings(tmp_path, "srm", rewards={"srm": {"model": "./nowhere"}}))
    with pytest.raises(ValueError, match=r"srm\.model is not set"):
        rewards.check(settings(tmp_path, "srm"))
