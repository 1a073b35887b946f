# Boots a backup's image in a throw-away machine and lets the guest itself say which files it finds.
# shellcheck shell=bash

boot_check_seconds=90
boot_check_memory_mib=128

# lab_boot_check IMAGE [FORMAT]: the image is only read; what the guest writes goes to a temporary overlay.
lab_boot_check() {
    local image=${1:?usage: lab boot-check IMAGE [FORMAT]} format=${2:-qcow2} made work
    [ -r "$image" ] || die "cannot read image \`$image\`"
    build_tiny_guest
    build_once "$(system_disk_dir)" fill_system_disk
    made=$(tiny_guest_dir)
    mkdir -p "$lab_dir"
    work=$(mktemp -d "$lab_dir/boot-check-XXXXXX")
    # Of a QEMU that does not start there is no console, which is as telling.
    : >"$work/console"
    TMPDIR=$work LONGSHORE_LAB_MARK=$lab_mark timeout --kill-after=5 "$boot_check_seconds" qemu-system-x86_64 \
        -machine pc,accel=tcg -m "$boot_check_memory_mib" -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$made/vmlinuz" -initrd "$made/initrd.gz" -append "console=ttyS0 quiet loglevel=3 panic=-1 longshore.show" \
        -drive "file=${image//,/,,},format=$format,if=virtio,snapshot=on" -serial "file:$work/console" </dev/null ||
        say "QEMU ended with status $?"
    tr -d '\r' <"$work/console" >"$work/text"
    sed -n '/^longshore-guest: files begin/,/^longshore-guest: files end/p' "$work/text" | sed '1d;$d' >"$work/found"
    cat "$work/found"
    grep -a '^longshore-guest: counter' "$work/text" >&2 || true
    local status=0
    if ! diff -u "$(system_disk_dir)/known.sha256" "$work/found" >&2; then
        say "the guest of \`$image\` does not see the files that were put there; its console:"
        tail -n 20 "$work/text" >&2
        status=1
    fi
    rm -rf "$work"
    return $status
}
