"""The quiz of notebook 20: common statements. Its checks take answers, not functions."""

from .checks import Result

REGION_BASED = {     # why each is, or is not
    "R-CNN": "R-CNN takes about 2000 regions from selective search, and runs its network on each of them. It is "
             "region-based.",
    "Fast R-CNN": "Fast R-CNN takes its regions from selective search too; RoIPool cuts each from one feature map. It is "
                  "region-based.",
    "Mask R-CNN": "Mask R-CNN gets its regions from its RPN; RoIAlign cuts each from the pyramid. It is region-based.",
}

COMPONENTS = {       # part: letter, and what to think about
    "ResNet": ("b", "it is the backbone: what goes in, an image or a feature map?"),
    "feature pyramid": ("c", "it takes C2 to C5 and makes P2 to P6 of them, top-down and with laterals. What do fine maps lack?"),
    "RPN": ("a", "its two outputs are the objectness and the deltas of every anchor. It knows no classes."),
    "RoIAlign": ("d", "it has no weights and makes no box: statement 3."),
    "box head": ("e", "it gives class logits (R, K) and deltas (R, 4 K)."),
    "mask head": ("f", "it gives mask logits (D, K, 28, 28)."),
    "SVM": (None, "R-CNN had it. In Mask R-CNN a softmax does the classification: statement 2."),
    "selective search": (None, "R-CNN and Fast R-CNN had it, outside of the network. Here the RPN proposes."),
    "RoIPool": (None, "Fast and Faster R-CNN had it. It rounds; Mask R-CNN put RoIAlign in its place: statement 7."),
}

STATEMENTS = {       # answer, and how to test it
    "A": (False, "only the last 1x1 convolution has an output a class. Count the parameters of both heads, by name."),
    "B": (False, "P6 is for the RPN alone: RoIs are cut from P2 to P5. Nothing of the mask loss can come back there."),
    "C": (True, "anchors are as many as cells, times three. How do the cells of each level grow when both sides double?"),
    "D": (False, "with no object the questions \"is this anchor an object?\" and \"which class?\" still have an answer: none. "
                 "Look at loss_objectness and loss_classifier."),
    "E": (True, "exp(z + 5) = exp(5) exp(z), above and below the fraction of the softmax."),
}


def check_not_region_based(answer):
    """answer: the set of those of R-CNN, Fast R-CNN, YOLO, Mask R-CNN that are not region-based."""
    exercise = "not_region_based"
    if _is_blank(answer):
        return _unsolved(exercise)
    named = {answer} if isinstance(answer, str) else set(answer)
    names = {name.lower(): name for name in (*REGION_BASED, "YOLO")}
    unknown = [str(name) for name in named if str(name).lower() not in names]
    if unknown:
        return _wrong(exercise, [f"{', '.join(sorted(unknown))}: not among the four. They are {', '.join(names.values())}."])
    named = {names[str(name).lower()] for name in named}
    reasons = [REGION_BASED[name] for name in REGION_BASED if name in named]
    if "YOLO" not in named:
        reasons.append("One is missing: the one that reads classes and boxes for all cells of a grid at once, with no list of "
                       "regions in between.")
    if reasons:
        return _wrong(exercise, reasons)
    return _passed(exercise, "YOLO reads classes and boxes from a grid, in one pass.")


def check_components(answer):
    """answer: {part: letter, or None for what is no part of a Mask R-CNN}."""
    return _check_table("components", answer, COMPONENTS)


def check_new_statements(answer):
    """answer: {"A": True or False, ...}."""
    exercise = "new_statements"
    if isinstance(answer, dict) and any(not isinstance(v, bool) and v is not ... for v in answer.values()):
        return _wrong(exercise, ["answer with True or False, without quotes."])
    return _check_table(exercise, answer, STATEMENTS)


def _check_table(exercise, answer, right):
    """Compare {name: value} with {name: (value, hint)}; at most two hints, so that there is something left to find."""
    if _is_blank(answer) or not isinstance(answer, dict) or all(value is ... for value in answer.values()):
        return _unsolved(exercise)
    missing = [name for name in right if answer.get(name, ...) is ...]
    if missing:
        return _wrong(exercise, [f"no answer yet to: {', '.join(missing)}."])
    wrong = [name for name, (value, _) in right.items() if answer[name] != value]
    if wrong:
        more = [f"({len(wrong) - 2} more after these.)"] if len(wrong) > 2 else []
        reasons = [f"{name}: {right[name][1]}" for name in wrong[:2]]
        return _wrong(exercise, reasons + more, f"{len(wrong)} of {len(right)} are wrong")
    return _passed(exercise, f"all {len(right)}.")


def _is_blank(answer):
    return answer is None or answer is ... or callable(answer) or (hasattr(answer, "__len__") and len(answer) == 0)


def _unsolved(exercise):
    return Result(exercise, False, f"{exercise}: not solved yet. Fill in your answer, then run this cell again.")


def _wrong(exercise, reasons, what="not right yet"):
    return Result(exercise, False, "\n".join([f"{exercise}: {what}.", *(f"Why, perhaps: {reason}" for reason in reasons)]))


def _passed(exercise, text):
    return Result(exercise, True, f"{exercise}: passed. {text[0].upper()}{text[1:]}")
