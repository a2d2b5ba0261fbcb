"""TRL's preference formats → one: prompt, chosen and rejected as lists of messages.

https://huggingface.co/docs/trl/dataset_formats: text becomes a turn ({"prompt": "…"} the user's, an answer
the assistant's); answers that hold the whole conversation are cut behind what they share with the prompt.
"""

from collections.abc import Mapping
from typing import Any

Messages = list[dict[str, str]]


def conversational(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The row with its three fields as messages; everything else as it is.

    Raises:
        ValueError: fields that are missing, empty or of different kinds; `name` says which row.
    """
    chosen, rejected = _answer(row, "chosen", name), _answer(row, "rejected", name)
    given = row.get("prompt")
    prompt = _turns(given, "prompt", "user", name) if given is not None else []
    before = chosen[:-1]
    if before:
        if before != rejected[:-1]:
            raise ValueError(f"{name}: chosen and rejected are not answers to one conversation")
        if prompt and prompt != before:
            raise ValueError(f"{name}: chosen does not go on where prompt ends")
    elif len(rejected) > 1:
        raise ValueError(f"{name}: chosen is one message, rejected is {len(rejected)}")
    prompt = prompt or before
    if not prompt:
        raise ValueError(f"{name}: no prompt")
    return {**row, "prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _answer(row: Mapping[str, Any], side: str, name: str) -> Messages:
    found = _turns(row.get(side), side, "assistant", name)
    if found[-1]["role"] != "assistant":
        raise ValueError(f"{name}: {side} does not end with an assistant message")
    if not found[-1]["content"].strip():
        raise ValueError(f"{name}: {side}: the answer is empty")
    return found


def _turns(value: Any, field: str, role: str, name: str) -> Messages:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: {field} is neither text nor a list with at least one message")
    turns = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{name}: a message of {field} has no role or no content")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{name}: a message of {field} has the role {message.get('role')!r}")
        turns.append({"role": message["role"], "content": message["content"]})
    return turns
