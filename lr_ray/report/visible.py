"""Text from outside, with what a reader would not see made visible."""

# Shown by their names: control characters, characters that reorder the text around them (which would let
# an answer look like something else), lone surrogates. Marks that only set a direction stay.
_CONTROLS = [
    *range(9),
    11,
    12,
    *range(14, 32),
    *range(0x7F, 0xA0),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]
_VISIBLE = {code: f"⟨U+{code:04X}⟩" for code in [*_CONTROLS, *range(0xD800, 0xE000)]}


def visible(text: str) -> str:
    """`text` with each such character as its code."""
    return text.translate(_VISIBLE)
