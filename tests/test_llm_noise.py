import pytest

from lr_ray.llm.noise import Noise
from tests.virtual import Endpoint, Load, run


def _late(endpoint: Endpoint, processes: int) -> float:
    """Requests a second that came through in the last of two minutes."""
    load = Load(endpoint, processes, 200 // processes, ceiling=64, alone=processes == 1)
    run(lambda: load.go(120))
    return sum(at >= 60 for at, _ in endpoint.used) / 60


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_what_is_refused_at_random_is_no_limit(share: float, processes: int) -> None:
    endpoint = Endpoint("requests", lambda _: 1e9, lambda _: 0.2, noise=share)
    assert _late(endpoint, processes) >= 0.8 * 64 / 0.2


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize(("share", "pause"), [(0.05, 0.5), (0.05, 1.0), (0.2, 1.0)])
def test_a_pause_asked_for_at_random_is_of_one_call_alone(share: float, pause: float, processes: int) -> None:
    """Everybody pausing for each, 1 to 10 requests a second came through."""
    endpoint = Endpoint("requests", lambda _: 1e9, lambda _: 0.2, "exact", noise=share, pause=pause)
    assert _late(endpoint, processes) >= 0.7 * 64 / 0.2


@pytest.mark.parametrize("retry_after", ["exact", "whole"])
@pytest.mark.parametrize(("share", "processes"), [(0.0, 8), (0.0, 1), (0.05, 8), (0.05, 1)])
def test_a_limit_that_asks_for_pauses_is_kept_amid_random_refusals_that_do(
    share: float, processes: int, retry_after: str
) -> None:
    endpoint = Endpoint("requests", lambda _: 100, lambda _: 0.2, retry_after, noise=share, pause=0.5)
    assert _late(endpoint, processes) >= (50 if share else 70)
    late = [at for at in endpoint.refused if at >= 60], [at for at, _ in endpoint.used if at >= 60]
    assert len(late[0]) / (len(late[0]) + len(late[1])) <= share + 0.05


@pytest.mark.parametrize(("share", "processes"), [(0.05, 8), (0.2, 1)])
def test_a_limit_is_kept_amid_random_refusals(share: float, processes: int) -> None:
    endpoint = Endpoint("requests", lambda _: 100, lambda _: 0.2, noise=share)
    assert _late(endpoint, processes) >= 80
    late = [at for at in endpoint.refused if at >= 60], [at for at, _ in endpoint.used if at >= 60]
    assert len(late[0]) / (len(late[0]) + len(late[1])) <= share + 0.1


def _cuts(noise: Noise, shares: list[float], asked: list[float]) -> list[bool]:
    """Whether each of the cuts is found of no use; one a second, of 100 tries."""
    told = []
    for second, (share, rate) in enumerate(zip(shares, asked, strict=True)):
        told.append(noise.cut(round(100 * share), 100, rate, grown=False, now=2.0 * second))
    return told


def test_a_limit_that_falls_far_is_not_taken_for_noise() -> None:
    noise = Noise()
    assert not any(_cuts(noise, [0.5, 0.4, 0.3, 0.2], [100, 60, 50, 45]))
    assert noise.share == 0


def test_what_grows_with_what_is_asked_was_no_noise_and_is_not_supposed_again_soon() -> None:
    noise = Noise()
    assert _cuts(noise, [0.05] * 4, [100, 90, 80, 70])[-1]
    assert noise.share == pytest.approx(0.05)
    assert noise.explains(6, 100, 75)
    assert not noise.explains(25, 100, 90)
    assert not noise.cut(25, 100, 90, grown=True, now=10.0)
    assert noise.share == 0
    assert not any(noise.cut(5, 100, 80, grown=False, now=11.0 + 2 * n) for n in range(8))
    assert any(noise.cut(5, 100, 80, grown=False, now=45.0 + 2 * n) for n in range(8))


def test_noise_that_ends_is_forgotten() -> None:
    noise = Noise()
    assert _cuts(noise, [0.05] * 4, [100, 90, 80, 70])[-1]
    for _ in range(40):
        noise.heard(0, 100, 200, grown=True)
    assert noise.share == 0
