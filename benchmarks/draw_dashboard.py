"""Draws the dashboard of deploy/monitoring on one page, from what a running Prometheus answers to each panel's queries.

    dashboard.json -- each panel's queries --> Prometheus -- the last minutes, or this moment --> a picture

    python benchmarks/draw_dashboard.py --prometheus http://localhost:9090 --minutes 10 --to dashboard.png

For a report, or where there is no Grafana. Needs matplotlib (requirements-dev.txt).
"""

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.ticker import FuncFormatter

DASHBOARD = Path(__file__).parents[1] / "deploy" / "monitoring" / "dashboard.json"
POINTS = 240  # of each curve
COLUMN_INCHES, ROW_INCHES = 0.72, 0.36
COLOURS = {"red": "#c4162a", "orange": "#e0b400", "green": "#37872d", None: "#1f60c4"}

Series = dict[str, Any]


class Prometheus:
    """Answers queries.

    Args:
        url: where it is.
        begin, end: the time that is drawn, unix seconds.
        rate_interval: what `$__rate_interval` stands for, as `1m`.
    """

    def __init__(self, url: str, begin: float, end: float, rate_interval: str) -> None:
        self._url, self.begin, self.end, self._rate_interval = url, begin, end, rate_interval

    def over_time(self, query: str) -> list[Series]:
        """The curves of a query, each with `metric` and `values`, pairs of unix seconds and a text."""
        step = max(1.0, (self.end - self.begin) / POINTS)
        return self._ask("query_range", query, start=self.begin, end=self.end, step=step)

    def now(self, query: str) -> list[Series]:
        """What a query gives at the end of the time, each with `metric` and `value`."""
        return self._ask("query", query, time=self.end)

    def _ask(self, path: str, query: str, **when: float) -> list[Series]:
        fields = {"query": query.replace("$__rate_interval", self._rate_interval).replace("$model", ".*")} | when
        with urllib.request.urlopen(
            f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(fields)}", timeout=30
        ) as answer:
            found: list[Series] = json.load(answer)["data"]["result"]
            return found


def moment(at: float) -> float:
    """A time in unix seconds as matplotlib counts it."""
    return float(date2num(datetime.fromtimestamp(at)))


def in_unit(value: float, unit: str) -> str:
    """A value as Grafana writes it in a unit of the dashboard."""
    if math.isnan(value):
        return "–"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    return f"{value:.4g}" + {"reqps": " req/s", "cps": "/s"}.get(unit, "")


def name_of(series: Series, legend: str) -> str:
    """What a legend makes of the labels of a series."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: series["metric"].get(match[1], ""), legend).strip()


def draw_curves(axes: Axes, panel: dict[str, Any], prometheus: Prometheus) -> None:
    """Draw a panel of curves, stacked where it says so."""
    defaults = panel["fieldConfig"]["defaults"]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for target in panel["targets"]:
        for series in prometheus.over_time(target["expr"]):
            times = [moment(at) for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            if any(value > 0 for value in values):  # what is 0 all the time would fill the legend
                curves[name_of(series, target["legendFormat"])] = (times, values)
    is_stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    if is_stacked and curves:
        moments = sorted({at for times, _ in curves.values() for at in times})
        filled = [
            [0.0 if math.isnan(value := dict(zip(*curve, strict=True)).get(at, 0.0)) else value for at in moments]
            for curve in curves.values()
        ]
        axes.stackplot(moments, filled, labels=list(curves), alpha=0.75)
    for name, (times, values) in {} if is_stacked else curves.items():  # type: ignore[attr-defined]
        axes.plot(times, values, label=name, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(moment(prometheus.begin), moment(prometheus.end))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_unit(value, defaults["unit"])))
    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set_size(6)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=6)
    if curves:
        axes.legend(fontsize=6, loc="upper left", ncols=2, framealpha=0.6)
    else:
        axes.text(0.5, 0.5, "0 all the time", transform=axes.transAxes, ha="center", fontsize=8, color="grey")


def draw_values(axes: Axes, panel: dict[str, Any], prometheus: Prometheus) -> None:
    """Draw a panel of single values, in the colour of the threshold that the first has passed."""
    defaults = panel["fieldConfig"]["defaults"]
    texts = {option: shown["text"] for one in defaults.get("mappings", []) for option, shown in one["options"].items()}
    said, worst = [], None
    for target in panel["targets"]:
        for series in prometheus.now(target["expr"]):
            value = float(series["value"][1])
            shown = texts.get(f"{value:g}") or in_unit(value, defaults["unit"])
            name = name_of(series, target["legendFormat"])
            said.append(f"{name}: {shown}" if name else shown)
            steps = defaults.get("thresholds", {}).get("steps", [])
            passed = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
            worst = worst or next(reversed(passed), None)
    axes.axis("off")
    axes.text(0.5, 0.45, "\n".join(said) or "–", ha="center", va="center", fontsize=13, color=COLOURS[worst])


def draw_table(axes: Axes, panel: dict[str, Any], prometheus: Prometheus) -> None:
    """Draw a panel that lists labels, a row a series."""
    (target,) = panel["targets"]
    hidden = panel["transformations"][0]["options"]["excludeByName"]
    rows = [
        {label: text for label, text in series["metric"].items() if label not in hidden}
        | ({} if "Value" in hidden else {"count": series["value"][1]})
        for series in prometheus.now(target["expr"])
    ]
    axes.axis("off")
    if rows:
        labels = list(rows[0])
        table = axes.table(
            [[row.get(label, "")[:26] for label in labels] for row in rows], colLabels=labels, loc="upper center"
        )
        table.auto_set_font_size(False)
        table.set_fontsize(6.5)


DRAW = {"timeseries": draw_curves, "stat": draw_values, "table": draw_table}


def draw(prometheus: Prometheus, path: Path) -> None:
    """Draw all panels where the dashboard has them."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(24 * COLUMN_INCHES, rows * ROW_INCHES), layout="constrained")
    grid = figure.add_gridspec(rows, 24)
    for panel in panels:
        at = panel["gridPos"]
        axes = figure.add_subplot(grid[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]])
        axes.set_title(panel["title"], fontsize=9, loc="left", fontweight="bold")
        DRAW[panel["type"]](axes, panel, prometheus)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Read the command line, ask, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://localhost:9090", help="where it is; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=15, help="how much time is drawn; default: %(default)s")
    parser.add_argument("--rate-interval", default="1m", help="over which rates are taken; default: %(default)s")
    parser.add_argument("--to", type=Path, default=Path("dashboard.png"), help="the picture; default: %(default)s")
    arguments = parser.parse_args()
    end = time.time()
    began = end - 60 * arguments.minutes
    draw(Prometheus(arguments.prometheus, began, end, arguments.rate_interval), arguments.to)
    print(f"The last {arguments.minutes:g} minutes are drawn in {arguments.to}.")


if __name__ == "__main__":
    main()
