"""What `lr-ray plan` says: the forecast of every part that a config has. Nobody is asked anything."""

from lr_ray import plan
from lr_ray.agreement import forecast as agreed
from lr_ray.compare import forecast as compared
from lr_ray.config import Config
from lr_ray.lacking import plannable
from lr_ray.plan import training
from lr_ray.synthesis import forecast as synthesized


def text(config: Config) -> str:
    """The forecasts, one after another.

    Raises:
        ValueError: bad input or config, in one sentence.
    """
    plannable(config)
    parts: list[str] = []
    if config.synthesis.documents:
        parts.append(synthesized.render(synthesized.make(config), config))
    if config.agreement.pairs or config.agreement.attacks:
        parts.append(agreed.render(agreed.make(config), config))
    given = bool(config.data.prompts or config.data.candidates)
    if not given and config.training.data:
        parts.append("\n".join(training.forecast(config, 0)))
    elif given or not parts:
        runs = compared.runs(config)
        parts.append(plan.render(plan.make(config, runs), config))
    return "\n\n".join(parts)
