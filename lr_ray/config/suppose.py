"""What a forecast counts with while data and models are not there yet."""

from typing import Annotated, Any

from pydantic import Field

from lr_ray.config.section import Section


class Suppose(Section):
    prompts: int | None = Field(None, ge=1)
    """Prompts, while nothing of data.prompts is there; none: missing data is refused, as it is by `run`."""
    context_tokens: list[Annotated[int, Field(ge=64)]] = Field([22000], min_length=1)
    """Lengths of their contexts, each as often as it stands here."""
    held_out: int = Field(100, ge=1)
    """Held-out prompts of the same lengths, while nothing of evaluation.prompts is there."""
    examples: int | None = Field(None, ge=1)
    """Rows of training.data, while nothing of it is there."""
    model: dict[str, Any] = {}
    """The config.json of the model that is trained, while its folder is not there: model_type and the sizes
    under transformers' own names."""
