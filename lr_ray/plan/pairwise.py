"""Direct pairwise calls of a run: the reward `direct`, and win rates on held-out prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from lr_ray.config import Config
from lr_ray.judge import direct, forecast
from lr_ray.llm.usage import Used
from lr_ray.plan.bounds import total
from lr_ray.plan.rows import More


def of_rewards(runs: Sequence[Config]) -> More:
    """What the rewards of `runs` ask about a row: each different reward `direct` one call."""
    different = {_made_with(run): run for run in runs if _asks(run)}

    def more(row: Any, cached: set[int] | None) -> Mapping[str, Used]:
        texts = list(dict.fromkeys(filter(None, (one["text"].strip() for one in row["candidates"]))))
        if len(texts) < 2 or not different:  # equal answers are a tie without a call
            return {}
        couples = [(texts[0], texts[1])]
        return {
            direct.KIND: total(
                *(
                    {
                        "": forecast.of_couples(
                            row, couples, run.judge, cached, context=run.rewards.direct.context
                        )
                    }
                    for run in different.values()
                )
            )
        }

    return more


def _asks(run: Config) -> bool:
    return run.pairs.reward == "direct" and run.training.method == "dpo" and not run.training.data


def _made_with(run: Config) -> tuple[Any, ...]:
    """What decides whether two runs share the calls."""
    return run.rewards.seed, run.rewards.direct.model or run.judge.model, run.rewards.direct.context


def of_wins(config: Config, trainings: int) -> More:
    """What win rates ask about a held-out row, as a share of its judging for all models."""
    sees, share = config.evaluation.win_rate, trainings / (trainings + 1)

    def more(row: Any, cached: set[int] | None) -> Mapping[str, Used]:
        if sees is None:
            return {}
        couples = []
        for one in row["candidates"]:
            # The other model's answer is not there yet: one as long.
            other = one["text"] + " "
            couples += [(one["text"], other), (other, one["text"])]
        used, scaled = (
            forecast.of_couples(row, couples, config.judge, cached, context=sees == "document"),
            Used(),
        )
        scaled.add(used, share)
        return {direct.KIND: scaled}

    return more
