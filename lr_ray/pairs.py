"""Judged rows → preference pairs, and pairs in the formats of other trainers.

The paper pairs the best with the worst of a prompt's candidates (arXiv 2410.21252, section 3.3). It
publishes no filter on the pairs; the ones here are options that are off or named in the report.
"""

from typing import Any

from lr_ray import config, rows

TOO_FEW = "too few scored candidates"
IDENTICAL = "identical texts"
TIE = "tie"
MARGIN = "margin"
LENGTH_RATIO = "length ratio"
UNREWARDED = "no reward"
REASONS = (UNREWARDED, TOO_FEW, IDENTICAL, TIE, MARGIN, LENGTH_RATIO)
"""Why a prompt gives no pair, in the order in which the rules are asked. The first is of rewards that were
made elsewhere (`lr_ray.rewards`) and may have nothing on a prompt."""

# Rewards are means of a few floats: differences below this are rounding, not judgement.
_ROUNDING = 1e-9


def choose(row: rows.Judged, rules: config.Pairs, unasked: int = 0) -> rows.Pair | str:
    """The row's preference pair, or the one of `REASONS` for which it has none.

    The rewards in `row` may be of any kind and scale, see `config.Pairs.reward`; `unasked` more candidates
    were there for a reward that looks at a few of them only, and count for `rules.min_candidates`.

    Chosen is the highest reward, the lowest index among equals. Rejected is the lowest reward (again
    the lowest index among equals) of the candidates that may be paired with it: text different from the
    chosen one, up to surrounding white space; reward lower, by `rules.margin` at least; lengths within
    `rules.max_length_ratio`. The rules fall one after another, and the first that leaves nobody names
    the reason. A candidate without a reward, or without any text (which no trainer can learn), takes no part.
    """
    scored = [(c["reward"], c) for c in row["candidates"] if c["reward"] is not None and c["text"].strip()]
    if len(scored) < 2 or len(scored) + unasked < rules.min_candidates:
        return TOO_FEW
    high, best = min(scored, key=lambda item: (-item[0], item[1]["index"]))
    rivals = [item for item in scored if item[1]["text"].strip() != best["text"].strip()]
    if not rivals:
        return IDENTICAL
    rivals = [item for item in rivals if high - item[0] > _ROUNDING]
    if not rivals:
        return TIE
    rivals = [item for item in rivals if high - item[0] >= rules.margin - _ROUNDING]
    if not rivals:
        return MARGIN
    if rules.max_length_ratio is not None:
        rivals = [item for item in rivals if _ratio(best, item[1]) <= rules.max_length_ratio]
    if not rivals:
        return LENGTH_RATIO
    low, worst = min(rivals, key=lambda item: (item[0], item[1]["index"]))
    return {
        "prompt_id": row["prompt_id"],
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": best["text"]}],
        "rejected": [{"role": "assistant", "content": worst["text"]}],
        "score_chosen": high,
        "score_rejected": low,
        "scores_chosen": best["scores"],
        "scores_rejected": worst["scores"],
        "index_chosen": best["index"],
        "index_rejected": worst["index"],
    }


def _ratio(one: rows.JudgedCandidate, other: rows.JudgedCandidate) -> float:
    """Longer over shorter text, in characters; an empty text counts as one character."""
    lengths = sorted((len(one["text"]), len(other["text"])))
    return lengths[1] / max(lengths[0], 1)


def authors(pair: rows.Pair, prompt: rows.Prompt) -> dict[str, Any]:
    """The pair as a row of the LongReward authors' files: raw context and query, plain texts.

    `prompt` is the row the pair came from (a judged row will do): the pair holds only its messages.
    """
    assert pair["prompt_id"] == prompt["prompt_id"]
    return {
        "idx": pair["prompt_id"],
        "context": prompt["context"],
        "query": prompt["question"],
        "win_response": pair["chosen"][-1]["content"],
        "lose_response": pair["rejected"][-1]["content"],
    }


def openrlhf(pair: rows.Pair) -> dict[str, Any]:
    """The pair for OpenRLHF with ``--apply_chat_template`` and no ``--prompt_key``.

    `chosen` and `rejected` are whole conversations under OpenRLHF's default keys; it takes all but the
    last turn of `chosen` as the prompt (openrlhf/datasets/reward_dataset.py).
    """
    return {
        "chosen": [*pair["prompt"], *pair["chosen"]],
        "rejected": [*pair["prompt"], *pair["rejected"]],
    }


def nemo_rl(pair: rows.Pair) -> dict[str, Any]:
    """The pair for NeMo RL's `PreferenceDataset`: ranked completions of a context, rank 0 preferred."""
    return {
        "context": list(pair["prompt"]),
        "completions": [
            {"rank": 0, "completion": list(pair["chosen"])},
            {"rank": 1, "completion": list(pair["rejected"])},
        ],
    }
