"""The receiver of a file copy: makes what the stream says, below one folder, and answers (reference/qrexec.md 21.3, 21.4).

Every byte of the stream is hostile. `wire.filecopy` has checked names and lengths; here nothing is ever overwritten, no link is
followed, and a file appears under its name only when it is whole. Memory does not grow with the stream.
"""
from __future__ import annotations

import errno
import os
import time

from cloison.qrexec.filecopy.confine import open_beneath, sync_filesystem
from cloison.wire import filecopy as wire

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from collections.abc import Callable

BUFFER = 1 << 20
SPACE_PAUSE = 1.0                        # seconds between looks at the free space
# What open says where the file system has no nameless files.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.ENOENT, errno.EISDIR)


class Options:
    """What is let in. `max_bytes`, `max_files`: 0 is without limit. `margin`: bytes that must stay free; 0 does not look."""

    def __init__(
        self, *, folders: bool = True, links: bool = True, all_names: bool = False, any_target: bool = False,
        max_bytes: int = 0, max_files: int = 0, margin: int = 0, pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folders = folders
        self.links = links
        self.all_names = all_names
        self.any_target = any_target
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.margin = margin
        self.pause = pause


class Unpacker:
    """Makes entries below the folder `root`. Raises wire.Refused and OSError; then only `close`."""

    def __init__(self, root: int, descriptors: int, options: Options) -> None:
        self._root = root
        self._descriptors = descriptors
        self._options = options
        self._tmpfile = True
        self._bytes = 0
        self._files = 0
        self._entry: wire.Entry | None = None        # the file being written
        self._named = False                          # it has its name already
        self._left = 0
        self._fd = -1
        self._parent = -1

    def close(self) -> None:
        """A file that is not whole goes away."""
        for fd in (self._fd, self._parent):
            if fd >= 0:
                os.close(fd)
        self._fd = self._parent = -1

    def entry(self, entry: wire.Entry) -> None:
        """The next one; of a file, its content comes by `content`."""
        self._account(entry)
        if entry.kind == wire.REGULAR:
            self._begin_file(entry)
        elif entry.kind == wire.FOLDER and self._options.folders:
            self._folder(entry)
        elif entry.kind == wire.LINK and self._options.links:
            self._link(entry)
        else:
            raise wire.Refused(errno.EINVAL, entry.path)

    def _account(self, entry: wire.Entry) -> None:
        self._files += 1
        self._bytes += entry.size                    # of a link, that of its target
        if 0 < self._options.max_files < self._files or 0 < self._options.max_bytes < self._bytes:
            raise wire.Refused(errno.EDQUOT, entry.path)

    def _open_parent(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the folder that `path` is in, and the last part of `path`."""
        folder, _, name = path.rpartition(b"/")
        return open_beneath(self._root, folder or b".", os.O_RDONLY | os.O_DIRECTORY), name

    def _folder(self, entry: wire.Entry) -> None:
        parent, name = self._open_parent(entry.path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            return                                   # mode and times come with the second entry, after the content
        except FileExistsError:
            folder = open_beneath(parent, name, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(parent)
        try:
            _dress(folder, entry)
        finally:
            os.close(folder)

    def _link(self, entry: wire.Entry) -> None:
        parent, name = self._open_parent(entry.path)
        try:
            os.symlink(entry.target, name, dir_fd=parent)
            os.utime(name, ns=(entry.accessed, entry.modified), dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    # -- a file, piece by piece ------------------------------------------------------------------------------------------

    def _begin_file(self, entry: wire.Entry) -> None:
        self._parent, name = self._open_parent(entry.path)
        if self._tmpfile:
            try:
                self._fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o700, dir_fd=self._parent)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                self._tmpfile = False
        self._named = not self._tmpfile
        if self._named:                              # mode 0 marks it as unfinished
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(name, flags, 0, dir_fd=self._parent)
        self._wait_for_space(entry.size)
        self._entry, self._left = entry, entry.size
        if entry.size == 0:
            self._end_file()

    def _wait_for_space(self, size: int) -> None:
        while self._options.margin:
            space = os.fstatvfs(self._fd)
            if space.f_bavail * space.f_frsize >= size + self._options.margin:
                return
            self._options.pause(SPACE_PAUSE)

    def content(self, untrusted: memoryview) -> None:
        """The next piece of the file; its last one gives the file its name. A piece of nothing but zeros becomes a hole."""
        self._left -= len(untrusted)
        if _is_zero(untrusted):
            end = os.lseek(self._fd, len(untrusted), os.SEEK_CUR)
            if self._left == 0:
                os.ftruncate(self._fd, end)          # a hole at the end makes no file longer
            untrusted = untrusted[:0]
        while untrusted:
            untrusted = untrusted[os.write(self._fd, untrusted):]
        if self._left == 0:
            self._end_file()

    def _end_file(self) -> None:
        assert self._entry is not None
        _dress(self._fd, self._entry)
        if not self._named:                          # fails if there is such a name: nothing is overwritten
            name = self._entry.path.rpartition(b"/")[2]
            os.link(str(self._fd), name, src_dir_fd=self._descriptors, dst_dir_fd=self._parent, follow_symlinks=True)
        os.close(self._fd)
        os.close(self._parent)
        self._fd = self._parent = -1


def _is_zero(piece: memoryview) -> bool:
    """Of most pieces one byte is looked at."""
    return len(piece) > 0 and not piece[0] and not piece[-1] and piece.tobytes().count(0) == len(piece)


def _dress(fd: int, entry: wire.Entry) -> None:
    os.fchmod(fd, entry.mode & wire.PERMISSIONS)
    os.utime(fd, ns=(entry.accessed, entry.modified))


def open_descriptors() -> int:
    """A folder in which each of our descriptors has a name, as linkat needs; once shut in, a process can't open it."""
    return os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def receive(
    source: int, root: int, descriptors: int, options: Options, report: Callable[[wire.Entry], None] | None = None
) -> wire.Result:
    """Take a stream from the descriptor `source` to its end or to the first thing wrong; the answer to send.

    `root` is the folder to fill, `descriptors` what `open_descriptors` gave. `report` hears of each entry. With code 0 all is on
    the disk.
    """
    unpacker = Unpacker(root, descriptors, options)
    decoder = wire.Decoder(all_names=options.all_names, any_target=options.any_target)
    try:
        _receive(source, unpacker, decoder, report)
        sync_filesystem(root)
        code, name = 0, decoder.name
    except wire.Refused as refusal:
        code, name = refusal.code, refusal.name
    except OSError as error:
        code, name = error.errno or errno.EIO, decoder.name
    finally:
        unpacker.close()
    return wire.Result(code, decoder.crc, name)


def _receive(source: int, unpacker: Unpacker, decoder: wire.Decoder, report: Callable[[wire.Entry], None] | None) -> None:
    buffer = memoryview(bytearray(BUFFER))
    while length := os.readv(source, [buffer]):
        decoder.feed(buffer[:length])
        while (event := decoder.next_event()) is not None:
            if isinstance(event, memoryview):
                unpacker.content(event)
            elif isinstance(event, wire.Entry):
                unpacker.entry(event)
                if report:
                    report(event)
            else:
                return
    raise wire.Refused(wire.ENDED_EARLY if decoder.inside_entry else errno.EREMOTEIO, decoder.name)
