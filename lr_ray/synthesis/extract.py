"""The text of one HTML or PDF file, taken out in a process of its own that has little to lose.

A document may be made to exhaust whoever reads it. So this file is run as a program, which imports nothing
of ours, is given no environment, and holds itself to so much memory and time: document on stdin, text on
stdout, or one line on stderr that says why there is none (then its exit code is `NONE`).
"""

import re
import resource
import sys
from collections import Counter
from html.parser import HTMLParser

MEMORY = 2 << 30  # bytes of address space
SECONDS = 60  # of CPU
PAGES = 5000
NONE = 3
HIDDEN = {
    *("script", "style", "noscript", "template", "svg", "math", "title", "iframe", "object", "canvas"),
    *("nav", "footer", "form", "select", "button"),
}
BLOCKS = {
    *("address", "article", "aside", "blockquote", "br", "caption", "dd", "details", "dialog", "div", "dl"),
    *("dt", "fieldset", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li"),
    *("main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul"),
}
VOID = {  # have no end
    *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"),
}


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

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS:
            self._close("p")  # as browsers do: a paragraph ends where a block begins
            self.lines.append([])
        elif tag in ("td", "th") and self.lines[-1]:
            self.lines[-1].append(" | ")
        if tag in VOID:
            return
        given = {name: (value or "").replace(" ", "").lower() for name, value in attrs}
        hidden = tag in HIDDEN or "hidden" in given or given.get("aria-hidden") == "true"
        hidden = hidden or "display:none" in given.get("style", "")
        self._open.append((tag, hidden))
        self._count[tag] += 1
        self._hidden += hidden

    def handle_endtag(self, tag: str) -> None:
        self._close(tag)
        if tag in BLOCKS:
            self.lines.append([])

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._count["pre"]:
            first, *more = data.split("\n")
            self.lines[-1].append(first)
            self.lines.extend([line] for line in more)
        else:
            self.lines[-1].append(re.sub(r"\s+", " ", data))

    def _close(self, tag: str) -> None:
        while self._count[tag]:
            name, hidden = self._open.pop()
            self._count[name] -= 1
            self._hidden -= hidden
            if name == tag:
                return


def html(data: bytes) -> str:
    """What a reader of the page sees: no scripts, styles, menus or hidden parts; a line for each block."""
    page = _Page()
    page.feed(_decoded(data))
    page.close()
    lines = ("".join(parts).rstrip() for parts in page.lines)
    lines = (re.sub(r"(?<=\S) +", " ", line) for line in lines)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _decoded(data: bytes) -> str:
    """Text by the byte order mark, else by what the page declares, else UTF-8."""
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    named = re.search(rb"charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", data[:2048])
    declared = named[1].decode() if named else "utf-8"
    encoding = next((name for mark, name in marks if data.startswith(mark)), declared)
    try:
        return data.decode(encoding)
    except (LookupError, ValueError) as error:
        raise Unreadable("its encoding is not what it says, or not known") from error


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
