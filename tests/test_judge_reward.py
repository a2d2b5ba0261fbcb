import pytest

from lr_ray.config import Weights
from lr_ray.judge.reward import faithfulness, reward, weighted
from lr_ray.rows import Scores

SCORES: Scores = {"helpfulness": 8.0, "logicality": 10.0, "faithfulness": 5.0, "completeness": 3.0}


def test_faithfulness_is_ten_times_the_mean_support() -> None:
    assert faithfulness(["full", "partial", "none", "full"]) == 6.25
    assert faithfulness(["none"]) == 0


def test_the_reward_is_the_mean() -> None:
    assert reward(SCORES, Weights()) == 6.5


def test_weights_weigh() -> None:
    weights = Weights(helpfulness=2, logicality=0, faithfulness=1, completeness=1)
    assert reward(SCORES, weights) == 6.0
    assert weighted(weights) == ["helpfulness", "faithfulness", "completeness"]


@pytest.mark.parametrize("missing", list(SCORES))
def test_an_unscored_dimension_leaves_no_reward_unless_it_has_no_weight(missing: str) -> None:
    scores: Scores = {**SCORES, missing: None}  # type: ignore[typeddict-item]
    assert reward(scores, Weights()) is None
    assert reward(scores, Weights(**{missing: 0})) is not None
