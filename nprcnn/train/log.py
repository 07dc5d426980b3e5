"""The log of a training: a line of JSON a step, and curves drawn from it."""

import json
import os

import numpy as np

from ..canvas import PALETTE, new_figure, save
from ..models.decisions import LOSSES
from .checkpoint import write_and_rename


class Log:
    """The file history.jsonl.

    A line a step, {"step": 0, "loss": ..., "lr": ..., "seconds": ..., ...}, and a line a validation, {"step": 99, "validation": {...}}:
    measured when step 99 was done. `rows` holds them all.

    Parameters
    ----------
    path : path
    start : int
        Lines of this step and later ones are cut off, and so is a last line that was half written: a training that goes on from here
        writes them anew.
    """

    def __init__(self, path, start=0):
        self.path, self.rows = path, []
        if start and path.exists():
            self.rows = read_log(path, start)
        write_and_rename(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self.file = open(path, "a", encoding="utf-8")

    def append(self, row):
        """Write a line; it is in the file when this returns, should the process be killed."""
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def sync(self):
        """Have it on the disk, should the machine lose its power."""
        os.fsync(self.file.fileno())

    def close(self):
        try:
            self.file.close()
        except OSError:  # a full disk, which has been told before
            pass


def read_log(path, before=None):
    """The rows of a log, up to a half-written line; before: those of earlier steps only."""
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if before is None or row["step"] < before:
                rows.append(row)
    return rows


NAMES = dict(zip(LOSSES, ("objectness", "RPN box", "class", "box", "mask")))
MOST = 1500  # points of a curve: more than it has pixels
GRID = dict(color="#e4e4e4", linewidth=0.6)


def draw_curves(rows, path, title=None):
    """Draw the losses, smoothed, the validation AP and the learning rate of a log into a PNG file, which appears whole or not at all."""
    steps = [row for row in rows if "loss" in row]
    measured = [row for row in rows if "validation" in row]
    if not steps:
        return
    figure = new_figure(1000, 460)
    losses = figure.add_axes((0.065, 0.115, 0.50, 0.79))
    aps, rate = figure.add_axes((0.645, 0.445, 0.335, 0.43)), figure.add_axes((0.645, 0.115, 0.335, 0.24))
    window = max(1, min(len(steps) // 20, 200))
    shown = np.unique(np.linspace(0, len(steps) - 1, MOST).astype(int))
    x = np.array([row["step"] + 1 for row in steps])[shown]
    for name, color in zip(("loss", *NAMES), ("#222222", *PALETTE[:3], *PALETTE[4:])):
        if name in steps[-1]:
            y = smooth(np.array([row[name] for row in steps]), window)[shown]
            losses.plot(x, y, color=color, linewidth=1.8 if name == "loss" else 1.2, label=NAMES.get(name, "sum"))
    losses.set_yscale("log")
    losses.legend(loc="upper center", ncols=6, fontsize=8, frameon=False, columnspacing=1.2, handlelength=1.4, bbox_to_anchor=(0.5, 1.0))
    low, high = losses.get_ylim()
    losses.set_ylim(low, high * (high / low) ** 0.1)  # room for the legend
    losses.set_title(f"losses (mean of {window} steps)" if window > 1 else "losses", loc="left", fontsize=10)
    rate.plot(x, [steps[i]["lr"] for i in shown], color="#222222", linewidth=1.2)
    rate.set_title("learning rate", loc="left", fontsize=10)
    rate.set_ylim(0, None)
    draw_ap(aps, measured)
    for ax in (losses, aps, rate):
        ax.set_xlim(0, x[-1])
        ax.grid(True, which="major", **GRID)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    aps.tick_params(labelbottom=False)
    for ax in (losses, rate):
        ax.set_xlabel("step", fontsize=9)
    if title:
        figure.text(0.565, 0.925, title, ha="right", fontsize=8, color="#666666")
    save(figure, path)


def draw_ap(ax, measured):
    """AP and AP50 of masks and boxes over the steps, the best marked; or the words that there is none."""
    ax.set_title("validation", loc="left", fontsize=10)
    ax.set_ylim(0, 1)
    if not measured:
        ax.text(0.5, 0.5, "not measured yet", ha="center", va="center", transform=ax.transAxes, fontsize=9, color="#888888")
        return
    kinds = [("segm", "mask", PALETTE[4]), ("bbox", "box", PALETTE[0])]
    for kind, word, color in kinds:
        if kind not in measured[-1]["validation"]:
            continue
        x = [row["step"] + 1 for row in measured]
        for name, style in (("AP50", "--"), ("AP", "-")):
            y = [max(row["validation"][kind][name], 0) for row in measured]
            ax.plot(x, y, style, color=color, linewidth=1.4, marker="o", markersize=2.5, label=f"{word} {name} {y[-1]:.2f}")
    ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2, fontsize=8, frameon=False, handlelength=2, columnspacing=1.2)


def smooth(values, window):
    """The mean of the last `window` values, of fewer at the beginning: (n,) -> (n,)."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
