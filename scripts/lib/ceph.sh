# The laboratory's Ceph cluster: one daemon of each kind, its content in memory, reachable from this machine only.
# shellcheck shell=bash

ceph_start_seconds=60
ceph_memory_bytes=$((1 << 30))
ceph_dir=$lab_dir/ceph
ceph_fs=longshore
# Whom the tests mount as; `admin` may do everything.
ceph_user=backup
# Where RBD images are, and as whom instances open them. What is done to the others hurts nobody in the first.
ceph_rbd_pools="volumes hanging small bulk"
ceph_rbd_user=instances

# ceph_daemon PROGRAM ARGUMENT...
ceph_daemon() {
    local program=$1 libraries
    shift
    libraries=$(ceph_programs)/usr/lib/x86_64-linux-gnu
    CEPH_CONF=$ceph_dir/ceph.conf LONGSHORE_LAB_MARK=$lab_mark LD_LIBRARY_PATH=$libraries:$libraries/ceph \
        "$(ceph_programs)/usr/bin/$program" "$@" >>"$ceph_dir/output" 2>&1 </dev/null || ceph_failed
}

# ceph_asked ARGUMENT...: prints the cluster's answer
ceph_asked() {
    CEPH_CONF=$ceph_dir/ceph.conf timeout "$ceph_start_seconds" ceph "$@" 2>>"$ceph_dir/output" || ceph_failed
}

ceph_failed() {
    tail -n 20 "$ceph_dir/output" >&2
    return 1
}

# ceph_key NAME CAPABILITY...: a keyring's section with a new key
ceph_key() {
    printf '[%s]\n    key = %s\n' "$1" "$(ceph-authtool --gen-print-key)"
    shift
    printf '    caps %s\n' "$@"
}

ceph_secret() { awk -v section="[client.$1]" '$0 == section {found = 1} found && $1 == "key" {print $3; exit}' "$ceph_dir/keyring"; }

# Above the ports of `choose_ports` and below the kernel's ephemeral range: two of the monitor, the others' from there on.
choose_ceph_port() {
    local start base try
    start=$(printf '%s' "$lab_dir" | cksum | cut -d' ' -f1)
    for try in {0..19}; do
        base=$((30000 + (start + try) % 80 * 32))
        if ! port_is_taken "$base" && ! port_is_taken $((base + 1)); then
            echo "$base"
            return
        fi
    done
    die "found no two free ports for a Ceph monitor from 30000 on in 20 tries"
}

# write_ceph_files PORT
write_ceph_files() {
    local programs all='"allow *"'
    programs=$(ceph_programs)
    mkdir -p "$ceph_dir"/{mon,mgr,osd,mds,no-modules}
    # With the usual pauses the daemons take half a minute to agree. The manager's modules are Python and none is needed.
    cat >"$ceph_dir/ceph.conf" <<CONF
[global]
    fsid = $(cat /proc/sys/kernel/random/uuid)
    mon host = [v2:127.0.0.1:$1,v1:127.0.0.1:$(($1 + 1))]
    public addr = 127.0.0.1
    cluster addr = 127.0.0.1
    ms bind port min = $(($1 + 2))
    ms bind port max = $(($1 + 31))
    keyring = $ceph_dir/keyring
    run dir = $ceph_dir
    admin socket =
    pid file = $ceph_dir/\$name.pid
    log file = $ceph_dir/\$name.log
    mon cluster log file = $ceph_dir/cluster.log
    mon data = $ceph_dir/mon
    mgr data = $ceph_dir/mgr
    osd data = $ceph_dir/osd
    mds data = $ceph_dir/mds
    mgr module path = $ceph_dir/no-modules
    osd class dir = $programs/usr/lib/x86_64-linux-gnu/rados-classes
    erasure code dir = $programs/usr/lib/x86_64-linux-gnu/ceph/erasure-code
    osd objectstore = memstore
    memstore device bytes = $ceph_memory_bytes
    osd crush chooseleaf type = 0
    osd pool default size = 1
    osd pool default min size = 1
    osd pool default pg num = 8
    osd pool default pg autoscale mode = off
    mon allow pool size one = true
    mon data avail warn = 0
    mon data avail crit = 0
    paxos propose interval = 0.05
    mon tick interval = 1
    mds tick interval = 1
    mgr tick period = 1
    mgr stats period = 1
CONF
    (
        umask 077
        {
            ceph_key mon. "mon = $all"
            ceph_key mgr.a 'mon = "allow profile mgr"' "osd = $all" "mds = $all"
            ceph_key osd.0 'mon = "allow profile osd"' 'mgr = "allow profile osd"' "osd = $all"
            ceph_key mds.a 'mon = "allow profile mds"' 'mgr = "allow profile mds"' "osd = $all" "mds = $all"
            ceph_key client.admin "mon = $all" "mgr = $all" "osd = $all" "mds = $all"
            # As `ceph fs authorize longshore client.backup /good rw /read-only r` gives them.
            ceph_key "client.$ceph_user" "mon = \"allow r fsname=$ceph_fs\"" "osd = \"allow rw tag cephfs data=$ceph_fs\"" \
                "mds = \"allow rw fsname=$ceph_fs path=/good, allow r fsname=$ceph_fs path=/read-only\""
            ceph_key "client.$ceph_rbd_user" 'mon = "profile rbd"' \
                "osd = \"$(printf 'profile rbd pool=%s, ' $ceph_rbd_pools | sed 's/, $//')\""
        } >"$ceph_dir/keyring"
    )
}

