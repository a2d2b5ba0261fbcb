"""The benchmark of clients runs, and its endpoint is one."""

import pytest

from jobs import bench_client, fast_endpoint

FEW = ["--requests", "20", "--latency", "0.01", "--in-flight", "4", "8", "--learn", "0.1"]


def test_every_client_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    bench_client.main(FEW)
    first, second = capsys.readouterr().out.split("\n\n", 1)[1].split("\n\n")
    cells = [line.split("|")[1:-1] for table in (first, second) for line in table.splitlines()[2:]]
    assert [row[0].strip() for row in cells] == [
        "openai, default",
        "openai, aiohttp backend",
        "plain script (aiohttp, orjson)",
        "lr_ray client",
        "lr_ray client",
        "with hash, ledger, fsync, validation",
    ]
    for row in cells:
        assert 0 < float(row[1].replace(",", "")) < 8 / 0.01
        assert float(row[2].removesuffix(" ms ")) > 0


def test_the_profile_adds_up_to_the_cpu_of_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    bench_client.main([*FEW, "--profile"])
    out = capsys.readouterr().out.split("\n\n")
    cpu = float(out[1].split(":")[1].split()[0])
    parts = [float(line.split("|")[3]) for line in out[2].splitlines()[2:]]
    assert sum(parts) == pytest.approx(cpu, abs=0.02)
    assert any("aiohttp" in line for line in out[2].splitlines())


def test_the_endpoint_answers_what_a_judge_would() -> None:
    import openai

    with fast_endpoint.running(0.0) as url, openai.OpenAI(base_url=url, api_key="x") as api:
        for _ in range(2):
            reply = api.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 9000}])
            assert '"score":8' in (reply.choices[0].message.content or "")
