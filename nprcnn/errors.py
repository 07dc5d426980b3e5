"""What can go wrong outside the mathematics, one class a kind.

A message is one clear sentence (or two): it names the thing, says what is wrong with it and what to do. The command line prints it
without a traceback and exits with code 2.
"""


class NprcnnError(Exception):
    """Base of every error that the package raises on purpose."""


class DataError(NprcnnError):
    """An image, a target or a data set that cannot be used."""


class WeightsError(NprcnnError):
    """A file of weights that cannot be read or does not fit the model."""


class BackendError(NprcnnError):
    """A set of kernels or a device that is not there."""


class ConfigError(NprcnnError):
    """An option, or a combination of options, that makes no sense."""
