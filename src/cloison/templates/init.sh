#!/bin/busybox sh
# PID 1 of every qube until systemd: loads the disk driver, mounts root and modules by serial number, hands over.
# The host chooses the disks and their serials; nothing here looks at what a disk holds but to mount it.
# On any failure it says why on the console and powers off, so that the host sees an end and not a hang.

b=/bin/busybox

fail() {
    echo "initramfs: $1"
    $b sync
    exec $b poweroff -f
}

# Prints /dev/NAME of the disk with serial $1. Disks appear while the driver loads; ten seconds are for busy hosts.
disk() {
    tries=0
    while [ $tries -lt 1000 ]; do
        for path in /sys/block/vd*; do
            serial=
            [ -r "$path/serial" ] && read -r serial < "$path/serial"
            [ "$serial" = "$1" ] && [ -b "/dev/${path##*/}" ] && found="/dev/${path##*/}" && return 0
        done
        tries=$((tries + 1))
        $b usleep 10000
    done
    fail "no disk has the serial number $1"
}

$b mount -t devtmpfs -o nosuid,mode=755 dev /dev || fail "no /dev"
$b mount -t proc -o nosuid,nodev,noexec proc /proc || fail "no /proc"
$b mount -t sysfs -o nosuid,nodev,noexec sys /sys || fail "no /sys"
read -r release < /proc/sys/kernel/osrelease
read -r options < /proc/cmdline

# The host's probe of KVM wants to see user space run, no more.
case " $options " in
    *" cloison.probe "*)
        echo "cloison: user space runs"
        exec $b poweroff -f ;;
esac

for module in /modules/*.ko; do
    case $module in
        *.soft.ko) $b insmod "$module" 2> /dev/null || true ;;     # it may be for another processor
        *) $b insmod "$module" || fail "module ${module##*/} does not load" ;;
    esac
done

disk qubes-root
$b mount -t ext4 -o rw,noatime "$found" /newroot || fail "the root disk can't be mounted"

disk qubes-modules
modules="/newroot/lib/modules/$release"
[ -d "$modules" ] || $b mkdir -p "$modules" || fail "there is no place for the kernel's modules on the root disk"
$b mount -t squashfs -o ro,nosuid,nodev "$found" "$modules" || fail "the modules disk can't be mounted"

for folder in dev proc sys; do
    $b mount -o move "/$folder" "/newroot/$folder" || fail "the root disk has no /$folder"
done
exec $b switch_root /newroot /sbin/init "$@"
fail "the root disk has no /sbin/init"
