"""The exceptions of the package: one base class, and beside it the built-in class a caller would expect."""


class FlashError(Exception):
    """Base class of every error that flash raises."""


class FlashValueError(FlashError, ValueError):
    """A shape, stride, device or number that can't be right."""


class FlashTypeError(FlashError, TypeError):
    """A kind of object or a data type that this argument doesn't take."""


class UnsupportedError(FlashError, NotImplementedError):
    """Meaningful, but not available here; the message says what would work."""


class CudaError(FlashError, RuntimeError):
    """A call to CUDA failed; the message holds CUDA's name for the failure."""
