"""A short-context reward model (the paper's SRM): it rates question and answer and never sees the context."""

import functools
import math
import os
from typing import Any

from lr_ray import models
from lr_ray.config import Config, Srm
from lr_ray.flow import SAVING, blocks, flow, saved
from lr_ray.placement import DATA_TASKS, Need, require
from lr_ray.rewards.places import judged, load
from lr_ray.rows import Judged, Load, Packed, RewardedCandidate, pack, unpack
from lr_ray.runtime import Watch
from lr_ray.store import Store

KEY = "rewards.srm.model"
UNKNOWN = 10**9  # tokenizers without a limit have an absurdly large one


def check(settings: Srm) -> None:
    """Refuse a model that cannot rate, as far as its config tells.

    Raises:
        ValueError: in one sentence.
    """
    if not settings.model:
        raise ValueError(f"{KEY} is not set: name a sequence classification model's folder")
    folder = models.local(settings.model, weights=False)
    if not os.path.isdir(folder):
        if settings.model.startswith((".", "/", "~")):
            raise ValueError(f"{KEY}: {settings.model}: no such model folder")
        return  # a hub name: found when it is loaded
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"{KEY}: {settings.model}: no config.json in this model folder")
    from transformers import AutoConfig

    shape: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _label(shape, settings)


def _label(shape: Any, settings: Srm) -> int:
    if settings.label is None and shape.num_labels != 1:
        raise ValueError(f"{KEY}: {settings.model} has {shape.num_labels} labels: set rewards.srm.label")
    if settings.label is not None and settings.label >= shape.num_labels:
        raise ValueError(f"rewards.srm.label: {settings.model} has {shape.num_labels} labels only")
    return settings.label or 0


class RewardModel:
    """The model on its device.

    Raises:
        ValueError: it has no classification head, or no known window.
    """

    def __init__(self, settings: Srm) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch, self._settings = torch, settings
        folder = models.local(settings.model)
        self._device = "cuda" if settings.num_gpus else "cpu"
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # Weights that are not there would be drawn at random, with a warning only.
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype="auto" if settings.num_gpus else torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
        if found["missing_keys"]:
            names = ", ".join(sorted(found["missing_keys"])[:3])
            raise ValueError(f"{KEY}: {settings.model} is no sequence classification model: no {names}")
        self._label = _label(model.config, settings)
        self._tokenizer, self._model = tokenizer, model.to(self._device).eval()
        self.window = self._window()
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        # A model that cannot tell padding from text is given one answer at a time.
        self._batch = settings.batch_size if padding is not None and padding == tokenizer.pad_token_id else 1

    def _window(self) -> int:
        known = [
            getattr(self._model.config.get_text_config(), "max_position_embeddings", None),
            self._tokenizer.model_max_length,
        ]
        limits = [limit for limit in known if isinstance(limit, int) and 0 < limit < UNKNOWN]
        if self._settings.max_length:
            if limits and self._settings.max_length > min(limits):
                raise ValueError(f"rewards.srm.max_length is over the model's window of {min(limits)} tokens")
            return self._settings.max_length
        if not limits:
            raise ValueError(f"{KEY}: {self._settings.model} names no window: set rewards.srm.max_length")
        return min(limits)

    def rate(self, question: str, answers: list[str]) -> list[float | str]:
        """The reward of each answer, or why it has none."""
        encoded = [self._encode(question, answer) for answer in answers]
        given: list[float | str] = [
            f"question and answer have {len(one['input_ids'])} tokens, the reward model takes {self.window}"
            for one in encoded
        ]
        fitting = [place for place, one in enumerate(encoded) if len(one["input_ids"]) <= self.window]
        fitting.sort(key=lambda place: len(encoded[place]["input_ids"]))
        for start in range(0, len(fitting), self._batch):
            places = fitting[start : start + self._batch]
            for place, logit in zip(places, self._logits([encoded[place] for place in places]), strict=True):
                given[place] = (
                    logit if math.isfinite(logit) else "the reward model's logit is no finite number"
                )
        return given

    def _encode(self, question: str, answer: str) -> Any:
        if not self._tokenizer.chat_template:
            return self._tokenizer(question, answer, truncation=False, verbose=False)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return self._tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, verbose=False)

    def _logits(self, encoded: list[Any]) -> list[float]:
        if len(encoded) > 1:
            batch: Any = self._tokenizer.pad(encoded, return_tensors="pt")
        else:
            batch = {name: self._torch.tensor([ids]) for name, ids in encoded[0].items()}
        with self._torch.inference_mode():
            logits = self._model(**{name: ids.to(self._device) for name, ids in batch.items()}).logits
        return logits[:, self._label].float().tolist()


class Scorer:
    """An actor of the pipeline: places of judged rows → the reward model's rewards."""

    def __init__(self, settings: Srm, load: Load, tally: Any = None) -> None:
        self._model, self._load, self._tally = RewardModel(settings), load, tally

    def __call__(self, packed: Packed) -> Packed:
        row: Any = unpack(self._load(unpack(packed)))
        made = rated(row, self._model)
        if self._tally is not None:
            self._tally.add.remote({"rewarded": 1})
        return pack("rewarded", {"prompt_id": row["prompt_id"], "candidates": made})


def rated(row: Judged, model: RewardModel) -> list[RewardedCandidate]:
    """The row's candidates with the model's rewards."""
    given = model.rate(row["question"], [one["text"] for one in row["candidates"]])
    return [
        {"index": one["index"], "reward": None, "unscored": value}
        if isinstance(value, str)
        else {"index": one["index"], "reward": value, "unscored": None}
        for one, value in zip(row["candidates"], given, strict=True)
    ]


def score(config: Config, store: Store, there: Store, watch: Watch, *, retry: bool = False) -> int:
    """Rate the candidates of every judged row of `store`, into `there`. No row fails."""
    import ray.data

    settings = config.rewards.srm
    done = there.index("rewarded")
    left = [(one, place) for one, place in judged(store).items() if one not in done]
    if not left:
        return 0
    each = {"CPU": settings.num_cpus, "GPU": settings.num_gpus, **settings.resources}
    name = "reward model"
    *_, actors = require([SAVING, DATA_TASKS, Need(name, settings.actors, each)], config.wait_for_nodes)
    places = [dict(pack("pointer", {"prompt_id": one, "item": [*place]})) for one, place in left]
    scorer: Any = Scorer
    with watch.display.stage(name, len(left), ("rewarded",)):
        rows = blocks(places).map(
            scorer,
            fn_constructor_kwargs={
                "settings": settings,
                "load": functools.partial(_load, store=store),
                "tally": watch.tally,
            },
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus or None,
            resources=dict(settings.resources),
        )
        flow(saved(rows, there, keep=False), {}, watch, engines=False)
    return 0


def _load(place: dict[str, Any], store: Store) -> Packed:
    return pack("judged", load(place["item"], store))
