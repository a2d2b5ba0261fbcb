"""A sampled row as it comes to the judge, with what most tests do not look at filled in."""

from collections.abc import Sequence

from lr_ray.rows import Sampled


def sampled_row(prompt_id: str, context: str, question: str, texts: Sequence[str]) -> Sampled:
    """The row of `texts` as candidates 0, 1, …"""
    return {
        "prompt_id": prompt_id,
        "context": context,
        "question": question,
        "reference_answer": None,
        "prompt": [{"role": "user", "content": "?"}],
        "candidates": [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)],
        "prompt_tokens": 1,
        "cached_tokens": 0,
        "truncated": False,
        "sampled_at": 0.0,
    }
