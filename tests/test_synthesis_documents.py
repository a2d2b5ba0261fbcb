"""Documents of every kind, and of the kinds that mean harm."""

import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lr_ray import rowfiles, store
from lr_ray.config import Synthesis
from lr_ray.judge.chunks import measure
from lr_ray.rows import Document
from lr_ray.synthesis import documents, extract
from lr_ray.synthesis.documents import Dropped, extracted, files

MEASURE = measure(None)
STORY = " ".join(f"In the year {1500 + i} the town of Lauda built bridge number {i}." for i in range(40))


def pdf(*pages: bytes) -> bytes:
    """A PDF whose pages have these content streams."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, page in enumerate(pages):
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        of_page = (
            f"<< /Type /Page /Parent 2 0 R {resources} /MediaBox [0 0 600 800] /Contents {5 + 2 * i} 0 R >>"
        )
        packed = zlib.compress(page)
        objects.append(of_page.encode())
        objects.append(
            f"<< /Length {len(packed)} /Filter /FlateDecode >>\nstream\n".encode() + packed + b"\nendstream"
        )
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode() + trailer.encode()


def shown(text: str) -> bytes:
    lines = (f"({text[i : i + 80]}) Tj 0 -14 Td" for i in range(0, len(text), 80))
    return b"BT /F1 12 Tf 50 780 Td " + " ".join(lines).encode() + b" ET"


def read(*patterns: Path | str, **settings: Any) -> list[Document]:
    asked = Synthesis(documents=[str(one) for one in patterns], **settings)
    return [row for file in files(asked.documents).found for row in documents.read(file, asked, MEASURE)]


def test_every_kind_gives_its_text(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    (tmp_path / "a.txt").write_text(STORY, encoding="utf-8")
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbf# Bridges\r\n\r\n" + STORY.encode())
    (folder / "c.html").write_text(f"<html><body><h1>Bridges</h1><p>{STORY}</body></html>")
    (folder / "d.pdf").write_bytes(pdf(shown("First page. " + STORY), shown("Second page.")))
    (folder / "e.jsonl").write_text("".join(json.dumps({"content": f"{i} {STORY}"}) + "\n" for i in range(2)))
    pq.write_table(pa.table({"id": [1], "text": ["桥梁的故事。" * 60]}), folder / "f.parquet")
    (tmp_path / "g.docx").write_bytes(b"PK")
    (tmp_path / ".hidden.txt").write_text(STORY)
    found = {row["name"].removeprefix(f"{tmp_path}/"): row for row in read(tmp_path)}
    assert list(found) == [
        *("a.txt", "b.md", "deep/er/c.html", "deep/er/d.pdf"),
        *("deep/er/e.jsonl: line 1", "deep/er/e.jsonl: line 2", "deep/er/f.parquet: row 1"),
    ]
    assert all(row["dropped"] is None for row in found.values())
    assert found["a.txt"]["text"] == STORY
    assert found["a.txt"]["tokens"] == len(STORY) // 4
    assert found["b.md"]["text"] == f"# Bridges\n\n{STORY}"
    assert found["deep/er/c.html"]["text"] == f"Bridges\n\n{STORY}"
    assert "bridge number 39" in found["deep/er/d.pdf"]["text"]
    assert found["deep/er/d.pdf"]["text"].endswith("Second page.")
    assert found["deep/er/f.parquet: row 1"]["language"] == "zh"
    assert files([str(tmp_path)]).others == 1
    assert len({row["prompt_id"] for row in found.values()}) == 7


def test_a_page_is_what_its_reader_sees() -> None:
    page = """<!DOCTYPE html><html><head><title>T</title><style>p {color: red}</style>
    <script>var a = "<p>not text</p>";</script></head><body onload="x()"><nav><ul><li>Home</ul></nav>
    <h1>Tin &amp;\ncopper</h1><p>One <b>bold</b>\nword<p>Two<br>three <!-- secret -->
    <p hidden>gone<p style="Display: None">gone<p>kept</p><pre>if x:\n    y()</pre>
    <table><tr><td>a</td><td>b</td></tr><tr><th>c<th>d</table>
    <svg><text>gone</text></svg><template>gone</template><footer>gone</footer>the end</body></html>"""
    text = extracted(page.encode(), "html", 10_000)
    assert not isinstance(text, Dropped)
    lines = [line for line in text.split("\n") if line.strip()]
    assert [line.strip() for line in lines] == [
        *(
            "Tin & copper",
            "One bold word",
            "Two",
            "three",
            "kept",
            "if x:",
            "y()",
            "a | b",
            "c | d",
            "the end",
        ),
    ]
    assert "    y()" in lines  # white space counts in pre


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        ("<p>Last<nav><ul><li>Home</li><li>MENU", ["Last"]),
        ("<p>Text<footer><div>gone</div></footer>after", ["Text", "after"]),
        ("<p>Text<template><div>gone</div><p>gone</template> on", ["Text on"]),
        ("<p>Text<svg><p>gone</svg> on", ["Text on"]),
        ("<p>Text<button>gone<div>gone</div></button> on", ["Text on"]),
        ("<p>Text<span hidden>gone<div>gone</div></span> on", ["Text on"]),
        ("<p hidden>gone<br>gone<p>shown", ["shown"]),
        ("<p>one<table><tr><td><p hidden>gone<td>two</table>three", ["one", "two", "three"]),
        ("<form id=all><div><h1>Title</h1><p>Body<select><option>gone</select></form>", ["Title", "Body"]),
        ("<p>Text<form><datalist><option>gone</datalist>asked</form>", ["Text", "asked"]),
    ],
)
def test_what_is_hidden_stays_so_after_an_open_paragraph(page: str, lines: list[str]) -> None:
    text = extracted(page.encode(), "html", 10_000)
    assert [line.strip() for line in text.split("\n") if line.strip()] == lines


UNREADABLE = "its encoding is not what it says, or not known"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('<meta charset="gb18030"><p>桥梁'.encode("gb18030"), "桥梁"),
        ("<meta charset=gb2312><p>朱镕基".encode("gbk"), "朱镕基"),  # the second is not in GB 2312
        ("<META HTTP-EQUIV=content-type CONTENT='text/html; CHARSET=x-gbk'><p>桥".encode("gbk"), "桥"),
        ('<?xml version="1.0" encoding="Shift_JIS"?><p>①橋'.encode("cp932"), "①橋"),
        (b"<meta charset=ISO-8859-1><p>\x93Br\xfccke\x94", "“Brücke”"),
        (b"<meta charset=us-ascii><p>Br\xfccke", "Brücke"),
        ("<meta charset=windows-1251><p>мост".encode("cp1251"), "мост"),
        ("<script charset=gbk></script><p>Brücke".encode(), "Brücke"),
        ("<meta charset=utf-16><p>Brücke".encode(), "Brücke"),
        ("<p>Brücke".encode(), "Brücke"),
        ("<p>Brücke".encode("utf-16"), "Brücke"),
        ("<p>Brücke".encode("latin-1"), UNREADABLE),
        (b"<meta charset=no-such-thing><p>x", UNREADABLE),
        (b"<meta charset=zlib_codec><p>x", UNREADABLE),
        (b"<meta charset=utf-7><p>+AHg-", UNREADABLE),
    ],
)
def test_the_encoding_is_what_the_page_says(data: bytes, text: str) -> None:
    assert extracted(data, "html", 1000).strip() == text


def test_a_few_bytes_that_are_nothing_are_lost_and_not_the_page() -> None:
    page = b"<meta charset=gb2312><script>" + b"x" * 9000 + b"</script><p>"
    good = "桥".encode("gbk")
    assert extracted(page + good * 999 + b"\xff", "html", 9000) == "桥" * 999 + "�"
    # The share is of what is shown, so a long script hides nothing.
    assert extracted(page + (good * 99 + b"\xff ") * 10, "html", 9000) == UNREADABLE
    assert extracted("<p>� is U+FFFD".encode(), "html", 1000) == "� is U+FFFD"


def test_plain_text_in_gb18030_is_read_where_it_can_be_nothing_else(tmp_path: Path) -> None:
    texts = {
        "gb18030": "这座桥是在一千五百年建成的，它的名字叫做劳达。" * 40,
        "big5": "這座橋是在一千五百年建成的，它的名字叫做勞達。" * 40,
        "euc_jp": "この橋は千五百年に建てられたもので、その名前はラウダという。" * 40,
        "cp949": "이 다리는 천오백년에 세워졌으며 그 이름은 라우다라고 한다. " * 40,
        "koi8-r": "Этот мост был построен в тысяча пятисотом году и называется Лауда. " * 40,
        "latin-1": "Die Brücke über den Fluß wurde im Jahr fünfzehnhundert gebaut. " * 40,
    }
    for encoding, text in texts.items():
        (tmp_path / f"{encoding}.txt").write_bytes(text.encode(encoding))
    (tmp_path / "english.txt").write_bytes((STORY + "的").encode("gb18030"))
    found = {Path(row["name"]).stem: row for row in read(tmp_path)}
    assert found.pop("gb18030")["text"] == texts["gb18030"]
    assert {row["dropped"] for row in found.values()} == {"not UTF-8 text"}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"%PDF-1.4 and nothing", "it is no PDF that can be read"),
        (b"\0" * 1000, "it is no PDF that can be read"),
        (pdf(shown(STORY))[:-8], "it is no PDF that can be read"),  # torn at its end
        (pdf(shown(STORY)).replace(b"/Count 1 >>", b"/Count 9 >>"), None),
        # 100 KB that unfold to 100 MB
        (pdf(b"BT " + b" " * 100_000_000 + b" ET"), ""),
        # A page that is its own parent.
        (pdf(b"").replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"), ""),
    ],
)
def test_damaged_and_evil_pdfs_are_dropped_within_bounds(data: bytes, why: str | None) -> None:
    began = time.monotonic()
    text = extracted(data, "pdf", 1_000_000)
    assert time.monotonic() - began < 60
    if why is None:
        assert "bridge number 39" in text
    else:
        assert isinstance(text, Dropped) or text == ""
        assert not why or text == why


def test_an_encrypted_pdf_is_dropped() -> None:
    import io

    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(PdfReader(io.BytesIO(pdf(shown(STORY)))))
    writer.encrypt("secret", algorithm="RC4-40")
    sink = io.BytesIO()
    writer.write(sink)
    assert extracted(sink.getvalue(), "pdf", 1_000_000) == "it is encrypted"


def test_nesting_does_not_matter_and_endless_work_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b"<div>" * 200_000 + b"the bottom"
    assert extracted(deep, "html", 1000).strip() == "the bottom"
    began = time.monotonic()
    # Unclosed tags take the parser time that grows with their square.
    text = extracted(b"<a " * 3_000_000, "html", 1000, seconds=3.0)
    assert text == "reading it takes too long"
    assert time.monotonic() - began < 20


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    source = Path(extract.__file__).read_text().replace("MEMORY = 2 << 30", "MEMORY = 120 << 20")
    program.write_text(source)
    monkeypatch.setattr(extract, "__file__", str(program))
    assert extracted(b"<p>x" * 20, "html", 1000).strip() != ""
    assert extracted(b"<p>" + b"x" * 60_000_000, "html", 100_000_000) == "reading it takes too much memory"


def test_who_opens_a_document_has_no_secrets_and_cannot_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    source = Path(extract.__file__).read_text()
    spy = (
        'import os\n    try:\n        open("'
        + str(tmp_path / "written")
        + '", "wb", buffering=0).write(b"x")\n'
        '    except OSError as error:\n        return f"{sorted(os.environ)} {os.getcwd()} {error.errno}"\n'
    )
    program.write_text(source.replace("    page = _Page()\n", f"    {spy}", 1))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(extract, "__file__", str(program))
    seen = extracted(b"", "html", 1000)
    assert "OPENAI" not in seen
    assert seen.split()[-2:] == ["/", "27"]  # EFBIG


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"abc\0def" * 200)
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Brücke ".encode("latin-1") * 300)
    (tmp_path / "long.txt").write_text(STORY * 100)
    (tmp_path / "short.txt").write_text("Too short.")
    rows = [{"text": STORY * 100}, {"text": STORY}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "wide.jsonl").open("w") as file:
        file.write('{"text": "' + "x" * 400_000 + '"}\n' + json.dumps({"text": STORY}) + "\n")
    found = {Path(row["name"]).name: row["dropped"] for row in read(tmp_path, max_document_mb=0.05)}
    too_large = "larger than synthesis.max_document_mb"
    assert found == {
        "binary.txt": "not UTF-8 text",
        "empty.md": "no text",
        "latin.txt": "not UTF-8 text",
        "long.txt": too_large,
        "rows.jsonl: line 1": too_large,
        "rows.jsonl: line 2": None,
        "short.txt": "shorter than 200 tokens",
        "wide.jsonl: line 1": too_large,
        "wide.jsonl: line 2": None,
    }


def test_a_line_is_never_held_beyond_the_bound(tmp_path: Path) -> None:
    import tracemalloc

    with (tmp_path / "wide.jsonl").open("w") as file:
        file.write('{"text": "' + "x" * 40_000_000 + '"}\n')
    tracemalloc.start()
    try:
        (row,) = read(tmp_path, max_document_mb=0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert row["dropped"] == "larger than synthesis.max_document_mb"
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"', "a.jsonl: line 1: not valid JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl: line 1: not a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl: line 1: no text in text, content, document, context"),
        ("a.jsonl", b'{"text": 7}\n', "a.jsonl: line 1: no text in text, content, document, context"),
        ("a.parquet", b"PAR1", "a.parquet: not a whole parquet file"),
        ("a.docx", b"PK", "no document there"),
        (None, b"", "no such file"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, name: str | None, data: bytes, message: str) -> None:
    path = tmp_path / (name or "nothing.txt")
    if name:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_nothing_named_is_refused() -> None:
    with pytest.raises(ValueError, match=r"synthesis\.documents is not set"):
        read()


def test_control_characters_and_names_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "../../etc/passwd", "text": f"\x1b[31m{STORY}\x00"}))
    (row,) = read(tmp_path / "a.jsonl")
    assert row["text"] == f"[31m{STORY}"
    assert "passwd" not in row["prompt_id"] + row["name"]


def test_the_same_text_has_the_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(STORY)
    (tmp_path / "b.md").write_text(STORY.replace(". ", ".\n"))
    one, other = read(tmp_path)
    assert one["digest"] == other["digest"]
    assert one["prompt_id"] != other["prompt_id"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="texts")
        client.put_object(Bucket="texts", Key="in/one.txt", Body=STORY.encode())
        client.put_object(Bucket="texts", Key="in/deep/two.pdf", Body=pdf(shown(STORY)))
        yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


@pytest.mark.parametrize("pattern", ["s3://texts/in", "s3://texts/in/", "s3://texts/in/*"])
def test_a_bucket_is_a_folder(bucket: str, pattern: str) -> None:
    found = read(pattern + bucket)
    assert [row["name"] for row in found] == ["s3://texts/in/deep/two.pdf", "s3://texts/in/one.txt"]
    assert all("bridge number 39" in row["text"] for row in found)


def test_rows_in_a_bucket_are_found_at_their_places(bucket: str) -> None:
    fs, _ = store.filesystem("s3://texts/" + bucket)
    lines = [{"prompt_id": name, "context": STORY, "question": "Q?"} for name in "ab"]
    for name in ("one", "two"):
        with fs.open_output_stream(f"texts/rows/{name}.jsonl") as file:
            file.write(b"".join(json.dumps({**line, "of": name}).encode() + b"\n" for line in lines))
    for pattern in ("rows", "rows/one.jsonl", "rows/*.jsonl"):
        found = list(rowfiles.rows([f"s3://texts/{pattern}{bucket}"]))
        assert len(found) == (2 if "one" in pattern else 4)
        assert all(rowfiles.row_at(place) == row for place, row in found)


def test_the_program_imports_nothing_of_ours() -> None:
    source = Path(extract.__file__).read_text()
    assert "lr_ray" not in source
    assert os.path.isabs(extract.__file__)


def test_a_file_name_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff.txt")).write_text("x")
    with pytest.raises(ValueError, match=r"^/.*: a file there has a name that is not UTF-8$"):
        documents.files([str(tmp_path)])
