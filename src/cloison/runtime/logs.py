"""What a daemon writes to its log: a record a line, of printable ASCII, whatever text of a qube or a program has got into it."""
from __future__ import annotations

import logging

from cloison.runtime.say import own_log, say, say_to


class _Handler(logging.Handler):
    """The one place where every record passes; `say` never fails."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(self.format(record))
        except Exception:
            self.handleError(record)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Of a whole program: from now on its records go there. Does nothing in a program that has set its log up already."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def log_to_own_file(level: int = logging.INFO) -> None:
    """Of a daemon: as above; if its standard error is a file, that is its log, of bounded size (log_file.py)."""
    say_to(own_log())
    log_to_stderr(level)
