"""How far the judge agrees with labelled pairs, and what that is compared with."""

from pydantic import Field

from lr_ray.config.section import Paths, Section


class Agreement(Section):
    pairs: Paths = []
    """Labelled pairs: jsonl or parquet with prompt_id, context, question, chosen, rejected; or in the form of
    RewardBench, RewardBench 2, Long-RewardBench, the authors' pairs or ours (pairs/)."""
    attacks: bool = False
    """Also the shipped attack set, in which the worse answer works on the judge."""
    direct: bool = False
    """Also one direct pairwise call a pair, in both orders; it shows the whole context at once."""
    repeats: int = Field(0, ge=0, le=20)
    """Further judgings of every pair, at temperature 0.95 and with seeds 1, 2, …: does it say the same again?
    Each costs what the first does."""
    other: str | None = None
    """Another run directory with an agreement on the same pairs, as by another judge: Cohen's kappa."""
    seed: int = 0
    """Gives the order in which the answers of a pair stand, so that it does not tell the label."""
