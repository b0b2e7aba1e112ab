"""The floor of every start: QEMU as such, without sandbox, warden, qubesd or tool, from the same image as the qubes.

Its command line is the product's own (`hypervisor.qemu.argv`); RAM is the same sealed copy, mapped privately; the disks are the
same files. The agent in it is asked right through its port: to answer a ping, to run a program while it is still nobody, or
to become a qube. What it says is not trusted, only timed.
"""
from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from cloison.cli.bench_questions import Become, Ping, Question, Run, Stream
from cloison.errors import MachineError
from cloison.hypervisor.qemu import argv, warm
from cloison.hypervisor.qemu.driver import CAPABILITIES, PORT_BUFFER, QEMU
from cloison.runtime.paths import Paths
from cloison.runtime.programs import find
from cloison.storage.blanks import make_blank
from cloison.storage.qcow2_image import create_overlay_fd
from cloison.wire.mux import HOST, Mux

PATIENCE = 300.0                        # seconds until a machine that says nothing is given up


class Image(NamedTuple):
    """A warm image, and what a machine from it or a boot like its own needs: all from its manifest."""

    folder: str
    root: tuple[str, ...]           # the template's commits, bottom first
    kernel: str
    initramfs: str
    modules: str
    memory: int                     # MiB
    vcpus: int
    accelerator: str


def find_image(paths: Paths, template: str) -> Image:
    """The template's newest warm image. Raises MachineError if it has none."""
    folders = [os.path.join(paths.warm, name) for name in warm.names(paths.warm)]
    images = [image for image in map(_image, folders) if f"/{template}/" in image.root[-1]]
    if not images:
        raise MachineError(f"there is no warm image of {template}")
    return max(images, key=lambda image: os.stat(image.folder).st_mtime_ns)


def _image(folder: str) -> Image:
    with open(os.path.join(folder, warm.MANIFEST), encoding="utf-8") as file:
        made = json.load(file)
    options = dict(zip(made["shape"], made["shape"][1:], strict=False))
    kernel, initramfs, modules = (entry[0] for entry in made["boot"])
    return Image(folder, tuple(entry[0] for entry in made["root"]), kernel, initramfs, modules,
                 int(options["-m"].removesuffix("M")), int(options["-smp"]), options["-accel"].partition(",")[0])


