"""A qube's QubesDB tree: entries, watches, quota, the copy in the guest. The two sides are run against each other."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.errors import PeerError
from cloison.qdb.tree import GUEST, HOST, MAX_WATCHES, Fired, Outcome, Tree, is_entry, notice
from cloison.wire import qdb
from cloison.wire.qdb import Message


def tree(**entries: str) -> Tree:
    """A host's tree; a keyword `a_b` is the path /a/b."""
    made = Tree(HOST)
    for name, value in entries.items():
        made.write("/" + name.replace("_", "/"), value.encode())
    return made


def read_all(data: bytes, limits: qdb.Limits = qdb.TO_CLIENT) -> list[Message]:
    decoder = qdb.Decoder(limits)
    decoder.feed(data)
    messages = []
    while (message := decoder.next_message()) is not None:
        messages.append(message)
    return messages


def ask(made: Tree, kind: int, path: str = "", value: bytes = b"", client: str = "c") -> list[Message]:
    return read_all(made.handle_client(client, Message(kind, path, value)).reply)


def joined(host: Tree) -> Tree:
    """A guest's tree with its copy of the host's."""
    guest = Tree(GUEST)
    [request] = read_all(guest.request_sync(), qdb.VCHAN)
    pass_on(host.handle_peer(request).reply, guest)
    return guest


def pass_on(data: bytes, receiver: Tree) -> list[Outcome]:
    return [receiver.handle_peer(message) for message in read_all(data, qdb.VCHAN)]


# -- entries -------------------------------------------------------------------------------------------------------------


def test_write_read_remove() -> None:
    made = tree(a="1")
    assert made.read("/a") == b"1"
    made.write("/a", b"")
    assert made.read("/a") == b""
    made.remove("/a")
    assert made.read("/a") is None
    assert made.remove("/a") == Outcome()


def test_prefixes() -> None:
    made = tree(a="1", ab="2", a_b="3", a_b_c="4", x="5")
    assert made.paths() == ["/a", "/a/b", "/a/b/c", "/ab", "/x"]
    assert made.paths("/a") == ["/a", "/a/b", "/a/b/c", "/ab"]
    assert made.paths("/a/") == ["/a/b", "/a/b/c"]
    assert made.entries("/a/b") == [("/a/b", b"3"), ("/a/b/c", b"4")]
    assert made.paths("/nothing") == []


def test_removing_a_subtree_leaves_its_root_and_its_neighbours() -> None:
    made = tree(a="1", ab="2", a_b="3", a_b_c="4")
    made.remove("/a/")
    assert made.paths() == ["/a", "/ab"]
    made.remove("/")
    assert made.paths() == []


@pytest.mark.parametrize("path", ["", "/", "/a/", "a", "/a+b", "/é", "/a\0", "/" + "a" * 63])
def test_paths_that_hold_no_value(path: str) -> None:
    assert not is_entry(path)
    with pytest.raises(ValueError, match="can't be stored"):
        tree().write(path, b"")


@pytest.mark.parametrize(("value", "fine"), [
    (b"", True), (b"x", True), (b"x" * 3071, True), (b"x" * 3072, False), (b"a\0", False),
])
def test_values(value: bytes, fine: bool) -> None:
    made = tree()
    assert made.store("/a", value, by_guest=True) is fine
    assert made.read("/a") == (value if fine else None)


# -- quota ---------------------------------------------------------------------------------------------------------------


def test_qsb_085_a_full_quota_stops_the_guest_and_nobody_else() -> None:
    made = Tree(HOST, max_entries=2, max_bytes=100)
    assert made.handle_peer(Message(qdb.WRITE, "/a", b"x")).reply == qdb.encode(qdb.RESP_OK, "/a")
    assert made.handle_peer(Message(qdb.WRITE, "/b", b"x")).reply == qdb.encode(qdb.RESP_OK, "/b")
    assert made.handle_peer(Message(qdb.WRITE, "/c", b"x")).reply == qdb.encode(qdb.RESP_ERROR, "/c")
    assert made.paths() == ["/a", "/b"]
    assert made.handle_peer(Message(qdb.WRITE, "/a", b"y")).reply == qdb.encode(qdb.RESP_OK, "/a")
    made.write("/c", b"host's own")
    assert made.handle_peer(Message(qdb.RM, "/b")).reply == qdb.encode(qdb.RESP_OK, "/b")
    assert made.handle_peer(Message(qdb.WRITE, "/d", b"x")).reply == qdb.encode(qdb.RESP_OK, "/d")