ceph_serves() { [[ $(ceph_asked mds stat) == *up:active* ]]; }

# What it has room for it learns from the manager; before that a client is told that there is none.
ceph_knows_its_room() { [ "$(ceph_asked df -f json | jq .stats.total_bytes)" -gt 0 ]; }

ceph_launch() {
    local port osd pool
    build_once "$(ceph_programs)" fill_ceph
    rm -rf "$ceph_dir"
    mkdir -p "$ceph_dir"
    port=$(choose_ceph_port)
    write_ceph_files "$port"
    # Without a map it would take the ports of a real one.
    ceph_daemon monmaptool --create --addv a "[v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]" "$ceph_dir/monmap"
    ceph_daemon ceph-mon -i a --mkfs --monmap "$ceph_dir/monmap"
    ceph_daemon ceph-mon -i a
    osd=$(cat /proc/sys/kernel/random/uuid)
    ceph_asked osd new "$osd" >/dev/null
    ceph_daemon ceph-osd -i 0 --mkfs --osd-uuid "$osd"
    ceph_daemon ceph-osd -i 0
    ceph_daemon ceph-mgr -i a
    ceph_daemon ceph-mds -i a
    for pool in metadata data; do ceph_asked osd pool create "$pool" >/dev/null; done
    ceph_asked fs new "$ceph_fs" metadata data >/dev/null
    for pool in $ceph_rbd_pools; do
        ceph_asked osd pool create "$pool" >/dev/null
        ceph_asked osd pool application enable "$pool" rbd >/dev/null
    done
    wait_until "$ceph_start_seconds" "CephFS is served" ceph_serves
    wait_until "$ceph_start_seconds" "Ceph knows its room" ceph_knows_its_room
    ceph_exports "$port" >"$ceph_dir/exports.new"
    mv "$ceph_dir/exports.new" "$ceph_dir/exports"
}

# What a client speaks to by now: monitor, OSD and MDS, each by both protocols.
ceph_ports() {
    {
        ceph_asked mon dump -f json | jq -r '.mons[].public_addrs.addrvec[].addr'
        ceph_asked osd dump -f json | jq -r '.osds[].public_addrs.addrvec[].addr'
        ceph_asked fs dump -f json | jq -r '.filesystems[].mdsmap.info[].addrs.addrvec[].addr'
    } | cut -d: -f2 | tr '\n' ' '
}

# ceph_exports PORT
ceph_exports() {
    cat <<EXPORTS
export LONGSHORE_LAB_CEPH_MONITOR=127.0.0.1:$(($1 + 1))
export LONGSHORE_LAB_CEPH_MONITOR_V2=127.0.0.1:$1
export LONGSHORE_LAB_CEPH_PORTS='$(ceph_ports)'
export LONGSHORE_LAB_CEPH_USER=$ceph_user
export LONGSHORE_LAB_CEPH_SECRET=$(ceph_secret "$ceph_user")
export LONGSHORE_LAB_CEPH_ADMIN_SECRET=$(ceph_secret admin)
export LONGSHORE_LAB_CEPH_CONF=$ceph_dir/ceph.conf
export LONGSHORE_LAB_RBD_USER=$ceph_rbd_user
EXPORTS
}
