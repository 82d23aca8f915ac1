"""What bench.py measured -> tables, the ratios that count, and two pictures, put into docs/performance.md."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = {"model": "images/bench-model.png", "none": "images/bench-none.png"}
TITLES = {"model": "The same model", "none": "No model: serving alone"}
OURS = "ours"
BEGIN, END = "<!-- make bench -->", "<!-- end of make bench -->"

Figures = dict[str, Any]


def table(systems: dict[str, Figures]) -> str:
    lines = [
        "| | 16 connections | 64 connections | p99 at 64 | alone, p50 | alone, p99 | core-ms a request | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in systems.items():
        parts = ", ".join(f"{part} {value:.2f}" for part, value in one["core_ms"].items())
        cost = f"{core_ms(one):.2f}" + (f" ({parts})" if len(one["core_ms"]) > 1 else "")
        lines.append(
            f"| {name} | {one['16']:.1f}/s | {one['64']:.1f}/s | {one['p99_64_ms']:.0f} ms "
            f"| {one['alone_p50_ms']:.1f} ms | {one['alone_p99_ms']:.1f} ms | {cost} | {one['memory_mb']:.0f} MB |"
        )
    return "\n".join(lines)


def floor(one: Figures) -> str:
    return (
        f"The floor: decoding {one['decode_ms']:.2f} core-ms, the model {one['model_core_ms']:.2f} in batches of 32; "
        f"both cores doing nothing else {one['64']:.1f}/s; one after the other {one['alone_ms']:.2f} ms."
    )


def core_ms(one: Figures) -> float:
    return sum(one["core_ms"].values())


def best(systems: dict[str, Figures], *beginnings: str) -> tuple[str, float]:
    """The fastest of those systems in any of their configurations, at its better number of connections."""
    of = {name: saturated(one) for name, one in systems.items() if name.startswith(beginnings)}
    name = max(of, key=lambda name: of[name])
    return name, of[name]


def saturated(one: Figures) -> float:
    return max(one["16"], one["64"])


def ratios(medians: dict[str, dict[str, Figures]], floors: dict[str, Figures]) -> str:
    """The table of what must be reached. Lines whose systems were not measured are left out."""
    rows: list[tuple[str, float, str, bool]] = []
    systems = medians.get("model", {})
    if OURS in systems:
        ours, low = systems[OURS], floors["model"]
        compared = [
            (("Triton", "Mosec"), 1.0),
            (("LitServe",), 1.25),
            (("tutorial, model.predict",), 10.0),
        ]
        for beginnings, must in compared:
            if any(name.startswith(beginnings) for name in systems):
                name, rate = best(systems, *beginnings)
                rows.append(
                    (
                        f"saturated, against {name}",
                        saturated(ours) / rate,
                        f"≥ {must:g}",
                        saturated(ours) / rate >= must,
                    )
                )
        share, late = saturated(ours) / low["64"], ours["alone_p50_ms"] / low["alone_ms"]
        rows.append(("saturated, against the floor", share, "≥ 0.8", share >= 0.8))
        rows.append(("alone, p50 ÷ the floor's", late, "≤ 1.3", late <= 1.3))
        over = core_ms(ours) - low["decode_ms"] - low["model_core_ms"]
        rows.append(("core-ms over the floor's, with the model", over, "≤ 1.8", over <= 1.8))
    if OURS in medians.get("none", {}):
        over = core_ms(medians["none"][OURS]) - floors["none"]["decode_ms"]
        rows.append(("core-ms besides decoding, without a model", over, "≤ 1.8", over <= 1.8))
    lines = ["| | measured | must | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {value:.2f} | {must} | {'held' if held else '**not held**'} |" for what, value, must, held in rows
    ]
    return "\n".join(lines)


def draw(systems: dict[str, Figures], low: Figures, title: str, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    names = list(systems)[::-1]
    figure = Figure(figsize=(12, 0.8 + 0.42 * len(names)), layout="constrained")
    rates, times = figure.subplots(1, 2, sharey=True)
    colours = ["#0072B2" if name.startswith(OURS) else "#999999" for name in names]
    rates.barh(names, [saturated(systems[name]) for name in names], color=colours)
    rates.set(title=f"{title}: requests a second, saturated")
    times.scatter([systems[name]["alone_p50_ms"] for name in names], names, color=colours)
    times.set(title="one request alone, p50, ms", xscale="log")
    times.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    times.xaxis.set_major_formatter(ScalarFormatter())
    times.xaxis.set_minor_formatter(NullFormatter())
    if "64" in low and "none" not in path.name:
        rates.axvline(low["64"], color="black", ls=":", label="the floor")
        times.axvline(low["alone_ms"], color="black", ls=":", label="the floor")
        rates.legend(loc="lower right")
    for panel in (rates, times):
        panel.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=120)


def as_text(medians: dict[str, dict[str, Figures]], floors: dict[str, Figures], rounds: int) -> str:
    parts = [ratios(medians, floors)]
    for kind, systems in medians.items():
        parts += [f"### {TITLES[kind]}", f"![{TITLES[kind]}]({PICTURES[kind]})", table(systems), floor(floors[kind])]
    parts.append(f"Medians of {rounds} rounds. core-ms and memory at 64 connections; memory is PSS.")
    return "\n\n".join(parts)


def write(text: str, medians: dict[str, dict[str, Figures]], floors: dict[str, Figures]) -> None:
    """Replace what stands between the two marks in docs/performance.md, and the pictures."""
    (DOCS / "images").mkdir(exist_ok=True)
    for kind, systems in medians.items():
        draw(systems, floors[kind], TITLES[kind], DOCS / PICTURES[kind])
    page = DOCS / "performance.md"
    between = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    page.write_text(between.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page.read_text()))


if __name__ == "__main__":  # again, from the figures that bench.py --json kept
    import sys

    kept = json.loads(Path(sys.argv[1]).read_text())
    text = as_text(kept["medians"], kept["floors"], kept["rounds"])
    write(text, kept["medians"], kept["floors"])
    print(text)
