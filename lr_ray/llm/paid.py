"""What a run need not pay for: what its own ledger holds, and those of other runs (`judge.reuse`).

A reply taken from another run is copied into the run's own ledger when it is used, so that the run stays
whole when the other is removed, and a third run need name only this one.
"""

import asyncio
import hashlib
from collections.abc import Sequence

from lr_ray.llm import ledger
from lr_ray.llm.lookup import Recorded, Reply
from lr_ray.llm.records import FOLDER, INDEX, SUFFIX
from lr_ray.store import Store


class Paid:
    """The recorded replies of the run in `store` and of the run directories `reuse`.

    Raises:
        ValueError: a directory of `reuse` holds no recorded calls.
    """

    def __init__(self, store: Store, reuse: Sequence[str] = ()) -> None:
        self._store = store
        self._own = Recorded(store)
        self._others: list[Recorded] = []
        for url in reuse:
            other = Store(url)
            if not other.files(FOLDER, SUFFIX):
                raise ValueError(f"judge.reuse: {url} holds no recorded calls")
            # Another run's directory is only read: what its index lacks is written here.
            folder = f"{INDEX}-{hashlib.sha256(other.url.encode()).hexdigest()[:12]}"
            self._others.append(Recorded(other, index=(store, folder)))

    def prepare(self) -> None:
        """Once before the actors start: merge what dead writers left, and index what is not indexed."""
        ledger.merge(self._store)
        for recorded in (self._own, *self._others):
            recorded.index()

    async def replies(self, prompt_id: str) -> tuple[dict[str, Reply], set[str]]:
        """The prompt's replies by key, and the keys of those that are in other runs' ledgers alone."""
        own, *others = await asyncio.gather(
            *(asyncio.to_thread(recorded.replies, prompt_id) for recorded in (self._own, *self._others))
        )
        every = {key: reply for replies in (*reversed(others), own) for key, reply in replies.items()}
        return every, every.keys() - own.keys()
