"""The text of one HTML or PDF file, taken out in a process of its own that has little to lose.

A document may be made to exhaust whoever reads it. So this file is run as a program, which imports nothing
of ours, is given no environment, and holds itself to so much memory and time: document on stdin, text on
stdout, or one line on stderr that says why there is none (then its exit code is `NONE`).
"""

import codecs
import re
import resource
import sys
from collections import Counter
from html.parser import HTMLParser

MEMORY = 2 << 30  # bytes of address space
SECONDS = 60  # of CPU
PAGES = 5000
NONE = 3
LOST = 0.002  # of the characters shown may be bytes that are nothing in the page's encoding
HIDDEN = {
    *("script", "style", "noscript", "template", "svg", "math", "title", "iframe", "object", "canvas"),
    *("nav", "footer", "select", "datalist", "button"),
}
BLOCKS = {  # end an open paragraph
    *("address", "article", "aside", "blockquote", "caption", "center", "dd", "details", "dialog", "div"),
    *("dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("header", "hr", "li", "main", "menu", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody"),
    *("tfoot", "thead", "tr", "ul"),
}
CELLS = {"td", "th"}
SCOPES = CELLS | {"caption", "object", "table", "template"}  # a paragraph that holds one goes on after it
VOID = {  # have no end
    *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"),
}
READ_AS = {  # a codec's name → the wider one that browsers take (encoding.spec.whatwg.org); all they know
    **{name: name for name in ("utf-8", "gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "koi8-r", "koi8-u")},
    **{f"iso8859-{part}": f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    **{name: name for name in ("cp866", "cp874", *(f"cp125{number}" for number in range(9)))},
    **{"mac-roman": "mac-roman", "mac-cyrillic": "mac-cyrillic"},
    **{"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874"},
    **{"tis-620": "cp874", "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "cp950": "big5hkscs"},
    **{"shift_jis": "cp932", "cp932": "cp932", "euc_kr": "cp949", "cp949": "cp949"},
    # A page whose declaration could be read is not in UTF-16.
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be"), "utf-8"),
}
LABELS = {  # of browsers that the standard library has no codec by
    **{"windows-31j": "cp932", "windows-874": "cp874", "dos-874": "cp874", "windows-949": "cp949"},
    **{"gb_2312-80": "gbk", "csgb2312": "gbk", "cn-big5": "big5", "iso-8859-8-i": "iso8859-8"},
    **{"koi8": "koi8-r", "unicode": "utf-8", "unicode-1-1-utf-8": "utf-8"},
}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
NOT_AS_SAID = "its encoding is not what it says, or not known"

_DECLARED = re.compile(
    rb"<(?:meta\b[^>]{0,400}?\bcharset|\?xml\b[^>]{0,100}?\bencoding)\s*=\s*[\"']?\s*([\w.:-]{2,40})",
    re.IGNORECASE,
)


class Unreadable(Exception):
    """Why a document has no text."""


class _Page(HTMLParser):
    """What a reader of the page sees, in `lines`; without a tree, so that no nesting is too deep."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[list[str]] = [[]]
        self._open: list[tuple[str, bool]] = []  # elements that have begun, and whether they are not shown
        self._count: Counter[str] = Counter()
        self._hidden = 0
        self._paragraphs = [0]  # open in the page, and in each open element that they do not end outside of

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if (tag in BLOCKS or tag in CELLS) and self._paragraphs[-1]:
            self._close("p")  # as browsers do: a paragraph ends where a block begins
        self._break(tag)
        if tag in CELLS and self.lines[-1]:
            self.lines[-1].append(" | ")
        if tag in VOID:
            return
        given = {name: (value or "").replace(" ", "").lower() for name, value in attrs}
        hidden = tag in HIDDEN or "hidden" in given or given.get("aria-hidden") == "true"
        hidden = hidden or "display:none" in given.get("style", "")
        self._open.append((tag, hidden))
        self._count[tag] += 1
        self._hidden += hidden
        self._paragraphs[-1] += tag == "p"
        if _bounds(tag, hidden):
            self._paragraphs.append(0)

    def handle_endtag(self, tag: str) -> None:
        self._close(tag)
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._count["pre"]:
            first, *more = data.split("\n")
            self.lines[-1].append(first)
            self.lines.extend([line] for line in more)
        else:
            self.lines[-1].append(re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if (tag in BLOCKS or tag == "br") and not self._hidden:
            self.lines.append([])

    def _close(self, tag: str) -> None:
        while self._count[tag]:
            name, hidden = self._open.pop()
            self._count[name] -= 1
            self._hidden -= hidden
            if _bounds(name, hidden):
                self._paragraphs.pop()
            self._paragraphs[-1] -= name == "p"
            if name == tag:
                return


def _bounds(tag: str, hidden: bool) -> bool:
    """Whether no paragraph around the element ends in it; nothing hidden is ended by what it holds."""
    return tag != "p" and (hidden or tag in SCOPES)


def html(data: bytes) -> str:
    """What a reader of the page sees: no scripts, styles, menus or hidden parts; a line for each block."""
    page = _Page()
    encoding = _encoding(data)
    page.feed(data.decode(encoding, "replace"))
    page.close()
    lines = ("".join(parts).rstrip() for parts in page.lines)
    lines = (re.sub(r"(?<=\S) +", " ", line) for line in lines)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    if text.count("\ufffd") > LOST * len(text) and not _whole(data, encoding):
        raise Unreadable(NOT_AS_SAID)
    return text


def _encoding(data: bytes) -> str:
    """By the byte order mark, else by what the page declares, else UTF-8."""
    marked = next((name for mark, name in MARKS if data.startswith(mark)), None)
    declared = _DECLARED.search(data[:2048])
    if marked or not declared:
        return marked or "utf-8"
    label = declared[1].decode().lower().removeprefix("x-")
    try:
        return READ_AS[codecs.lookup(LABELS.get(label, label)).name]
    except LookupError as error:
        raise Unreadable(NOT_AS_SAID) from error


def _whole(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except ValueError:
        return False
    return True


def pdf(data: bytes) -> str:
    """The text of the pages, in order; a page that is a picture has none."""
    import io
    import logging

    import pypdf

    logging.disable()
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted:
            raise Unreadable("it is encrypted")
        if len(reader.pages) > PAGES:
            raise Unreadable(f"it has more than {PAGES:,} pages")
        return "\n\n".join(filter(None, (page.extract_text().strip() for page in reader.pages)))
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # damaged files end in whatever the parser was at
        raise Unreadable("it is no PDF that can be read") from error


def main() -> int:
    """Exit code: 0 with the text written, `NONE` with the reason."""
    kind, limit = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        text = {"html": html, "pdf": pdf}[kind](sys.stdin.buffer.read())
        data = text.encode("utf-8", "replace")
        if len(data) > limit:
            raise Unreadable("its text is larger than synthesis.max_document_mb")
    except Unreadable as why:
        sys.stderr.write(str(why))
        return NONE
    except (MemoryError, RecursionError):
        sys.stderr.write("reading it takes too much memory")
        return NONE
    sys.stdout.buffer.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
