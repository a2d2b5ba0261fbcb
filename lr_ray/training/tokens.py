"""Chat rows → token ids, with the answers' tokens told from the rest.

The prompt is tokenised as the sampler does it (chat template with the generation prompt). The answer
is tokenised by itself behind it, because that is how a model generates: no merge across the border.
Its ending is the template's own, up to the token that ends a turn.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoTokenizer

from lr_ray.training.batch import IGNORED, Example, PairIds

Messages = Sequence[Mapping[str, str]]


class Encoder:
    """The tokenizer and chat template of the model in `folder`.

    Raises:
        ValueError: there is no tokenizer, or it has no chat template.
    """

    def __init__(self, folder: str) -> None:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: no tokenizer to load: {' '.join(str(error).split())}") from error
        if not tokenizer.chat_template:
            raise ValueError(f"{folder}: the tokenizer has no chat template")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{folder}: the tokenizer has no end-of-sequence token")
        self.tokenizer = tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._specials: set[str] = {*tokenizer.all_special_tokens, *added}

    def pair(self, row: Mapping[str, Any], name: str) -> PairIds:
        """The pair in `row` (prompt, chosen, rejected: lists of messages; its scores where it has them).

        Raises:
            ValueError: a field is missing, an answer is not one assistant message or is empty, or the
                template does not put the answer behind the prompt; `name` says which row.
        """
        prompt = _messages(row, "prompt", name)
        rendered = self._render(prompt, ask=True)
        answers = []
        for side in ("chosen", "rejected"):
            answer = _messages(row, side, name)
            if len(answer) != 1 or answer[0]["role"] != "assistant":
                raise ValueError(f"{name}: {side} is not one assistant message")
            full = self._render([*prompt, *answer], ask=False)
            answers.append(self._answer(full, rendered, answer[0]["content"], f"{name}: {side}")[0])
        chosen, rejected = answers
        return PairIds(self._ids(rendered), chosen, rejected, margin=_margin(row, name))

    def example(self, row: Mapping[str, Any], name: str) -> Example:
        """The conversation in `row["messages"]`; every assistant turn is learned.

        Raises:
            ValueError: no assistant turn, an empty one, or a template that rewrites earlier turns.
        """
        messages = _messages(row, "messages", name)
        full = self._render(messages, ask=False)
        ids: list[int] = []
        labels: list[int] = []
        read = 0
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:turn], ask=True)
            if not full.startswith(before):
                raise ValueError(f"{name}: the chat template rewrites the turns before message {turn}")
            between = self._ids(before[read:])
            until = self._turns(messages[: turn + 1], full, name)
            answer, length = self._answer(until, before, message["content"], f"{name}: message {turn}")
            ids += between + answer
            labels += [IGNORED] * len(between) + answer
            read = len(before) + length
        if all(label == IGNORED for label in labels):
            raise ValueError(f"{name}: no assistant message to learn")
        return {"input_ids": ids, "labels": labels}

    def _turns(self, messages: Messages, full: str, name: str) -> str:
        text = self._render(messages, ask=False)
        if not full.startswith(text):
            raise ValueError(f"{name}: the chat template rewrites message {len(messages) - 1} later on")
        return text

    def _render(self, messages: Messages, *, ask: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=ask
        )
        assert isinstance(text, str)
        return text

    def _ids(self, text: str, *, plain: bool = False) -> list[int]:
        if not text:
            return []
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)
        return list(encoded["input_ids"])

    def _answer(self, full: str, before: str, content: str, name: str) -> tuple[list[int], int]:
        """Token ids of the answer with its ending, and how many characters of `full` they stand for."""
        if not content.strip():
            raise ValueError(f"{name}: the answer is empty")
        if not full.startswith(before):
            raise ValueError(f"{name}: the chat template does not put the answer behind the prompt")
        text = full[len(before) :]
        # Templates may trim an answer, or put a marker (an empty thought) before it.
        content = content if content in text else content.strip()
        start = text.find(content)
        if start < 0:
            raise ValueError(f"{name}: the chat template rewrites the answer")
        end = start + len(content)
        # What follows the token that ends the turn (a line break) is never generated, so never learned.
        stops = [text.index(stop, end) + len(stop) for stop in self._specials if stop in text[end:]]
        ending = self._ids(text[end : min(stops)]) if stops else [self.tokenizer.eos_token_id]
        # Text that spells a special token must stay text.
        ids = self._ids(text[:start]) + self._ids(content, plain=True) + ending
        return ids, min(stops, default=end)


def _margin(row: Mapping[str, Any], name: str) -> float | None:
    """How much higher the chosen answer was scored; None where a row has no scores."""
    chosen, rejected = row.get("score_chosen"), row.get("score_rejected")
    if chosen is None and rejected is None:
        return None
    for score in (chosen, rejected):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(
                f"{name}: score_chosen {chosen!r} or score_rejected {rejected!r} is not a number"
            )
    assert chosen is not None
    return float(chosen - rejected)


def _messages(row: Mapping[str, Any], field: str, name: str) -> Messages:
    value = row.get(field)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: {field} is not a list with at least one message")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{name}: a message of {field} has no role or no content")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{name}: a message of {field} has the role {message.get('role')!r}")
    return value
