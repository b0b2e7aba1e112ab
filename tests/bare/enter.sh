#!/bin/sh
# Makes ROOT the whole file system and runs a command there: enter.sh ROOT COMMAND...
# Runs as root of its own mount and pid namespace (debian13.py makes them), so that every mount goes with the last process.
# pivot_root, not chroot: the kernel makes no user namespace for a process in a chroot, and each qube's box is one.
# BARE_BINDS: folders of the host that are seen there too, read-only, one a line.
set -eu
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mkdir -p proc sys dev run tmp old
mv tmp "$(mktemp -d ./tmp.old.XXXXXX)"  # a former run's: a hundred thousand files, removed beside
mkdir -m 1777 tmp
rm -rf --one-file-system ./tmp.old.* &
mount -t proc -o nosuid,nodev,noexec proc proc
mount --rbind /sys sys
mount -t tmpfs -o nosuid,mode=755 tmpfs dev
for node in null zero full random urandom tty kvm net/tun; do
  [ -c "/dev/$node" ] || continue
  mkdir -p "dev/$(dirname "$node")"
  : > "dev/$node"
  mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%%:*}" "dev/${n#*:}"; done
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs run
printf '%s\n' "${BARE_BINDS-}" | while IFS= read -r folder; do
  [ -n "$folder" ] || continue
  mkdir -p ".$folder"
  mount --rbind "$folder" ".$folder"
  mount -o remount,bind,ro ".$folder"
done
unset BARE_BINDS
pivot_root . old
cd /
umount -l old
exec "$@"
