"""Plots of tables, which they read from the pages: make figures draws them again if a table has changed."""

import re

from drawing import CAR, COPY, DARK, GRAY, ROOT, VIOLET, WRONG, save
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator

SCORES = "benchmarks/results/2026-11-26-h200-score.md"
KINDS = {  # first word of a row in the table of speeds -> (meaning, color)
    "step": ("a training step", CAR),
    "decode": ("decoding images and masks, once", VIOLET),
    "train": ("reading and augmenting training images", COPY),
    "prediction": ("from an image file to its predicted mask", WRONG),
}


def table_rows(page: str, section: str, columns: set[str]) -> list[dict[str, str]]:
    """The rows of all tables of a section that have these columns. Title -> cell; the first column's title is ""."""
    text = (ROOT / page).read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        if columns <= set(titles):
            found += [dict(zip(["", *titles[1:]], row, strict=True)) for row in rows]
    return found


def gain_rows() -> list[tuple]:
    """(change, gain, from, to, gain by seed, ...) of each change in a short training, the largest gain first."""
    columns = ("gain", "from", "to", "by seed")
    rows = table_rows(SCORES, "The parts, in a short training", set(columns))
    numbers = {row[""]: " ".join(row[column] for column in columns).split() for row in rows if row["gain"] != "-"}
    return sorted(((name, *map(float, each)) for name, each in numbers.items()), key=lambda row: -row[1])


def speed_rows() -> list[tuple]:
    """(what, ratio) of each speed on a CPU that is compared with the baseline's."""
    rows = table_rows("docs/performance.md", "On a CPU", {"ours", "baseline", "ratio"})
    # "a / b" compares with something else
    return [(row[""], float(row["ratio"])) for row in rows if not re.search("memory| / ", row[""])]


def gains() -> None:
    """The gain of each change with its confidence interval, and that of each seed."""
    rows = gain_rows()
    figure, axis = chart([name for name, *_ in rows], "gain in Dice over AdamW with one cycle")
    axis.axvline(0, color=DARK, lw=1)
    for y, (_, gain, low, high, *by_seed) in enumerate(rows):
        color = COPY if low > 0 else WRONG if high < 0 else GRAY
        axis.plot([low, high], [y, y], color=color, lw=2)
        axis.plot(gain, y, "D", color=color, ms=7)
        axis.plot(by_seed, [y] * len(by_seed), "o", color=DARK, ms=4, mfc="white")
        axis.text(1.01, y, f"{gain:+.4f}", color=color, va="center", transform=axis.get_yaxis_transform())
    axis.xaxis.set_major_locator(MultipleLocator(0.004))
    axis.xaxis.set_major_formatter("{x:+.3f}")
    handles = [plt.Line2D([], [], color=DARK, marker="D", ms=7, lw=2),
               plt.Line2D([], [], color=DARK, marker="o", ms=4, mfc="white", lw=0)]
    handles += [Patch(color=color) for color in (COPY, WRONG, GRAY)]
    meanings = ["mean, with its 95% interval over cars", "each seed", "interval above 0", "below 0", "contains 0"]
    figure.legend(handles, meanings, loc="outside lower center", ncols=3, frameon=False)
    save(figure, "gains.png", rows=rows)


def speed() -> None:
    """How many times as fast as the baseline each part is, on a logarithmic scale."""
    rows, used, ticks = speed_rows(), {}, (1, 2, 5, 10, 20, 50)
    figure, axis = chart([name for name, _ in rows], "times as fast as the baseline (logarithmic scale)")
    for y, (name, ratio) in enumerate(rows):
        kind, color = KINDS.get(name.split()[0], ("other", DARK))
        used[kind] = axis.barh(y, ratio, color=color, height=0.7)
        axis.text(ratio * 1.03, y, f"{ratio:.2f}", va="center")
    axis.set(xscale="log", xlim=(1, 1.5 * max(ratio for _, ratio in rows)))
    axis.set_xticks(ticks, ticks)
    axis.minorticks_off()
    figure.legend(used.values(), used, loc="outside lower center", ncols=2, frameon=False)
    save(figure, "speed.png", rows=rows)


def chart(names: list[str], meaning: str):
    """A figure and its axes with a row for each name, from top to bottom. meaning: of the horizontal axis."""
    figure, axis = plt.subplots(figsize=(9, 0.27 * len(names) + 1.2), layout="constrained")
    axis.set(xlabel=meaning, ylim=(len(names) - 0.4, -0.6))
    axis.set_yticks(range(len(names)), names)
    axis.grid(axis="x", color="#e5e7ea")
    axis.set_axisbelow(True)
    axis.spines[["top", "left", "right"]].set_visible(False)
    axis.tick_params(left=False)
    return figure, axis
