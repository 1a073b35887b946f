# Finds what belongs to the laboratory without trusting any pid file, ends it, and says what couldn't be ended.
# shellcheck shell=bash

sweep_term_seconds=10
sweep_kill_seconds=10

process_is_gone() { [ ! -e "/proc/$1" ] || grep -qs '^State:[[:space:]]*[ZX]' "/proc/$1/status"; }

carries_mark() { grep -qsF -- "$lab_mark" "/proc/$1/environ" "/proc/$1/mountinfo"; }

# Our own shell and its ancestors carry the laboratory's folder on their command lines without being part of it.
is_ancestor() {
    local pid=$BASHPID
    while [ "${pid:-0}" -gt 1 ]; do
        [ "$pid" = "$1" ] && return 0
        pid=$(awk '/^PPid:/{print $2}' "/proc/$pid/status" 2>/dev/null)
    done
    return 1
}

marked_processes() {
    local pid found
    # grep fails when nothing matches and when a process ends between listing and reading; both are fine.
    found=$(grep -lsF -- "$lab_mark" /proc/[0-9]*/environ /proc/[0-9]*/mountinfo || true)
    for pid in $(cut -s -d/ -f3 <<<"$found" | sort -un); do
        process_is_gone "$pid" || is_ancestor "$pid" || echo "$pid"
    done
}

no_marked_processes() { [ -z "$(marked_processes)" ]; }

signal_marked() {
    local pid
    for pid in $(marked_processes); do
        kill "-$1" "$pid" 2>/dev/null || true
    done
}

mounts_below_lab() { awk -v dir="$lab_dir/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | sort -r; }

unmount_all() {
    local mount_point
    for mount_point in $(mounts_below_lab); do
        umount --lazy "$mount_point" || true
    done
}

# Processes of ours first by SIGTERM, so that broker and guests close their files, then whatever is left by SIGKILL.
# Shares go in between: a process that waits for a hung one can't even be killed before.
sweep() {
    signal_marked TERM
    wait_until "$sweep_term_seconds" "all daemons end after SIGTERM" no_marked_processes 2>/dev/null || true
    unmount_all
    signal_marked KILL
    wait_until "$sweep_kill_seconds" "all daemons end after SIGKILL" no_marked_processes || true
}

# Prints one line for each thing that still refers to the laboratory's folder: marked or not, ours or a test's.
leftovers() {
    local file pid found
    for file in /proc/[0-9]*/cmdline; do
        pid=${file#/proc/} pid=${pid%/cmdline}
        if grep -qsF -- "$lab_dir/" "$file" && ! process_is_gone "$pid" && ! is_ancestor "$pid"; then
            echo "process $pid: $(tr '\0' ' ' <"$file" 2>/dev/null | cut -c 1-200)"
        fi
    done
    for pid in $(marked_processes); do
        echo "process $pid carries the laboratory's mark: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-200)"
    done
    # Mounts of every namespace: one that a lost process keeps counts as well.
    found=$(cat /proc/[0-9]*/mountinfo 2>/dev/null || true)
    awk -v dir="$lab_dir/" 'index($5, dir) == 1 {print "mount " $5}' <<<"$found" | sort -u
}
