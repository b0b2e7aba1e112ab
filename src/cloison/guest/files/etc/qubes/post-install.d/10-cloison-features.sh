#!/bin/sh
# Says what this template is and can do. The host takes what it knows, at the last line.
set -e
. /etc/os-release
qvm-features-request qrexec=1 vmexec=1 os=Linux qubes-agent-version=4.4 "os-eol=${SUPPORT_END:-}" "os-distribution=${ID:-}" "os-distribution-like=${ID_LIKE:-}" "os-version=${VERSION_ID:-}"
for service in /etc/qubes-rpc/*; do
    name=${service##*/}
    [ -x "$service" ] && [ -f "$service" ] && qvm-features-request "supported-rpc.${name%%+*}=1"
done
units=/usr/lib/systemd/system
for service in $(sed -n 's|^\(Condition\)\{0,1\}PathExists=!\{0,1\}/run/qubes-service/\([A-Za-z0-9_.-]\{1,48\}\)$|\2|p' \
        $units/*.service $units/*.path $units/*/*.conf 2>/dev/null | sort -u); do
    qvm-features-request "supported-service.$service=1"
done
qvm-features-request --commit
exec qrexec-client-vm dom0 qubes.SyncAppMenus
