"""How far the pages of a parquet column unfold, from their own headers, before a reader makes room for them.

A reader goes by each page's header, so the footer's sizes bound nothing. A header is a struct in Thrift's
compact protocol (PageHeader of github.com/apache/parquet-format): field 2 is the size unfolded, 3 as stored.
"""

from collections.abc import Iterator
from typing import Any

LARGE = 64 << 20  # bytes; smaller pages may unfold as far as they like
RATIO = 100  # times its size a larger one may unfold; text packs to a third, a book beside its copies further
WINDOWS = (4096, 1 << 20)  # bytes that hold a header, with statistics that may be long
WIDTHS = {1: 0, 2: 0, 3: 1, 7: 8}  # bytes of a value: true, false, a byte, a double
NUMBERS = (4, 5, 6)  # of 16, 32 and 64 bits
BINARY, STRUCT = 8, 12


def largest(stream: Any, column: Any) -> int | None:
    """Bytes of the column chunk's largest page unfolded, and so of its longest value at most.

    None where a page unfolds beyond bounds. `column` is the chunk's metadata, as pyarrow has it.

    Raises:
        ValueError: what lies there is no page.
    """
    start = column.data_page_offset
    if 0 < (column.dictionary_page_offset or 0) < start:
        start = column.dictionary_page_offset
    sizes = list(_sizes(stream, start, start + column.total_compressed_size))
    if any(unfolded > max(LARGE, RATIO * stored) for stored, unfolded in sizes):
        return None
    return max((unfolded for _, unfolded in sizes), default=0)


def _sizes(stream: Any, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Of each page its size as stored and unfolded, in bytes."""
    while at < end:
        fields, length = _header(stream, at)
        if fields.get(3, -1) < 0 or 2 not in fields:
            raise ValueError("a page without a size")
        yield fields[3], fields[2]
        at += length + fields[3]


def _header(stream: Any, at: int) -> tuple[dict[int, int], int]:
    for window in WINDOWS:
        stream.seek(at)
        try:
            return numbers(stream.read(window))
        except IndexError:
            continue
    raise ValueError("a page without an end to its header")


def numbers(data: bytes) -> tuple[dict[int, int], int]:
    """The whole numbers of the struct that `data` begins with, by field, and its length in bytes.

    Raises:
        IndexError: it does not end in `data`.
        ValueError: it holds what no page header does.
    """
    found: dict[int, int] = {}
    around: list[int] = []  # the fields that the structs around have come to
    field = at = 0
    while (head := data[at]) or around:
        at += 1
        if not head:
            field = around.pop()
            continue
        step, kind = head >> 4, head & 15
        if step:
            field += step
        else:
            field, at = _number(data, at)
        if kind in NUMBERS:
            value, at = _number(data, at)
            if not around:
                found[field] = value
        elif kind == STRUCT:
            around.append(field)
            field = 0
        else:
            at = _passed(data, at, kind)
    return found, at + 1


def _passed(data: bytes, at: int, kind: int) -> int:
    if kind == BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind not in WIDTHS:
        raise ValueError("a page header with a list")
    return at + WIDTHS[kind]


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
