"""Faults of a data set: what a reader does when it meets one.

Every reader of a format calls `report(file, entry, problem, stops)` where something is wrong, and goes on without the
thing if the call returns. There are two such functions: `refuse`, for training, which raises at the first fault that
matters, and `Faults().report`, for `nprcnn data check`, which collects them all. So both see the same faults.
"""

from typing import NamedTuple

from ..errors import DataError


class Fault(NamedTuple):
    """One thing that is wrong with a data set."""

    file: str  # the file to mend
    entry: str  # where in it: "annotations[3] (id 17)", "object 2"; "" for the file as a whole
    problem: str
    stops: bool  # training stops here; False: training goes on as the problem says ("clipped", "left out")

    def __str__(self):
        text = ": ".join(part for part in (self.file, self.entry, self.problem) if part)
        return text.encode("utf-8", "backslashreplace").decode()  # names of files need not be text that can be printed


def refuse(file, entry, problem, stops=True):
    """The `report` of training: raise DataError that names file and entry, unless training can go on."""
    if stops:
        raise DataError(f"{Fault(str(file), entry, problem, stops)} (nprcnn data check lists every fault of a set)")


class Faults(list):
    """A list of Fault that its method `report` fills."""

    def report(self, file, entry, problem, stops=True):
        self.append(Fault(str(file), entry, problem, stops))


def is_integer(value):
    """True for a JSON integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value):
    """True for a JSON number, NaN and infinity included, integers beyond 64 bits not."""
    return isinstance(value, float) or is_integer(value) and abs(value) < 2 ** 63


def lacks(entry, kinds, complain):
    """True, after complaining, if a JSON entry is no object or one of its keys is missing or of a wrong type.

    Parameters
    ----------
    entry : any JSON value
    kinds : {key: (test, what the key should be)}
    complain : callable(problem)
    """
    if not isinstance(entry, dict):
        complain(f"is {describe(entry)}; an object in {{}} is needed")
        return True
    for key, (test, expected) in kinds.items():
        if key not in entry:
            complain(f"the key {key!r} is missing")
            return True
        if not test(entry[key]):
            complain(f"{key!r} is {describe(entry[key])}; {expected} is needed")
            return True
    return False


def describe(value):
    """A JSON value in a message: short, and with its type where that is the point."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


INTEGER = is_integer, "an integer"
TEXT = lambda v: isinstance(v, str) and v != "", "a text"  # noqa: E731
LIST = lambda v: isinstance(v, list), "a list"  # noqa: E731
SIZE = lambda v: is_integer(v) and 0 < v < 2 ** 31, "an integer above 0"  # noqa: E731
NUMBER = is_number, "a number"
