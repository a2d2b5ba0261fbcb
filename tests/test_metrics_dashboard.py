"""The Grafana dashboard asks for the metrics that there are."""

import json
import re
from pathlib import Path
from typing import Any

from lr_ray import metrics

DASHBOARD = json.loads((Path(__file__).parents[1] / "cluster/dashboards/lr-ray.json").read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def exported(name: str) -> str:
    """The name that Ray gives the metric."""
    return f"ray_{name}_total" if metrics.METRICS[name].kind == "counter" else f"ray_{name}"


def test_dashboard_and_table_name_the_same_metrics() -> None:
    asked = {exported(name) for name in metrics.METRICS}
    queries = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    assert set(re.findall(r"ray_\w+", queries)) == asked
    assert set(re.findall(r"ray_\w+", json.dumps(DASHBOARD["templating"]))) <= asked


def test_queries_use_only_tags_and_values_that_exist() -> None:
    tags = {"run", "datasource", *(tag for metric in metrics.METRICS.values() for tag in metric.tags)}
    for panel in panels():
        for target in panel["targets"]:
            for name, matchers in re.findall(r"ray_(lr_\w+?)(?:_total)?\{([^}]*)\}", target["expr"]):
                asked = dict(re.findall(r"(\w+)[!=]=?~?\"([^\"]*)\"", matchers))
                assert asked.pop("run") == "$run"
                assert asked.keys() <= set(metrics.METRICS[name].tags)
                if "outcome" in asked and name == metrics.CALLS:
                    assert set(asked["outcome"].split("|")) <= set(metrics.OUTCOMES)
            for grouped in re.findall(r"by \(([^)]*)\)", target["expr"]):
                assert set(grouped.split(", ")) <= tags


def test_dashboard_can_be_imported_anywhere() -> None:
    assert DASHBOARD["schemaVersion"] >= 38  # Grafana 10
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "run"]
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in taken) < 24
        assert not taken & cells, panel["title"]
        cells |= taken
    for panel in panels():
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