@pytest.mark.parametrize(("size", "fine"), [(0, True), (1, True), (98, True), (99, False)])
def test_qsb_085_quota_of_bytes(size: int, fine: bool) -> None:
    made = Tree(HOST, max_bytes=100)
    assert made.store("/a", b"x" * size, by_guest=True) is fine


def test_qsb_085_a_refused_write_changes_nothing_and_fires_nothing() -> None:
    made = Tree(HOST, max_bytes=10)
    made.watch("c", "/")
    assert made.handle_peer(Message(qdb.WRITE, "/a", b"12345678")).fired == (Fired("c", "/a"),)
    outcome = made.handle_peer(Message(qdb.WRITE, "/a", b"123456789"))
    assert outcome == Outcome(qdb.encode(qdb.RESP_ERROR, "/a"))
    assert made.read("/a") == b"12345678"


def test_what_the_host_takes_over_is_no_longer_the_guests_charge() -> None:
    made = Tree(HOST, max_entries=1)
    assert made.store("/a", b"x", by_guest=True)
    made.write("/a", b"y")
    assert made.store("/b", b"x", by_guest=True)
    assert not made.store("/a", b"x", by_guest=True)


def test_the_quota_holds_for_local_programs_of_the_guest_too() -> None:
    made = Tree(GUEST, max_entries=1)
    assert ask(made, qdb.WRITE, "/a", b"1") == [Message(qdb.RESP_OK, "/a")]
    assert ask(made, qdb.WRITE, "/b", b"1") == [Message(qdb.RESP_ERROR, "/b")]
    made.handle_peer(Message(qdb.WRITE, "/b", b"from the host"))
    assert made.read("/b") == b"from the host"


OPERATIONS = st.lists(st.tuples(
    st.sampled_from(["guest", "host", "remove"]), st.sampled_from(["/a", "/b", "/a/b", "/a/c", "/a/", "/"]),
    st.binary(max_size=12),
), max_size=30)


@given(OPERATIONS)
def test_the_charge_is_always_what_the_guest_stored_last(operations: list[tuple[str, str, bytes]]) -> None:
    made = Tree(HOST, max_entries=2, max_bytes=20)
    stored: dict[str, tuple[bytes, bool]] = {}
    for who, path, value in operations:
        if who == "remove":
            below = path.endswith("/")
            gone = [each for each in stored if each == path or (below and each.startswith(path))]
            assert made.discard(path) is bool(gone)
            for each in gone:
                del stored[each]
            continue
        after = stored | {path: (value, who == "guest")}
        charged = [len(each) + len(kept) for each, (kept, by_guest) in after.items() if by_guest]
        fits = who == "host" or (len(charged) <= 2 and sum(charged) <= 20)
        fine = fits and not path.endswith("/") and b"\0" not in value
        assert made.store(path, value, by_guest=who == "guest") is fine
        if fine:
            stored = after
    assert made.entries() == sorted((path, value) for path, (value, _) in stored.items())


# -- watches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("watch", "changed", "told"), [
    ("/a", "/a", "/a"), ("/a", "/ab", None), ("/a", "/a/b", None), ("/a/", "/a/b", "/a/b"), ("/a/", "/a", None),
    ("/", "/x", "/x"),
    ("/a/", "/a/", "/a/"), ("/a/b", "/a/", "/a/b"), ("/a/b/", "/a/", "/a/b/"), ("/a/", "/a/b/", "/a/b/"), ("/b", "/a/", None),
])
def test_which_watches_fire(watch: str, changed: str, told: str | None) -> None:
    made = tree(a_b_c="1", a_b="2", a="3")
    made.watch("c", watch)
    outcome = made.remove(changed) if changed.endswith("/") else made.write(changed, b"new")
    assert outcome.fired == ((Fired("c", told),) if told else ())


