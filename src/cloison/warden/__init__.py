"""One process a qube: it holds the qube's QEMU, its channels, its QubesDB and its qrexec daemon, and outlives qubesd."""
