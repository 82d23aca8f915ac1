"""What bench.py measured -> rows for docs/performance.md, a dated page in docs/measurements, and its picture.

python benchmarks/report.py figures.json            # once more, from what bench.py --json kept
"""

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
OURS = "ours"
MOST_SERVING_CORE_MS = 1.8  # besides the floor's

Figures = dict[str, Any]


def saturated(one: Figures) -> float:
    """Requests a second, with 16 connections or 64, whichever are more."""
    return max(one["16"], one["64"])


def core_ms(one: Figures) -> float:
    """CPU time a request of all processes together, with 64 connections."""
    return sum(one["core_ms"].values())


def best(systems: dict[str, Figures], *beginnings: str) -> str | None:
    """The fastest of the systems whose names begin so, of all but ours by default; None when none was measured."""
    of = [name for name in systems if (name.startswith(beginnings) if beginnings else not name.startswith(OURS))]
    return max(of, key=lambda name: saturated(systems[name]), default=None)


def performance_rows(found: Figures) -> str:
    """The table of docs/performance.md: a column for each kind."""
    columns = {kind: column(of) for kind, of in found["kinds"].items() if OURS in of["systems"]}
    if not columns:
        return ""
    names = list(dict.fromkeys(name for cells in columns.values() for name in cells))
    rows = [[name, *[cells.get(name, "–") for cells in columns.values()]] for name in names]
    return as_table([["", *[found["kinds"][kind]["title"] for kind in columns]], *rows])


def column(of: Figures) -> dict[str, str]:
    """The cells of one kind, by the names of their rows."""
    systems, floor = of["systems"], of["floor"]
    ours, other = systems[OURS], best(systems)
    others = [name for name in systems if not name.startswith(OURS)]
    soonest = min(others, key=lambda name: systems[name]["alone_p50_ms"], default=None)
    floor_core_ms = floor["decode_ms"] + floor["model_core_ms"]
    cells = {
        "ours, requests a second": f"{saturated(ours):.1f}",
        "best other": f"{saturated(systems[other]):.1f} ({other})" if other else "",
        "the floor: decoding and the model on all cores, nothing else": f"{floor['64']:.1f}",
        "ours ÷ best other": f"{saturated(ours) / saturated(systems[other]):.2f}" if other else "",
        "ours ÷ the floor": f"{saturated(ours) / floor['64']:.2f}",
        "one request alone, p50: ours": f"{ours['alone_p50_ms']:.1f} ms",
        "one request alone: soonest other": f"{systems[soonest]['alone_p50_ms']:.1f} ms ({soonest})" if soonest else "",
        "one request alone: the floor": f"{floor['alone_ms']:.1f} ms",
        "core-ms a request: ours": f"{core_ms(ours):.2f}",
        "core-ms a request: best other": f"{core_ms(systems[other]):.2f} ({other})" if other else "",
        "core-ms a request: the floor": f"{floor_core_ms:.2f}",
    }
    return {name: cell for name, cell in cells.items() if cell}


def goals(of: Figures) -> list[tuple[str, float, str, bool]]:
    """(what, measured, must, held) of one kind. Goals whose systems were not measured are left out."""
    systems, floor = of["systems"], of["floor"]
    if OURS not in systems:
        return []
    ours = systems[OURS]
    over = core_ms(ours) - floor["decode_ms"] - floor["model_core_ms"]
    cheap = ("core-ms over the floor's", over, f"≤ {MOST_SERVING_CORE_MS}", over <= MOST_SERVING_CORE_MS)
    if not floor["has_model"]:
        return [cheap]
    rows = []
    compared = [(("Triton", "Mosec"), 1.0), (("LitServe",), 1.25), (("tutorial, model.predict",), 10.0)]
    for beginnings, must in compared:
        if name := best(systems, *beginnings):
            times = saturated(ours) / saturated(systems[name])
            rows.append((f"saturated, against {name}", times, f"≥ {must:g}", times >= must))
    share, late = saturated(ours) / floor["64"], ours["alone_p50_ms"] / floor["alone_ms"]
    rows.append(("saturated, against the floor", share, "≥ 0.8", share >= 0.8))
    rows.append(("alone, p50 ÷ the floor's", late, "≤ 1.3", late <= 1.3))
    return [*rows, cheap]


