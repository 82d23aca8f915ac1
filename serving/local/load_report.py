"""Reports what became of the requests of stress_test.py: numbers, a table on the terminal, a picture.

Ending, Ending, … -- summarise --> the numbers, as the JSON file has them --> print_table, draw
"""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table


class Outcome(StrEnum):
    """The classes of requests by how they ended; see the head of stress_test.py."""

    ANSWERED = "answered"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    FAILED = "failed"
    NO_ANSWER = "no answer"
    CANCELLED = "cancelled"


COLOURS = dict(zip(Outcome, ("#0072B2", "#E69F00", "#8E5BB5", "#D62728", "#111111", "#999999"), strict=True))


class Ending(NamedTuple):
    """How one request ended."""

    start_s: float  # since the load began
    latency_s: float
    status: int | None  # None: no HTTP answer
    outcome: Outcome
    error: str
    late_s: float  # the request was sent so long after it was due


class Sent(Protocol):
    """The requests of one load: how many were sent, how each ended, and what the load took."""

    sent: int
    endings: list[Ending]
    wall_s: float
    cpu_s: float


def summarise(load: Sent) -> dict[str, Any]:
    """The numbers of the table, under their names in the JSON file."""
    counts = Counter(one.outcome for one in load.endings)
    by_status = Counter((one.outcome, one.status) for one in load.endings)
    first_errors = {(one.outcome, one.status): one.error or None for one in reversed(load.endings)}
    return {
        "sent": load.sent,
        "outcomes": {outcome.value: counts[outcome] for outcome in Outcome},
        "sum_closes": load.sent == counts.total(),
        "by_status": [
            {"outcome": key[0].value, "status": key[1], "requests": number, "first_error": first_errors[key]}
            for key, number in by_status.most_common()
        ],
        "wall_s": load.wall_s,
        "answered_per_s": counts[Outcome.ANSWERED] / load.wall_s if load.wall_s else 0.0,
        "latency_ms": spread_ms([one.latency_s for one in load.endings if one.outcome is Outcome.ANSWERED]),
        "lateness_ms": spread_ms([one.late_s for one in load.endings if one.late_s]),
        "client_cpu_ms_per_request": 1000 * load.cpu_s / max(1, load.sent),
    }


def spread_ms(values_s: Sequence[float]) -> dict[str, float] | None:
    """Percentiles, maximum and mean of seconds, in milliseconds; None of no values."""
    if not values_s:
        return None
    p50, p95, p99 = np.percentile(values_s, (50, 95, 99)).tolist()
    spread_s = {"p50": p50, "p95": p95, "p99": p99, "max": max(values_s), "mean": float(np.mean(values_s))}
    return {name: 1000 * value_s for name, value_s in spread_s.items()}


def print_table(summary: dict[str, Any], title: str) -> None:
    """Print the table of outcomes under a title, and the other numbers below."""
    table = Table()
    table.add_column("outcome")
    for name in ("status", "requests", "share"):
        table.add_column(name, justify="right")
    table.add_column("first error message", overflow="fold")
    shown = {name: number for name, number in summary["outcomes"].items() if number or name != Outcome.CANCELLED}
    for outcome in shown:
        none = {"status": None, "requests": 0, "first_error": None}
        for row in [row for row in summary["by_status"] if row["outcome"] == outcome] or [none]:
            share = f"{row['requests'] / max(1, summary['sent']):.1%}"
            error = "".join(char if char.isprintable() else " " for char in row["first_error"] or "")
            table.add_row(outcome, str(row["status"] or "-"), f"{row['requests']:,}", share, error)
    print(title)
    Console(markup=False, emoji=False, highlight=False).print(table)  # a server's message is text, not markup
    terms = " + ".join(f"{number} {outcome}" for outcome, number in shown.items())
    print(f"sent        {summary['sent']} {'=' if summary['sum_closes'] else '≠'} {terms}")
    print(f"wall time   {summary['wall_s']:.2f} s")
    print(f"throughput  {summary['answered_per_s']:.1f} answered a second")
    print(f"latency     {in_words(summary['latency_ms'])}  (ms, of answered requests)")
    if summary["lateness_ms"]:
        print(f"lateness    {in_words(summary['lateness_ms'])}  (ms, of sending; contained in the latency)")
    print(f"client      {summary['client_cpu_ms_per_request']:.2f} ms of CPU a request")


def in_words(spread: dict[str, float] | None) -> str:
    """A spread on one line; "-" for None."""
    return "  ".join(f"{name} {value:,.1f}" for name, value in spread.items()) if spread else "-"


def draw(summary: dict[str, Any], load: Sent, title: str, path: Path) -> None:
    """Draw into a PNG the latency of every request over time, and the distribution for the answered ones."""
    from matplotlib.figure import Figure  # without pyplot: Agg, and no global state

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    over_time, distribution = figure.subplots(1, 2, width_ratios=(3, 2))
    for outcome, colour in COLOURS.items():
        points = np.array([(one.start_s, 1000 * one.latency_s) for one in load.endings if one.outcome is outcome])
        if points.size:
            # Large points, so that the few unhappy requests show among the many answered, even on the axis.
            look = {"s": 12, "alpha": 0.5} if outcome is Outcome.ANSWERED else {"s": 28, "clip_on": False, "zorder": 3}
            over_time.scatter(*points.T, color=colour, linewidths=0, label=f"{outcome} ({len(points):,})", **look)
        if points.size and outcome is Outcome.ANSWERED:
            distribution.hist(points[:, 1], bins=40, color=colour, alpha=0.6)
    for name, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
        if spread := summary["latency_ms"]:
            distribution.axvline(spread[name], color="black", ls=style, label=f"{name}  {spread[name]:,.1f} ms")
            distribution.legend(loc="upper right", framealpha=1)
    over_time.set(title="Latency of each request", xlabel="time since start (s)", ylabel="latency (ms)")
    distribution.set(title="Answered requests by latency", xlabel="latency (ms)", ylabel="requests")
    for panel in (over_time, distribution):
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*over_time.get_legend_handles_labels(), loc="outside lower center", ncols=len(Outcome), frameon=False)
    came = (
        f"{summary['outcomes'][Outcome.ANSWERED]:,} of {load.sent:,} answered, {summary['answered_per_s']:.1f} a second"
    )
    figure.suptitle(f"{title}\n{came}", weight="bold")
    figure.savefig(path, format="png", dpi=130)
