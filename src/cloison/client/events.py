"""Events of one qube or of the whole system, as they happen."""
from __future__ import annotations

from cloison.client.connection import Connection, NoDaemon, Stream
from cloison.client.domains import DOM0


def subscribe(connection: Connection, dest: str = DOM0) -> Stream:
    """A stream of `Event`. When this returns, no later event is missed: qubesd has confirmed the subscription."""
    stream = connection.stream(dest, "admin.Events")
    try:
        for _ in stream:                 # connection-established
            return stream
    except BaseException:
        stream.close()
        raise
    stream.close()
    raise NoDaemon("qubesd closed the event stream")
