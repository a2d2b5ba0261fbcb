"""LongReward on Ray: sample, judge, pair and train long-context language models."""

__version__ = "0.1.0"
