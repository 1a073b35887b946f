# Finds what belongs to the laboratory without trusting any pid file, ends it, and says what couldn't be ended.
# shellcheck shell=bash

sweep_seconds=10

process_is_gone() { [ ! -e "/proc/$1" ] || grep -qs '^State:[[:space:]]*[ZX]' "/proc/$1/status"; }

# Guards are given no environment but a few variables, of which their home is in the laboratory.
carries_mark() { grep -qsF -e "$lab_mark" -e "HOME=$lab_dir/" -- "/proc/$1/environ" "/proc/$1/mountinfo"; }

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
    found=$(grep -lsF -e "$lab_mark" -e "HOME=$lab_dir/" -- /proc/[0-9]*/environ /proc/[0-9]*/mountinfo || true)
    for pid in $(cut -s -d/ -f3 <<<"$found" | sort -un); do
        process_is_gone "$pid" || is_ancestor "$pid" || echo "$pid"
    done
}

# A dying one may have started another since the list was made, so this is polled until there are none.
killed_all_marked() {
    local pid found
    found=$(marked_processes)
    for pid in $found; do
        kill -KILL "$pid" 2>/dev/null || true
    done
    [ -z "$found" ]
}

mounts_below_lab() { awk -v dir="$lab_dir/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | sort -r; }

unmount_all() {
    local mount_point
    for mount_point in $(mounts_below_lab); do
        umount --lazy "$mount_point" || true
    done
}

# SIGKILL at once: their data goes with them, so there is nothing to close in order, and a hung one hears nothing else.
sweep() {
    wait_until "$sweep_seconds" "all of the laboratory's processes end" killed_all_marked || true
    unmount_all
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
