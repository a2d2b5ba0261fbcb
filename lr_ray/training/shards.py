"""Training state as it goes to disk: copied to host memory at once, written and read as tensor files.

Copying is all that training waits for. The copies live in buffers that every checkpoint uses again:
fresh memory costs many times the copy itself (page faults on a CPU, pinning on a GPU), so it is taken
before the first checkpoint, aside.
"""

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

Shards = dict[str, Any]
"""File name → state: nested dicts, lists and tuples of tensors, numbers, strings and small records."""
Visit = Callable[[str, torch.Tensor], torch.Tensor]


class HostCopies:
    """Copies of state in host memory. What `take` returned is valid until the next `take`."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._reserving: threading.Thread | None = None

    def reserve(self, states: Shards) -> None:
        """Get memory for such states, in the background; the next `take` waits for it."""
        wanted: dict[str, torch.Tensor] = {}

        def note(place: str, tensor: torch.Tensor) -> torch.Tensor:
            wanted[place] = torch.empty_like(tensor, device="meta")
            return tensor

        _copy("", states, note)
        pinned = torch.cuda.is_available()

        def allocate() -> None:
            for place, like in wanted.items():
                self._buffers[place] = _buffer(like, pinned).zero_()

        self._reserving = threading.Thread(target=allocate, daemon=True)
        self._reserving.start()

    def take(self, states: Shards) -> Shards:
        """A copy of `states` that shares nothing with them."""
        if self._reserving:
            self._reserving.join()
            self._reserving = None
        taken = _copy("", states, self._tensor)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return taken

    def _tensor(self, place: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[place] = _buffer(tensor, tensor.is_cuda)
        return buffer.copy_(tensor, non_blocking=True)


def _buffer(like: torch.Tensor, pinned: bool) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=pinned)


def _copy(place: str, value: Any, visit: Visit) -> Any:
    if isinstance(value, torch.Tensor):
        return visit(place, value.detach())
    if isinstance(value, Mapping):
        items = {key: _copy(f"{place}/{key}", item, visit) for key, item in value.items()}
        made = type(value)() if isinstance(value, dict) else {}
        made.update(items)
        return made
    if type(value) in (list, tuple):
        return type(value)(_copy(f"{place}/{number}", item, visit) for number, item in enumerate(value))
    return copy.copy(value)


def write(state: Any, target: Any) -> None:
    """Write `state` to a local path, or to a binary stream, which takes longer."""
    torch.save(state, target)


def read(stream: Any, trusted: list[Any]) -> Any:
    """The state in a seekable binary stream; only tensors, plain values and `trusted` classes are made."""
    with torch.serialization.safe_globals(trusted):
        return torch.load(stream, map_location="cpu", weights_only=True)
