"""Tables and the plot of what `bench` and `sweep` return."""

from .stopwatch import STAGES


def format_report(result):
    """All tables as one text. result: of `bench`; with "branches" and "sweep", if they were run."""
    m = result["machine"]
    load = f", load {m['load']} at the start" if m["load"] else ""
    parts = [f"{m['processor']}, {m['threads']} threads of {m['cores']} cores{load}; Python {m['python']}, NumPy {m['numpy']}, "
             f"kernels {m['kernels']}\nbest matrix product: {result['gemm_gflops']:.0f} GFLOP/s", _systems(result), _stages(result)]
    parts += [f"{name}: {reason}" for name, reason in result["left_out"].items()]
    if result["agreement"]:
        parts.append(_agreement(result["agreement"]))
    if "train_stages" in result:
        parts.append(_training_stages(result["train_stages"]))
    if "branches" in result:
        parts.append(_branches(result["branches"]))
    if "sweep" in result:
        parts.append(_sweep(result["sweep"]))
    return "\n\n".join(part for part in parts if part)


def _table(head, rows):
    """Columns as wide as they need; the first one is left-justified."""
    rows = [head, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)


def _cell(entry, *keys, scale=1.0, digits=2):
    for key in keys:
        entry = (entry or {}).get(key)
    return "" if entry is None else f"{entry * scale:.{digits}f}"


def _systems(result):
    """A row a system; ratios to the first one: above 1, it is slower than that."""
    rows, first = [], next(iter(result["systems"].values()))
    for name, entry in result["systems"].items():
        row = [name]
        for kind in ("predict", "train"):
            seconds, base = (e.get(kind, {}).get("median") for e in (entry, first))
            row += [_cell(entry, kind, "median"), f"{seconds / base:.2f}" if seconds and base else "", _cell(entry, f"{kind}_mib", digits=0)]
        row += [_cell(entry, "train_parts", part) for part in ("forward", "backward", "SGD")]
        rows.append(row)
    head = ["system", "predict s", "ratio", "peak MiB", "step s", "ratio", "peak MiB", "forward s", "backward s", "SGD s"]
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    return (f"medians of {result['rounds']} alternating rounds\n"
            + _table([head[i] for i in used], [[row[i] for i in used] for row in rows]))


def _stages(result):
    """A row a stage: ms of each system that tells, and the first system's arithmetic."""
    timed = {name: entry["stages"] for name, entry in result["systems"].items() if entry["stages"]}
    if not timed:
        return ""
    work, peak = result["work"] or {"direct": {}, "least": {}}, result["gemm_gflops"]
    names = list(timed)
    head = ["stage"] + [f"{name} ms" for name in names] + ["GFLOP", "GFLOP/s", "floor ms", "of floor"]
    rows = []
    for stage in [s for s in STAGES if any(s in t for t in timed.values())]:
        seconds = timed[names[0]].get(stage)
        direct, least = work["direct"].get(stage), work["least"].get(stage)
        row = [stage] + [_cell(timed[name], stage, scale=1e3, digits=1) for name in names]
        row += [_cell({"x": direct}, "x", digits=1), f"{direct / seconds:.0f}" if direct and seconds else "",
                f"{least / peak * 1e3:.1f}" if least else "", f"{least / peak / seconds:.0%}" if least and seconds else ""]
        rows.append(row)
    return (f"stages of prediction (GFLOP: of direct convolution, {names[0]}; floor: 3x3 convolutions by Winograd, all at the best "
            "matrix product's speed)\n" + _table(head, rows))


def _agreement(a):
    text = f"nprcnn finds {a['detections']} objects, torchvision {a['torchvision']}"
    if a["largest_box_difference"] is not None:
        text += f"; {a['same_labels']} labels agree, their boxes to {a['largest_box_difference']:.1e} pixels"
    return text


def _training_stages(stages):
    names = [s for s in STAGES if any(s in seconds for seconds in stages.values())]
    rows = [[name] + [_cell(stages[method], name, scale=1e3, digits=1) for method in stages] for name in names]
    return "stages of nprcnn's training step\n" + _table(["stage"] + [f"{method} ms" for method in stages], rows)


def _branches(branches):
    rows = [[name, f"{entry['median']:.2f}", f"{1 / entry['median']:.2f}"] for name, entry in branches.items()]
    return "what the mask branch costs\n" + _table(["model", "s", "images/s"], rows)


def _sweep(sweeps):
    parts = []
    for name, s in sweeps.items():
        rows = [[str(x), f"{t:.3f}", f"{s['slope'] * x + s['intercept']:.3f}"] for x, t in zip(s["x"], s["seconds"])]
        parts.append(f"cost against {name}; largest residual of the line {s['largest_residual']:.0%}\n"
                     + _table([name, "s", "line s"], rows))
    return "\n\n".join(parts)


def plot(result, path):
    """Stages as bars, the sweeps as points with their lines; written to a PNG file."""
    from matplotlib.figure import Figure
    sweeps = result.get("sweep", {})
    figure = Figure(figsize=(5 + 4 * len(sweeps), 4), layout="constrained")
    axes = figure.subplots(1, 1 + len(sweeps), squeeze=False)[0]
    timed = {name: entry["stages"] for name, entry in result["systems"].items() if entry["stages"]}
    stages = [s for s in STAGES if any(s in t for t in timed.values())][::-1]
    height = 0.8 / max(len(timed), 1)
    for k, (name, seconds) in enumerate(timed.items()):
        axes[0].barh([i - k * height for i in range(len(stages))], [1e3 * seconds.get(s, 0) for s in stages], height, label=name)
    axes[0].set(yticks=range(len(stages)), yticklabels=stages, xlabel="ms", title="stages of prediction")
    axes[0].legend()
    for ax, (name, s) in zip(axes[1:], sweeps.items()):
        ax.plot(s["x"], s["seconds"], "o")
        ax.plot(s["x"], [s["slope"] * x + s["intercept"] for x in s["x"]])
        ax.set(xlabel=name, ylabel="s", ylim=(0, 1.1 * max(s["seconds"])), xlim=(0, 1.1 * max(s["x"])),
               title=f"prediction against {name}:\nlargest residual {s['largest_residual']:.0%}")
        ax.locator_params(axis="x", integer=True, nbins=6)
    figure.savefig(path, dpi=120)
