"""Where requests go, and through which proxy: as the package's own HTTP client would."""

from typing import Any

import httpx2
import pytest

from lr_ray.llm.addresses import DEFAULT, address, proxy_for, shown
from lr_ray.llm.transport import Transport


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "https://h/v1/",
        "http://[::1]:8/v1",
        "http://hü/v1",
        "https://me:wo%3Frd@h/openai/deployments/x",
    ],
)
def test_addresses_that_are_taken_as_they_are(url: str) -> None:
    assert address(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "h:80/v1",
        "localhost",
        " http://h/v1",
        "http://h/v 1",
        "http:///v1",
        "http://h:x/v1",
        "http://[::1/v1",
        "ftp://h",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url: .* is no address of the form https://HOST/v1$"):
        address(url)


@pytest.mark.parametrize("end", ["?api-version=s3cret", "?", "#s3cret"])
def test_a_query_has_a_place_of_its_own(end: str) -> None:
    with pytest.raises(ValueError, match=r"give that as judge\.parameters\.extra_query") as caught:
        address(f"https://me:s3cret@h/v1{end}")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="extra_query"):
        Transport([f"http://h/v1{end}"], "k", 1.0, headers={}, query={}, connections=1)


def test_without_one_it_is_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    import openai

    for _ in range(2):
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(api_key="none", http_client=http) as api:
            assert str(api.base_url) == f"{address(None)}/"
        monkeypatch.setenv("OPENAI_BASE_URL", "https://other/v1")
    assert address(None) == "https://other/v1" != DEFAULT


def test_a_url_is_shown_without_its_password_and_query() -> None:
    assert shown("https://me:word@host:1/v1/?key=word") == "https://host:1/v1/"


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://judge.example/v1", "http://secure:1"),
        ("http://judge.example/v1", "http://all:2"),
        ("https://judge.inside.example/v1", None),
        ("https://127.0.0.1:8000/v1", None),
    ],
)
def test_which_proxy(url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://secure:1")
    monkeypatch.setenv("all_proxy", "all:2")
    monkeypatch.setenv("no_proxy", "inside.example,127.0.0.1")
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    ("without", "url", "direct"),
    [
        ("10.0.0.0/8", "http://10.1.2.3/v1", True),
        ("10.0.0.0/8", "http://11.1.2.3/v1", False),
        ("fd00::/8", "http://[fd00::7]:8000/v1", True),
        ("::1", "http://[::1]:8000/v1", True),
        ("[::1]", "http://[::1]:8000/v1", True),
        ("http://127.0.0.1", "http://127.0.0.1:8000/v1", True),
        ("https://127.0.0.1", "http://127.0.0.1:8000/v1", False),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1", True),
        ("127.0.0.1:8000", "http://127.0.0.1:9000/v1", False),
        (".svc,judge", "http://judge.a.svc/v1", True),
        ("a.svc", "http://JUDGE.a.svc/v1", True),
        ("a.svc", "http://xa.svc/v1", False),
        ("localhost", "http://localhost:1/v1", True),
        ("x, *", "http://y/v1", True),
        ("10.0.0.0/99,y", "http://y/v1", True),
        ("", "http://y/v1", False),
    ],
)
def test_what_goes_without_a_proxy_is_what_the_packages_client_says(
    without: str, url: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", without)
    with httpx2.Client() as client:
        theirs: Any = client._transport_for_url(httpx2.URL(url)) is client._transport
    assert (proxy_for(url) is None) is theirs is direct


def test_another_kind_of_proxy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://me:word@somewhere:1")
    with pytest.raises(ValueError, match="is a socks5 proxy; only http") as caught:
        proxy_for("https://judge.example/v1")
    assert "word" not in str(caught.value)
