"""What a cluster holds is known before anything starts: all actors, fewer, or a sentence."""

import pytest

from lr_ray.placement import DATA_TASKS, Need, fit, require

JUDGES = Need("judging", 4, {"CPU": 0.1})
ENGINES = Need("sampling", 2, {"CPU": 0.5, "GPU": 1.0})
WORKERS = Need("training", 2, {"CPU": 1.0}, flexible=False)


@pytest.mark.parametrize(
    ("needs", "nodes", "counts"),
    [
        ([JUDGES], [{"CPU": 2.0}], [4]),
        ([JUDGES], [{"CPU": 0.25}], [2]),
        ([JUDGES, DATA_TASKS], [{"CPU": 1.2}], [2, 1]),
        ([JUDGES, DATA_TASKS], [{"CPU": 1.0}], None),
        ([JUDGES], [{"CPU": 0.0}, {"CPU": 0.5}, {"CPU": 1.0}], [4]),
        (
            [JUDGES, DATA_TASKS],
            [{"CPU": 0.5}, {"CPU": 0.6}],
            None,
        ),  # a task of 1 CPU is not spread over two nodes
        ([ENGINES, JUDGES], [{"CPU": 8.0, "GPU": 2.0}], [2, 4]),
        ([ENGINES, JUDGES], [{"CPU": 8.0, "GPU": 1.0}], [1, 4]),
        ([ENGINES], [{"CPU": 8.0}], None),
        # What wants no GPU leaves the node that has one to what does.
        ([ENGINES, Need("judging", 1, {"CPU": 1.0})], [{"CPU": 1.0, "GPU": 2.0}, {"CPU": 1.0}], [2, 1]),
        ([WORKERS], [{"CPU": 1.0}, {"CPU": 2.0}], [2]),
        ([WORKERS], [{"CPU": 1.9}], None),
        ([Need("sampling", 2, {"GPU": 1.0}, bundles=4)], [{"CPU": 2.0, "GPU": 4.0}], [1]),
        (
            [Need("judging", 3, {"CPU": 0.1, "lr_judge": 1.0})],
            [{"CPU": 9.0}, {"CPU": 1.0, "lr_judge": 2.0}],
            [2],
        ),
        ([Need("judging", 0)], [{"CPU": 1.0}], [0]),
    ],
)
def test_as_many_as_fit(needs: list[Need], nodes: list[dict[str, float]], counts: list[int] | None) -> None:
    before = [dict(node) for node in nodes]
    assert fit(needs, nodes) == counts
    assert nodes == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert require([Need("judging", 3, {"CPU": 0.1}), DATA_TASKS]) == [3, 1]
    assert capsys.readouterr().err == ""
    assert require([Need("judging", 50, {"CPU": 0.1}), DATA_TASKS], wait=0.1) == [30, 1]
    assert "judging: 30 of 50 actors" in capsys.readouterr().err
    with pytest.raises(
        ValueError,
        match=r"^too little to run on: training 4 x 1 CPU, Ray Data's own tasks 1 x 1 CPU are asked for, "
        r"Ray has 4 CPU on 1 node; ",
    ):
        require([Need("training", 4, {"CPU": 1.0}, flexible=False), DATA_TASKS])
    with pytest.raises(ValueError, match=r"sampling 1 x \(2 x 3 CPU\) are asked for, Ray has 4 CPU"):
        require([Need("sampling", 1, {"CPU": 3.0}, bundles=2)])
