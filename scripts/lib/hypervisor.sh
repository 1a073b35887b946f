# The laboratory's libvirt: a daemon in a mount namespace of its own, where /run, /etc/libvirt and libvirt's folders
# under /var are folders of the laboratory. So it neither sees nor touches the machine's own libvirt, while its socket,
# its logs and every other file have a path on the outside too: tests, worker and QEMU share disks, scratch and sockets.
# What is private is /run: keep scratch and sockets that QEMU must open below the laboratory, not there.
# shellcheck shell=bash

libvirt_start_seconds=30
libvirt_stop_seconds=15
# Longest time that a QEMU takes to answer what libvirt has asked it before it is killed.
libvirt_answers_seconds=1
libvirt_dir=$lab_dir/$libvirt_which
virsh_program=$lab_dir/bin/virsh
[ "$libvirt_which" = libvirt ] || virsh_program+=-$libvirt_which
# Who QEMU runs as. Not root is how a host has it (Debian: libvirt-qemu), and what disks and sockets must then be open to.
qemu_user=${LONGSHORE_LAB_QEMU_USER:-root}
libvirt_uri="qemu+unix:///system?socket=$libvirt_socket"

# The guests' disks are below the laboratory: a QEMU that can't come there starts nothing, with an error that names the disk.
check_qemu_user() {
    id "$qemu_user" >/dev/null 2>&1 || die "there is no user \`$qemu_user\` (LONGSHORE_LAB_QEMU_USER)"
    setpriv --reuid "$qemu_user" --regid "$(id -g "$qemu_user")" --init-groups test -x "$lab_dir" ||
        die "QEMU's user \`$qemu_user\` cannot come to \`$lab_dir\`: open every directory above it (chmod o+x)," \
            "or use a checkout that is not below a closed one such as /root"
}

write_libvirt_files() {
    # The cache holds what libvirt found out about the QEMU binary: a second that the next start saves.
    rm -rf "${libvirt_dir:?}/etc" "${libvirt_dir:?}/run" "${libvirt_dir:?}/lib" "${libvirt_dir:?}/log"
    mkdir -p "$libvirt_dir"/{etc,run/lock,lib,log,cache} "$lab_dir/bin"
    # Two daemons of one machine are two hosts by their uuids, so that one migrates to the other.
    cat >"$libvirt_dir/etc/libvirtd.conf" <<CONF
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
CONF
    check_qemu_user
    # No cgroups: their folders are the machine's, not the namespace's, and two laboratories would meet there.
    # QEMU logs straight to its file, which spares a virtlogd.
    cat >"$libvirt_dir/etc/qemu.conf" <<CONF
user = "$qemu_user"
group = "$(id -gn "$qemu_user")"
dynamic_ownership = 1
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
remember_owner = 0
stdio_handler = "file"
CONF
    printf '#!/bin/sh\nexec /usr/bin/virsh -c "%s" "$@"\n' "$libvirt_uri" >"$virsh_program"
    chmod +x "$virsh_program"
}

# What a worker mounts in its run directory has to arrive in libvirt's namespace and QEMU's, as on a host under systemd, where
# every mount is shared. This machine's may not be, so the folder of the workers becomes a mount that is.
share_fleet_mounts() {
    mkdir -p "$lab_dir/fleet"
    mount --bind "$lab_dir/fleet" "$lab_dir/fleet"
    mount --make-shared "$lab_dir/fleet"
}

# Runs inside the new namespace. It starts as a slave of the machine's mounts, so what is mounted outside arrives, and
# ends shared, so that a QEMU in a namespace of its own would still see a share mounted after it started.
libvirt_inside() {
    local pair
    for pair in "run /run" "etc /etc/libvirt" "lib /var/lib/libvirt" "log /var/log/libvirt" "cache /var/cache/libvirt"; do
        # shellcheck disable=SC2086  # the two words of a pair
        set -- $pair
        mount --bind "$libvirt_dir/$1" "$2"
    done
    mkdir -p /run/longshore-lab
    mount -t tmpfs -o size=4k,mode=0700 "$lab_mark" /run/longshore-lab
    mount --make-rshared /
    exec libvirtd --daemon --config /etc/libvirt/libvirtd.conf
}

libvirt_launch() {
    write_libvirt_files
    libvirt_begin
}

# On the files that are there: a daemon that follows a killed one finds the guests by them. Its namespace is another, in which the same
# folders of the laboratory are at the same paths.
libvirt_begin() {
    LONGSHORE_LAB_MARK=$lab_mark setsid unshare --mount --propagation slave -- \
        "$root/scripts/lab" inside-libvirt >"$libvirt_dir/output" 2>&1 </dev/null ||
        { cat "$libvirt_dir/output" >&2; die "cannot start libvirtd"; }
}

# Workers and guards, which ask libvirt again and again.
who_asks_libvirt() {
    local pid
    for pid in $(marked_processes); do
        case $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) in
        *longshore\ worker* | *longshore\ guard*) echo "$pid" ;;
        esac
    done
}

# By the pid file that it wrote itself. Nobody asks it anything in that moment: a daemon that follows one which was killed amid a question to
# a QEMU takes the answer for that to its own first one, and ends the guest (libvirt 11.3: "unexpected type returned by QEMU command").
libvirt_kill() {
    local pid asking
    pid=$(cat "$libvirt_dir/run/libvirtd.pid" 2>/dev/null) || return 0
    carries_mark "$pid" || return 0
    asking=$(who_asks_libvirt)
    # shellcheck disable=SC2086  # a list of numbers
    [ -z "$asking" ] || kill -STOP $asking 2>/dev/null || true
    sleep "$libvirt_answers_seconds"
    kill -KILL "$pid"
    # shellcheck disable=SC2086  # likewise
    [ -z "$asking" ] || kill -CONT $asking 2>/dev/null || true
    wait_until "$libvirt_stop_seconds" "libvirt's daemon ($pid) ends after SIGKILL" process_is_gone "$pid"
}

virsh_lab() { "$virsh_program" "$@"; }

libvirt_answers() { [ -S "$libvirt_socket" ] && timeout 10 "$virsh_program" -q list >/dev/null 2>&1; }

libvirt_wait() {
    wait_until "$libvirt_start_seconds" "libvirt answers on $libvirt_socket" libvirt_answers ||
        { cat "$libvirt_dir/output" >&2; return 1; }
}

# A second daemon on the same machine and disks, for those who migrate. Prints shell exports of how it is reached.
libvirt_twin() {
    libvirt_answers || { libvirt_launch; libvirt_wait; }
    cat <<EXPORTS
export LONGSHORE_LAB_TWIN_LIBVIRT_URI='$libvirt_uri'
export LONGSHORE_LAB_TWIN_VIRSH=$virsh_program
EXPORTS
}
