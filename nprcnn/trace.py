"""Every stage's tensors, by name.

    trace = nprcnn.Trace()
    model.predict(image, trace=trace)
    trace["rpn.proposals"]

`losses` and `backward` take a trace too; the backward pass records gradients under the same names in `trace.grad`.
The arrays are the ones the model computed, not copies, and recording changes no result.
"""


class Trace:
    """Names -> arrays (or lists of arrays, one an image), in the order in which the stages ran."""

    def __init__(self):
        self.values = {}
        self.grad = {}

    def __getitem__(self, name):
        if name not in self.values:
            raise KeyError(f"no stage named {name!r}; recorded: {', '.join(self.values) or 'nothing yet'}")
        return self.values[name]

    def __contains__(self, name):
        return name in self.values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __str__(self):
        width = max(map(len, self.values), default=0)
        lines = [f"{name:<{width}}  {_describe(value)}{'  + gradient' if name in self.grad else ''}"
                 for name, value in self.values.items()]
        return "\n".join(lines)

    __repr__ = __str__


def _describe(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_describe(v) for v in value) + "]"
    return f"{value.dtype}{tuple(value.shape)}"


def record(trace, name, value):
    """Called by the models at each stage boundary; trace may be None."""
    if trace is not None:
        trace.values[name] = value


def record_grad(trace, name, value):
    """Called by the models in the backward pass, under the name of the forward stage; trace may be None."""
    if trace is not None:
        trace.grad[name] = value
