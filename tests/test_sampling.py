"""Prompts against the model's window: refused with a reason, or cut in the middle when asked for."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lr_ray import config, sampling

POLICY = Path(__file__).parents[1] / "jobs" / "demo" / "policy"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(POLICY)


def conversation(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_each_candidate_has_a_seed_of_its_own() -> None:
    def made(seed: int | None, prompt_id: str) -> list[int | None]:
        return sampling.seeds(config.Sampling(n=3, seed=seed, num_gpus=1), prompt_id)

    assert made(None, "a") == [None] * 3
    assert made(42, "a") == made(42, "a")
    assert len({*made(42, "a"), *made(42, "b"), *made(43, "a")}) == 9
    with pytest.raises(ValueError, match="seed needs num_gpus"):
        config.Sampling(seed=42)


def test_what_fits_is_left_alone(tokenizer: Any) -> None:
    prompt = conversation("Mira bakes.")
    ids = sampling.render(tokenizer, prompt)
    assert sampling.fit(tokenizer, prompt, len(ids), "refuse") == (prompt, ids, False)


def test_what_does_not_fit_is_refused_with_both_numbers(tokenizer: Any) -> None:
    prompt = conversation("Mira bakes. " * 50)
    tokens = len(sampling.render(tokenizer, prompt))
    reason = sampling.fit(tokenizer, prompt, 20, "refuse")
    assert isinstance(reason, str)
    assert f"has {tokens} tokens" in reason
    assert "room for 20" in reason


@pytest.mark.parametrize(
    "text", ["begin " + "Mira bakes. " * 300 + "end", "开头" + "铜币在这里。" * 200 + "结尾"]
)
def test_the_middle_is_cut_and_head_and_tail_stay(tokenizer: Any, text: str) -> None:
    fitted = sampling.fit(tokenizer, conversation(text), 100, "middle")
    assert not isinstance(fitted, str)
    (message,), ids, truncated = fitted
    assert truncated
    assert 90 <= len(ids) <= 100
    assert ids == sampling.render(tokenizer, [message])
    assert message["content"][:2] == text[:2]
    assert message["content"][-2:] == text[-2:]


def test_cutting_cannot_help_when_the_system_message_is_too_long(tokenizer: Any) -> None:
    prompt: list[Any] = [
        {"role": "system", "content": "Mira bakes. " * 50},
        *conversation("What does Mira do?"),
    ]
    assert isinstance(sampling.fit(tokenizer, prompt, 20, "middle"), str)
