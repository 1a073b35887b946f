# A Linux small enough to boot under plain emulation in a few seconds, with QEMU's real guest agent in it: Debian's cloud
# kernel (ext4 built in, virtio as modules), busybox and qemu-ga, packed once into target/lab/cache.
# shellcheck shell=bash

guest_init=$root/tests/lab/guest-init
guest_modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console"

# Files made from a recipe live in a folder named by the recipe's checksum: a changed recipe is another folder.
recipe_folder() {
    local kind=$1
    shift
    echo "$lab_cache/$kind-$(cat "$@" | sha256sum | cut -c 1-16)"
}

tiny_guest_dir() { recipe_folder guest "${BASH_SOURCE[0]}" "$guest_init"; }

# build_once FOLDER COMMAND...: COMMAND fills a temporary folder, which is renamed into place only when it is whole, so
# a build that was killed is never taken for a finished one, and of two at once the second finds the first's.
build_once() {
    local folder=$1 work status
    shift
    [ ! -d "$folder" ] || return 0
    mkdir -p "$lab_cache"
    work=$(mktemp -d "$lab_cache/.building-XXXXXX")
    # Not as the condition of an `if`: bash ignores `set -e` in there, and a failed line would go unnoticed.
    set +e
    (set -e; cd "$work"; "$@")
    status=$?
    set -e
    if ((status != 0)); then
        rm -rf "$work"
        die "cannot build \`$folder\`"
    fi
    mv -T "$work" "$folder" 2>/dev/null || rm -rf "$work"
}

download_guest_packages() {
    local kernel
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
    # As root without the _apt user's sandbox: that user can't write here.
    apt-get -o APT::Sandbox::User=root -qq download "$kernel" qemu-guest-agent
}

fill_tiny_guest() {
    local name library modules
    # The package lists may be older than the archive, which then no longer has the version they name.
    download_guest_packages 2>/dev/null || { apt-get -qq update && download_guest_packages; }
    for name in ./*.deb; do dpkg -x "$name" unpacked; done
    cp unpacked/boot/vmlinuz-* vmlinuz
    mkdir -p initrd/{bin,sbin,dev,proc,sys,mnt,run,lib/modules,usr/sbin,var/run}
    modules=$(find unpacked/lib/modules -maxdepth 2 -name kernel)
    for name in $guest_modules; do find "$modules" -name "$name.ko" -exec cp {} initrd/lib/modules/ \; ; done
    cp "$(command -v busybox)" initrd/bin/busybox
    cp unpacked/usr/sbin/qemu-ga initrd/usr/sbin/
    # qemu-ga's libraries come from this machine, which has them because QEMU itself uses them.
    for library in $(ldd unpacked/usr/sbin/qemu-ga | grep -oE '/[^ ]+'); do
        mkdir -p "initrd$(dirname "$library")"
        cp -L "$library" "initrd$library"
    done
    # What the agent calls to shut down; the init loop does the rest.
    printf '#!/bin/busybox sh\n/bin/busybox touch /run/shutdown\n' >initrd/sbin/shutdown
    cp "$guest_init" initrd/init
    chmod +x initrd/init initrd/sbin/shutdown
    (cd initrd && find . | cpio --quiet -o -H newc | gzip -1) >initrd.gz
    rm -rf unpacked initrd ./*.deb
}

build_tiny_guest() { build_once "$(tiny_guest_dir)" fill_tiny_guest; }
