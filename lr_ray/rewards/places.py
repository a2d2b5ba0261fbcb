"""Judged rows by their places, so that long ones need not pass through the driver."""

from lr_ray.rows import Judged
from lr_ray.store import Store

Place = tuple[str, int]


def judged(store: Store) -> dict[str, Place]:
    """Where each judged row lies, by prompt id in order."""
    return dict(sorted(store.index("judged").items()))


def load(place: Place, store: Store) -> Judged:
    """The judged row at `place`."""
    name, row = place
    return store.table("judged", name).slice(row, 1).to_pylist()[0]  # type: ignore[return-value]
