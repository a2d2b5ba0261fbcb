"""Awaiting many results: the unusable is a value with its reason, no failure cuts the others short."""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from lr_ray.llm.calls import Unusable

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Missing:
    """In place of something that no attempt gave, because of `reason`."""

    reason: str


async def usable(asked: Awaitable[T]) -> T | Missing:
    """The result, or why there is none that can be used."""
    try:
        return await asked
    except Unusable as error:
        return Missing(str(error))


async def everything(asked: Iterable[Awaitable[T]]) -> list[T]:
    """All results; a failure is raised when the others are done, so that what they pay for is kept."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # pyrefly: ignore


async def both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """Both results, as `everything`."""
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    for result in (one, two):
        if isinstance(result, BaseException):
            raise result
    return one, two  # pyrefly: ignore