def page(found: Figures) -> str:
    """The text of docs/measurements/<date>-bench.md."""
    parts = [
        f"# {found['date']}: beside other servers",
        f"{found['machine']}.",
        f"```sh\n{found['command']}\n```",
        f"Medians of {found['rounds']} rounds. Each system was started alone, and loaded by wrk for "
        f"{found['seconds']:g} s with 16 connections, for as long with 64, and for half as long with one. All systems "
        "ran the same decode function and the same model, in the same precision. core-ms and memory (PSS) are those "
        "with 64 connections.",
        performance_rows(found),
        f"![Requests a second of each system]({'../images/' + found['picture']})" if "picture" in found else "",
    ]
    for of in found["kinds"].values():
        parts += [f"## {of['title'][:1].upper()}{of['title'][1:]}", goals_table(of), systems_table(of), floor_line(of)]
    return "\n\n".join(part for part in parts if part) + "\n"


def goals_table(of: Figures) -> str:
    rows = [[what, f"{value:.2f}", must, "held" if held else "**not held**"] for what, value, must, held in goals(of)]
    return as_table([["", "measured", "must", ""], *rows]) if rows else ""


def systems_table(of: Figures) -> str:
    heads = ["16 connections", "64 connections", "p99 at 64", "alone, p50", "alone, p99", "core-ms a request", "memory"]
    rows = [["", *heads, "failed"]]
    for name, one in of["systems"].items():
        parts = ", ".join(f"{part} {value:.2f}" for part, value in one["core_ms"].items())
        cost = f"{core_ms(one):.2f}" + (f" ({parts})" if len(one["core_ms"]) > 1 else "")
        rates = [f"{one['16']:.1f}/s", f"{one['64']:.1f}/s", f"{one['p99_64_ms']:.0f} ms"]
        alone = [f"{one['alone_p50_ms']:.1f} ms", f"{one['alone_p99_ms']:.1f} ms"]
        rows.append([name, *rates, *alone, cost, f"{one['memory_mb']:.0f} MB", f"{one['failed']:.0f}"])
    return as_table(rows)


def floor_line(of: Figures) -> str:
    floor = of["floor"]
    return (
        f"The floor: decoding {floor['decode_ms']:.2f} core-ms, the model {floor['model_core_ms']:.2f} in batches of "
        f"32; all cores doing nothing else {floor['64']:.1f}/s; one image after the other {floor['alone_ms']:.2f} ms."
    )


def as_table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def draw(found: Figures, path: Path) -> None:
    """A panel for each kind: the requests a second of each system, and beside it how long one alone takes."""
    from matplotlib.figure import Figure

    kinds = list(found["kinds"].values())
    most = max(len(of["systems"]) for of in kinds)
    figure = Figure(figsize=(4.6 * len(kinds), 1.2 + 0.42 * most), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, of in zip(panels, kinds, strict=True):
        names = list(of["systems"])[::-1]
        rates = [saturated(of["systems"][name]) for name in names]
        panel.barh(names, rates, color=["#56B4E9" if name.startswith(OURS) else "#CCCCCC" for name in names])
        for place, (name, rate) in enumerate(zip(names, rates, strict=True)):
            said = f"  {rate:.0f}/s, alone {of['systems'][name]['alone_p50_ms']:.1f} ms"
            panel.text(0, place, said, va="center", fontsize=8)
        if of["floor"]["has_model"]:
            panel.axvline(of["floor"]["64"], color="black", ls=":", label="decoding and the model alone")
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, fontsize=8)
        panel.set(title=f"{of['title'][:1].upper()}{of['title'][1:]}")
        panel.grid(axis="x", alpha=0.25)
    figure.supxlabel("requests a second, saturated", fontsize=9)
    figure.savefig(path, dpi=120)


def write(found: Figures) -> Path:
    """Write the page and its picture; those of an earlier run stay. The page's path."""
    (DOCS / "images").mkdir(exist_ok=True)
    (DOCS / "measurements").mkdir(exist_ok=True)
    name, number = f"{found['date']}-bench", 1
    while (DOCS / "measurements" / f"{name}.md").exists():
        number += 1
        name = f"{found['date']}-bench-{number}"
    draw(found, DOCS / "images" / f"{name}.png")
    path = DOCS / "measurements" / f"{name}.md"
    path.write_text(page(found | {"picture": f"{name}.png"}))
    return path


if __name__ == "__main__":
    figures = json.loads(Path(sys.argv[1]).read_text())
    print(performance_rows(figures))
    print(f"\n{write(figures)}")
