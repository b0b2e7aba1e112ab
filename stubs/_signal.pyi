# The built-in half of `signal`, which is imported where the other half's enumerations would cost a start.
from collections.abc import Callable
from types import FrameType

SIGPIPE: int
SIGUSR1: int
SIGXFSZ: int

def signal(number: int, handler: Callable[[int, FrameType | None], object], /) -> object: ...
