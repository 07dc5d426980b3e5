"""A pickle reader that runs nothing.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names: loading an
unknown .pth with pickle is running an unknown script. This one knows a table of names, each with a function of ours that stands for
it, and refuses every other name. (PyTorch's weights_only=True does the same, torch/_weights_only_unpickler.py.)

The opcodes are taken apart by the standard library's pickletools, which reads at most what is there. Only those that plain data
needs are carried out, in all pickle protocols.
"""

import pickletools
from typing import NamedTuple

from ..errors import WeightsError

MAX_STEPS = 300_000  # a ResNet-50 model takes 10,000; beyond this, a file only wastes time and memory

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
            "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
NOTHING_TO_DO = {"PROTO", "FRAME"}


class Name(NamedTuple):
    """An allowed name. call: our stand-in for calling it; None: it may be mentioned, as the type of a storage is, not called."""

    name: str
    call: object = None


class Stateful:
    """What may receive a state (the opcode BUILD) after it was made: arrays and dtypes of NumPy."""

    def set_state(self, state):
        raise NotImplementedError


def shown(name):
    """A string of the file, short enough for a message."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def require(condition, message):
    """Raise WeightsError unless the condition holds."""
    if not condition:
        raise WeightsError(message)


def make_dict(items=()):
    """Stands for dict(...) and collections.OrderedDict(...), which Python 2 called with a list of pairs."""
    result = {}
    require(type(items) in (list, tuple), "the pickle makes a dictionary from something other than pairs")
    for item in items:
        require(type(item) in (list, tuple) and len(item) == 2, "the pickle makes a dictionary from something other than pairs")
        _set_item(result, *item)
    return result


DICTS = [Name(name, make_dict) for name in ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")]


def _set_item(target, key, value):
    # other keys have no use here, and hashing a tuple of tuples of tuples can take forever
    require(type(key) in (str, int), "the pickle holds a dictionary whose keys are neither strings nor integers")
    target[key] = value


class SafeUnpickler:
    """Reads one pickle after the other from a stream.

    Parameters
    ----------
    names : list of Name
        All that the pickles may mention.
    persistent_load : callable, optional
        Gets what the pickle calls a persistent id (PyTorch: the name of a storage), returns the object. None: refused.
    """

    def __init__(self, names, persistent_load=None):
        self.names = {name.name: name for name in names}
        self.persistent_load = persistent_load
        self.steps = 0  # of all pickles that this reader reads

    def load(self, stream):
        """Read one pickle; the stream stands behind it afterwards.

        stream: io.BytesIO of the whole file, never a file itself: asked for more than there is, it allocates no more than there is.

        Raises
        ------
        WeightsError
            For a name, a call or an opcode that is not allowed. Broken bytes raise what Python finds wrong with them.
        """
        stack, marks, memo = [], [], {}

        def pop_to_mark():
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        for opcode, argument, _ in pickletools.genops(stream):
            self.steps += 1
            require(self.steps <= MAX_STEPS, f"the pickle takes more than {MAX_STEPS} steps; no state dict needs as many")
            name = opcode.name
            if name in LITERALS:
                stack.append(argument)
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name])
            elif name in EMPTY:
                stack.append(EMPTY[name]())
            elif name in GETS:
                stack.append(memo[int(argument)])
            elif name in PUTS:
                memo[int(argument)] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "MARK":
                marks.append(len(stack))
            elif name in TUPLES:
                start = len(stack) - TUPLES[name]
                require(start >= 0, "the pickle takes more from its stack than there is")
                stack[start:] = [tuple(stack[start:])]
            elif name == "TUPLE":
                stack.append(tuple(pop_to_mark()))
            elif name == "LIST":
                stack.append(pop_to_mark())
            elif name == "DICT":
                items = pop_to_mark()
                stack.append(make_dict(list(zip(items[::2], items[1::2], strict=True))))
            elif name in ("APPEND", "APPENDS"):
                items = pop_to_mark() if name == "APPENDS" else [stack.pop()]
                require(type(stack[-1]) is list, "the pickle appends to something other than a list")
                stack[-1].extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                require(type(stack[-1]) is dict, "the pickle sets items of something other than a dictionary")
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set_item(stack[-1], key, value)
            elif name == "GLOBAL":
                stack.append(self._named(argument.replace(" ", ".", 1)))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                require(type(attribute) is str and type(module) is str, "the pickle imports something that has no name")
                stack.append(self._named(f"{module}.{attribute}"))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                require(type(function) is Name and function.call is not None and type(arguments) is tuple,
                        f"the pickle calls {shown(function.name) if type(function) is Name else 'something'}, which is not a function "
                        "of the allowed list; nothing was run")
                stack.append(function.call(*arguments))
            elif name == "BUILD":
                state, target = stack.pop(), stack[-1]
                # what an ordered dictionary carries beside its items is PyTorch's "_metadata", versions of layers: no weights
                require(type(target) is dict or isinstance(target, Stateful), "the pickle sets the state of an object that has none")
                if isinstance(target, Stateful):
                    target.set_state(state)
            elif name in ("BINPERSID", "PERSID"):
                require(self.persistent_load is not None, "the pickle refers to data outside of it")
                stack.append(self.persistent_load(stack.pop() if name == "BINPERSID" else argument))
            elif name == "STOP":
                require(len(stack) == 1 and not marks, "the pickle ends in the middle of something")
                return stack.pop()
            else:
                require(name in NOTHING_TO_DO, f"the pickle uses the opcode {name}, which weights do not need; nothing was run")

    def _named(self, name):
        require(name in self.names, f"the pickle names {shown(name)}, which is not on the list of what weights may use; "
                                    "nothing was run. It may be a whole model or a training state: save its state_dict() alone")
        return self.names[name]