class Bare:
    """Starts bare machines from one image, each for one question. Holds a copy of the image's RAM, as the zygote does."""

    def __init__(self, image: Image, paths: Paths) -> None:
        self._image = image
        self._tmp = paths.tmp
        self._ram = warm.load_ram(image.folder)
        with tempfile.TemporaryDirectory(dir=paths.tmp) as folder:
            blank = os.path.join(folder, "private.raw")
            make_blank(blank, warm.MADE_SIZES["private"])
            self._private = os.open(blank, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._ram)
        os.close(self._private)

    def pong(self) -> float:
        """Seconds from the spawn to the agent's answer to a ping: its first byte after the restore."""
        return self._ask(Ping(), warm_start=True)

    def cold_pong(self) -> float:
        """The same with a boot of the same kernel and root instead of the restore."""
        return self._ask(Ping(), warm_start=False)

    def output(self, command: str) -> float:
        """Seconds from the spawn to the first byte that this command of user `user` puts out. The guest is nobody."""
        return self._ask(Run(command), warm_start=True)

    def identity(self) -> float:
        """Seconds from the spawn until the guest has become a qube with a private volume."""
        return self._ask(Become(), warm_start=True)

    def stream(self, command: str, stdin: int) -> float:
        """Seconds from a command's first output byte to its end, while it is sent `stdin` bytes of zeros."""
        question = Stream(command, stdin)
        self._ask(question, warm_start=True)
        return question.ended - question.begun

    def _ask(self, question: Question, *, warm_start: bool) -> float:
        with ExitStack() as stack:
            monitor, qemu_monitor = map(stack.enter_context, socket.socketpair())
            channel, qemu_channel = map(stack.enter_context, socket.socketpair())
            for end in (channel, qemu_channel):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PORT_BUFFER)
            state = os.open(os.path.join(self._image.folder, warm.STATE), os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, state)
            drives = stack.enter_context(self._drives(warm_start=warm_start))
            command = self._command(drives, qemu_monitor.fileno(), qemu_channel.fileno(), warm_start=warm_start)
            files = [node.file for drive in drives for node in drive.nodes if isinstance(node.file, int)]
            begun = time.perf_counter()
            process = subprocess.Popen(
                command, pass_fds=[qemu_monitor.fileno(), qemu_channel.fileno(), self._ram, state, *files],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                monitor.sendall(_monitor_commands(state if warm_start else None))
                _converse(channel, monitor, process.pid, question)
                return time.perf_counter() - begun
            finally:
                process.kill()
                process.wait()

    def _command(self, drives: tuple[argv.Drive, ...], monitor: int, channel: int, *, warm_start: bool) -> list[str]:
        image = self._image
        command = argv.command(argv.Settings(
            name="bench", uuid=str(uuid.UUID(int=1)), memory=image.memory, vcpus=image.vcpus, accelerator=image.accelerator,
            drives=drives, fd_monitor=monitor, fd_channel=channel, incoming=warm_start,
            ram=argv.Ram(f"/proc/self/fd/{self._ram}") if warm_start else argv.Ram(),
            kernel=image.kernel, initramfs=image.initramfs, program=find(QEMU)))
        for drive in drives:
            for node in drive.nodes:
                command += ["-add-fd", f"fd={node.file},set={node.file}"]
        return command

    @contextmanager
    def _drives(self, *, warm_start: bool) -> Iterator[tuple[argv.Drive, ...]]:
        """A qube's four disks, with overlays that have no name."""
        image = self._image
        with ExitStack() as stack:
            def layer(path: str) -> argv.Node:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                return argv.Node(fd, "qcow2" if path.endswith(".qcow2") else "raw", read_only=True)

            def overlay(size: int) -> argv.Node:
                fd = os.open(self._tmp, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, fd)
                create_overlay_fd(fd, size)
                return argv.Node(fd, "qcow2", read_only=False)

            root = [layer(path) for path in image.root]
            size = os.path.getsize(image.root[0])
            if warm_start:
                root.append(layer(warm.layer(image.folder).path))
            private, volatile = warm.MADE_SIZES["private"], warm.MADE_SIZES["volatile"]
            yield (
                argv.Drive("root", size, (*root, overlay(size))),
                argv.Drive("private", private, (argv.Node(self._private, "raw", read_only=True), overlay(private))),
                argv.Drive("volatile", volatile, (overlay(volatile),)),
                argv.Drive("modules", os.path.getsize(image.modules), (layer(image.modules),)),
            )


def _monitor_commands(state: int | None) -> bytes:
    """All at once: nothing of a floor waits for an answer."""
    commands: list[dict[str, object]] = [{"execute": "qmp_capabilities"}]
    if state is not None:
        commands += [{"execute": "migrate-set-capabilities", "arguments": {"capabilities": CAPABILITIES}},
                     {"execute": "migrate-incoming", "arguments": {"uri": f"fd:{state}"}}]
    return "".join(map(json.dumps, commands)).encode()


def _converse(channel: socket.socket, monitor: socket.socket, pid: int, question: Question) -> None:
    """Until the question is answered. Raises MachineError when the machine ends, refuses or stays silent."""
    mux = Mux(HOST)
    question.begin(mux)
    deadline = time.monotonic() + PATIENCE
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    for fd in (channel.fileno(), monitor.fileno(), pidfd):
        poll.register(fd, select.POLLIN)
    try:
        while True:
            channel.sendall(mux.take_output())
            for event in mux.drained():
                question.answered(mux, event)
            channel.sendall(mux.take_output())
            ready = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if channel.fileno() in ready:
                for event in mux.receive(channel.recv(1 << 16)):
                    if question.answered(mux, event):
                        return
            if monitor.fileno() in ready and b'"error"' in (said := monitor.recv(1 << 16)):
                raise MachineError(f"bare QEMU refuses: {said[:300]!r}")
            if not ready or pidfd in ready:
                raise MachineError("bare QEMU ended" if ready else f"a bare guest did not answer within {PATIENCE:.0f} s")
    finally:
        os.close(pidfd)