def test_watches_fire_once_each_and_per_client() -> None:
    made = tree()
    for client, path in (("c", "/a"), ("c", "/a"), ("c", "/"), ("d", "/a")):
        assert made.watch(client, path)
    told = (Fired("c", "/a"), Fired("c", "/a"), Fired("c", "/a"), Fired("d", "/a"))
    assert made.write("/a", b"1").fired == told
    assert made.unwatch("c", "/a")
    made.forget("d")
    assert made.write("/a", b"2").fired == told[:2]
    assert not made.unwatch("d", "/a")


def test_number_of_watches_is_bounded() -> None:
    made = tree()
    assert all(made.watch("c", "/a") for _ in range(MAX_WATCHES))
    assert ask(made, qdb.WATCH, "/a") == [Message(qdb.RESP_ERROR, "/a")]
    assert ask(made, qdb.WATCH, "/a", client="d") == [Message(qdb.RESP_OK, "/a")]


def test_notice() -> None:
    assert read_all(notice("/a/")) == [Message(qdb.RESP_WATCH, "/a/")]


# -- local clients -------------------------------------------------------------------------------------------------------


def test_local_commands() -> None:
    made = tree(a="1", a_b="2")
    assert ask(made, qdb.READ, "/a") == [Message(qdb.RESP_READ, "/a", b"1")]
    assert ask(made, qdb.READ, "/x") == [Message(qdb.RESP_ERROR_NOENT, "/x")]
    assert ask(made, qdb.LIST, "/a") == [Message(qdb.RESP_LIST, "/a"), Message(qdb.RESP_LIST, "/a/b"), Message(qdb.RESP_LIST)]
    assert ask(made, qdb.MULTIREAD, "/a/") == [Message(qdb.RESP_MULTIREAD, "/a/b", b"2"), Message(qdb.RESP_MULTIREAD)]
    assert ask(made, qdb.WRITE, "/c", b"3") == [Message(qdb.RESP_OK, "/c")]
    assert ask(made, qdb.WRITE, "/c/", b"3") == [Message(qdb.RESP_ERROR, "/c/")]
    assert ask(made, qdb.WRITE, "/c", b"\0") == [Message(qdb.RESP_ERROR, "/c")]
    assert ask(made, qdb.RM, "/c") == [Message(qdb.RESP_OK, "/c")]
    assert ask(made, qdb.RM, "/c") == [Message(qdb.RESP_ERROR_NOENT, "/c")]
    assert ask(made, qdb.WATCH, "/a") == [Message(qdb.RESP_OK, "/a")]
    assert ask(made, qdb.WATCH, "") == [Message(qdb.RESP_ERROR)]
    assert ask(made, qdb.UNWATCH, "/a") == [Message(qdb.RESP_OK, "/a")]
    assert ask(made, qdb.UNWATCH, "/a") == [Message(qdb.RESP_ERROR_NOENT, "/a")]


@pytest.mark.parametrize("kind", [qdb.RESP_OK, qdb.RESP_READ, qdb.RESP_MULTIREAD, qdb.RESP_WATCH, 99])
def test_a_client_sends_no_replies(kind: int) -> None:
    with pytest.raises(PeerError):
        tree().handle_client("c", Message(kind, "/a"))


# -- both sides ----------------------------------------------------------------------------------------------------------


def test_the_guest_gets_a_copy_and_what_changes_later() -> None:
    host = tree(name="work", a_b="1")
    assert host.write("/c", b"2").forward == b""           # nobody listens yet
    guest = joined(host)
    assert guest.entries() == host.entries()
    guest.watch("program", "/a/")
    [outcome] = pass_on(host.write("/a/b", b"new").forward, guest)
    assert outcome == Outcome(qdb.encode(qdb.RESP_OK, "/a/b"), b"", (Fired("program", "/a/b"),))
    assert pass_on(outcome.reply, host) == [Outcome()]
    pass_on(host.remove("/a/").forward, guest)
    assert guest.entries() == host.entries() == [("/c", b"2"), ("/name", b"work")]


def test_the_copy_is_sent_in_reverse_order() -> None:
    reply = tree(a="1", b="2").handle_peer(Message(qdb.MULTIREAD)).reply
    assert [message.path for message in read_all(reply, qdb.VCHAN)] == ["/b", "/a", ""]


