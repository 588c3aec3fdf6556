"""What every backward of the package returns."""

from typing import Any, NamedTuple


class Gradients(NamedTuple):
    """Gradients of a scalar loss, each with its argument's shape and dtype.

    A field is None where the argument was not given or its gradient not asked for.
    """

    dq: Any = None
    dk: Any = None
    dv: Any = None
    dbias: Any = None
    dsinks: Any = None
