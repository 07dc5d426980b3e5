"""Tables of what `bench` returns."""

import math

from ..report import _table
from ..stopwatch import STAGES


def format_report(result):
    """All tables as one text."""
    parts = [_machine(result)]
    if "kernels" in result:
        parts += [_kernels(result["kernels"]), _convolution_summary(result["kernels"])]
    for mode, found in result.get("models", {}).items():
        parts.append(_models(mode, found))
    parts += [reason for reason in result["left_out"].values()]
    if result["errors"]:
        parts.append("FAILED\n" + "\n".join(f"{name}: {error}" for name, error in result["errors"].items()))
    return "\n\n".join(part for part in parts if part)


def is_good(result):
    """Nothing failed, no kernel is wrong, and the float32 detections are torchvision's."""
    wrong = any(version["wrong"] for row in result.get("kernels", []) for version in row["versions"].values())
    agreement = (result.get("models", {}).get("float32") or {}).get("agreement")
    return not result["errors"] and not wrong and (agreement is None or agreement["equal"])


def _machine(result):
    d, p = result["device"], result["peaks"]
    versions = ", ".join(f"{name} {d[key]}" for name, key in (("driver", "driver"), ("CUDA", "cuda_runtime"), ("CuPy", "cupy"),
                                                              ("torch", "torch"),
                                                              ("torchvision", "torchvision"), ("cuDNN", "cudnn")) if d.get(key))
    text = (f"{d['device']}, compute capability {d['compute_capability']}, {d['multiprocessors']} multiprocessors; {versions}\n"
            f"measured: copy {p['gbyte_s']:.0f} GB/s, float32 matrix product {p['tflop_s']:.1f} TFLOP/s")
    if "tflop_s_tf32" in p:
        text += f", TF32 {p['tflop_s_tf32']:.1f} TFLOP/s"
    by_attributes = [f"{d[key]:.{digits}f} {unit}" for key, digits, unit in (("gbyte_s_by_attributes", 0, "GB/s"),
                                                                            ("tflop_s_by_attributes", 1, "TFLOP/s")) if d[key]]
    return text + (f" (by clocks and widths: {', '.join(by_attributes)})" if by_attributes else "")


def _kernels(rows):
    """A row a version. GPU: by events; call: by the clock of the CPU; share: of the peak that limits it."""
    head = ["operation", "version", "GPU ms", "call ms", "GB/s", "TFLOP/s", "share", "of", "rival ms", "rival / this", "differs"]
    lines = []
    for row in rows:
        rival = row["rival"]
        for i, (label, v) in enumerate(row["versions"].items()):
            other = rival.get(v["precision"], rival.get("float32"))
            lines.append([f"{row['operation']}, {row['shape']}" if i == 0 else "", label + (" TF32" if v["precision"] == "tf32" else ""),
                          f"{v['gpu_ms']:.3f}", f"{v['call_ms']:.3f}", f"{v['gbyte_s']:.0f}",
                          f"{v['tflop_s']:.2f}" if v["tflop_s"] else "",
                          f"{v['share']:.0%}", v["limit"], f"{other['gpu_ms']:.3f}" if other else "",
                          f"{other['gpu_ms'] / v['gpu_ms']:.2f}" if other else "", f"{v['differs']:.0e}{' WRONG' if v['wrong'] else ''}"])
        for label, reason in row["refused"].items():
            if not reason.startswith("runs the kernels"):
                lines.append(["", f"{label}: refused", *[""] * 8, reason[:40]])
    return "kernels (GPU: between CUDA events; rival: torch and torchvision in the same precision)\n" + _table(head, lines)


def _convolution_summary(rows):
    """The best version of each layer against cuDNN: geometric mean and least of the ratios, by kind and precision."""
    lines = []
    for kind in ("conv2d", "conv2d_grad_x", "conv2d_grad_w"):
        for precision in ("float32", "tf32"):
            ratios = []
            for row in rows:
                mine = [v["gpu_ms"] for v in row["versions"].values() if v["precision"] == precision]
                if row["operation"] == kind and mine and precision in row["rival"] and not row["name"].endswith("mask head"):
                    ratios.append(row["rival"][precision]["gpu_ms"] / min(mine))
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                lines.append([kind, precision, str(len(ratios)), f"{mean:.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}"])
    return lines and ("speed of the best version relative to cuDNN's, on the largest layers\n"
                      + _table(["operation", "precision", "layers", "mean", "least", "most"], lines))


def _models(mode, found):
    systems = found["systems"]
    first = next(iter(systems.values()))
    rows = [[name, f"{1e3 * s['predict']['median']:.1f}", f"{s['predict']['median'] / first['predict']['median']:.2f}",
             f"{1e3 * s['train']['median']:.1f}", f"{s['train']['median'] / first['train']['median']:.2f}",
             *[f"{1e3 * s['train_parts'].get(part, 0):.1f}" for part in ("forward", "backward", "SGD")]] for name, s in systems.items()]
    parts = [f"the whole model in {mode}, medians of {found['rounds']} alternating rounds\n"
             + _table(["system", "predict ms", "ratio", "step ms", "ratio", "forward", "backward", "SGD"], rows)]
    names = [stage for stage in STAGES if any(stage in s["stages"] for s in systems.values())]
    parts.append("stages of prediction, each waited for\n" + _table(["stage", *(f"{name} ms" for name in systems)], [
        [stage, *(f"{1e3 * s['stages'].get(stage, 0):.2f}" for s in systems.values())] for stage in names]))
    waits = found["synchronisations"]
    parts.append(f"nprcnn waits for the GPU {waits['predict']} times in a prediction, {waits['train']} times in a training step; "
                 "copies in a prediction:\n" + "\n".join(found["copies"]["predict"]))
    a = found["agreement"]
    if a:
        box = "" if a["largest_box_difference"] is None else f", boxes to {a['largest_box_difference']:.1e} pixels"
        parts.append(f"nprcnn finds {a['detections']} objects, torchvision {a['torchvision']}; {a['same']} are the same{box}"
                     + ("" if a["equal"] else ": NOT EQUAL"))
    return "\n\n".join(parts)