def test_what_a_guests_program_writes_reaches_the_host() -> None:
    host = tree()
    guest = joined(host)
    outcome = guest.handle_client("c", Message(qdb.WRITE, "/dns/x", b"1"))
    assert pass_on(outcome.forward, host)[0].reply == qdb.encode(qdb.RESP_OK, "/dns/x")
    assert host.read("/dns/x") == b"1"
    pass_on(guest.handle_client("c", Message(qdb.RM, "/dns/")).forward, host)
    assert host.read("/dns/x") is None
    assert guest.handle_client("c", Message(qdb.RM, "/dns/")).forward == b""
    assert guest.handle_client("c", Message(qdb.READ, "/dns/x")).forward == b""
    assert guest.handle_client("c", Message(qdb.WRITE, "/x/", b"1")).forward == b""


def test_removing_what_both_sides_removed_is_no_reason_to_part() -> None:
    host = tree()
    [reply] = read_all(host.handle_peer(Message(qdb.RM, "/a")).reply, qdb.VCHAN)
    assert reply == Message(qdb.RESP_ERROR, "/a")
    assert Tree(GUEST).handle_peer(reply) == Outcome()


def test_one_copy_per_connection() -> None:
    host = tree()
    joined(host)
    with pytest.raises(PeerError):
        host.handle_peer(Message(qdb.MULTIREAD))
    host.peer_lost()
    assert host.write("/a", b"1").forward == b""
    assert joined(host).entries() == [("/a", b"1")]


def test_a_new_copy_drops_what_is_gone_on_the_host() -> None:
    host = tree(a="1", b="2")
    guest = joined(host)
    guest.peer_lost()
    host.peer_lost()
    host.remove("/a")
    [request] = read_all(guest.request_sync(), qdb.VCHAN)
    pass_on(host.handle_peer(request).reply, guest)
    assert guest.entries() == [("/b", b"2")]


def test_a_copy_that_was_cut_off_is_not_gone_on_with_unasked() -> None:
    guest = Tree(GUEST)
    guest.request_sync()
    guest.handle_peer(Message(qdb.RESP_MULTIREAD, "/a", b"1"))
    guest.peer_lost()
    with pytest.raises(PeerError):
        guest.handle_peer(Message(qdb.RESP_MULTIREAD, "/b", b"2"))
    assert guest.entries() == [("/a", b"1")] and guest.write("/c", b"3").forward == b""
    guest.request_sync()
    guest.handle_peer(Message(qdb.RESP_MULTIREAD, "/b", b"2"))
    guest.handle_peer(Message(qdb.RESP_MULTIREAD))
    assert guest.entries() == [("/b", b"2")]
    with pytest.raises(PeerError):
        guest.handle_peer(Message(qdb.RESP_MULTIREAD))


@pytest.mark.parametrize("message", [
    Message(qdb.RESP_MULTIREAD, "/a", b"1"), Message(qdb.RESP_MULTIREAD), Message(qdb.MULTIREAD, "/a"), Message(qdb.READ, "/a"),
    Message(qdb.WATCH, "/a"), Message(qdb.LIST), Message(qdb.RESP_WATCH, "/a"),
])
def test_what_a_guest_may_not_send(message: Message) -> None:
    with pytest.raises(PeerError):
        tree().handle_peer(message)


def test_a_copy_with_an_impossible_entry_is_refused() -> None:
    guest = Tree(GUEST)
    guest.request_sync()
    with pytest.raises(PeerError):
        guest.handle_peer(Message(qdb.RESP_MULTIREAD, "/a/", b"1"))


@given(st.lists(st.builds(
    Message, st.integers(0, 14), st.sampled_from(["", "/", "/a", "/a/", "/a/b"]), st.binary(max_size=4),
), max_size=12))
def test_qsb_085_a_hostile_peer_or_client_gets_an_outcome_or_peer_error(messages: list[Message]) -> None:
    made = tree(a="1")
    for message in messages:
        for handle in (made.handle_peer, lambda each: made.handle_client("c", each)):
            try:
                outcome = handle(message)
            except PeerError:
                continue
            read_all(outcome.reply, qdb.TO_CLIENT)
            read_all(outcome.forward, qdb.VCHAN)
    assert all(is_entry(path) for path in made.paths())
