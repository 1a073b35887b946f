# What the bench compares us with, measured in the same run on the same disks: libvirt's and the kernel's own work with
# nothing of ours around it. Times are printed in milliseconds. Needs the addresses of `lab env`.
# shellcheck shell=bash

push_seconds=600
no_job() { [[ $("$LONGSHORE_LAB_VIRSH" domjobinfo "$1" 2>&1) == *None* ]]; }

# milliseconds COMMAND...: how long it took; its own output goes to stderr
milliseconds() {
    local begun=${EPOCHREALTIME/./}
    "$@" >&2
    echo $(((${EPOCHREALTIME/./} - begun) / 1000))
}

# push_backup GUEST FILE: libvirt's push backup of vda and then syncfs, because QEMU flushes nothing that it copied
push_backup() {
    local guest=$1 file=$2 request=$2.request.xml
    rm -f "$file"
    cat >"$request" <<XML
<domainbackup mode='push'>
  <disks><disk name='vda' backup='yes' type='file'><target file='$file'/><driver type='qcow2'/></disk></disks>
</domainbackup>
XML
    "$LONGSHORE_LAB_VIRSH" -q backup-begin "$guest" "$request"
    poll_seconds=0.02 wait_until "$push_seconds" "the push backup of $guest ends" no_job "$guest"
    sync --file-system "$file"
    rm -f "$request"
}

# push_since GUEST FILE SINCE NEXT: the same of what changed since the checkpoint SINCE, if that is named; the next begins at NEXT
push_since() {
    local guest=$1 file=$2 since=$3 request=$2.request.xml checkpoint=$2.checkpoint.xml
    rm -f "$file"
    cat >"$request" <<XML
<domainbackup mode='push'>
  ${since:+<incremental>$since</incremental>}
  <disks><disk name='vda' backup='yes' type='file'><target file='$file'/><driver type='qcow2'/></disk></disks>
</domainbackup>
XML
    echo "<domaincheckpoint><name>$4</name></domaincheckpoint>" >"$checkpoint"
    "$LONGSHORE_LAB_VIRSH" -q backup-begin "$guest" "$request" "$checkpoint"
    poll_seconds=0.02 wait_until "$push_seconds" "the push backup of $guest ends" no_job "$guest"
    sync --file-system "$file"
    [ -z "$since" ] || "$LONGSHORE_LAB_VIRSH" -q checkpoint-delete "$guest" "$since"
    rm -f "$request" "$checkpoint"
}

# convert_chain LEAF FILE: to storage, as fast as qemu-img can
convert_chain() {
    qemu-img convert -t none -T none -W -m 16 -f qcow2 -O qcow2 "$1" "$2"
    sync --file-system "$2"
}

direct_read() { dd if="$1" of=/dev/null iflag=direct bs=1M status=none; }

# freeze_begin_thaw GUEST FOLDER: the milliseconds that libvirt itself needs for the three calls, by virsh's own clock on
# one connection; the pull job is ended afterwards
freeze_begin_thaw() {
    local guest=$1 folder=$2
    cat >"$folder/pull.xml" <<XML
<domainbackup mode='pull'>
  <server transport='unix' socket='$folder/pull.sock'/>
  <disks>
    <disk name='vda' backup='yes' type='file'><scratch file='$folder/vda.scratch'/></disk>
    <disk name='vdb' backup='yes' type='file'><scratch file='$folder/vdb.scratch'/></disk>
  </disks>
</domainbackup>
XML
    "$LONGSHORE_LAB_VIRSH" --timing "domfsfreeze $guest; backup-begin $guest $folder/pull.xml; domfsthaw $guest" |
        awk -F'[: ]+' '/^\(Time:/ {sum += $2} END {printf "%.0f\n", sum}'
    "$LONGSHORE_LAB_VIRSH" -q domjobabort "$guest"
    wait_until "$push_seconds" "the pull job of $guest ends" no_job "$guest"
}

# forget_cached FILE: its content is read from the disk the next time
forget_cached() { dd if="$1" iflag=nocache count=0 status=none; }

# median NUMBER...
median() { printf '%s\n' "$@" | sort -n | awk '{a[NR] = $1} END {print a[int((NR + 1) / 2)]}'; }

# spread UNIT NUMBER...: median (least–greatest)
spread() {
    local unit=$1 sorted
    shift
    sorted=$(printf '%s\n' "$@" | sort -n)
    echo "$(median "$@") $unit ($(head -n 1 <<<"$sorted")–$(tail -n 1 <<<"$sorted"))"
}

# ratio OURS THEIRS: of the medians of two arrays, given by name
ratio() {
    local -n ours_of=$1 theirs_of=$2
    awk -v ours="$(median "${ours_of[@]}")" -v theirs="$(median "${theirs_of[@]}")" 'BEGIN {printf "%.2f\n", ours / theirs}'
}
