# The disks of the laboratory's guests: made once from a recipe, kept in target/lab/cache and copied for each guest.
# shellcheck shell=bash

content=$root/tests/lab/content.py
system_disk_mib=512

system_disk_dir() { recipe_folder vda "${BASH_SOURCE[0]}" "$content"; }

fill_system_disk() {
    python3 "$content" files tree
    (cd tree && find known -type f | sort | while read -r file; do sha256sum "$file"; done) >known.sha256
    truncate -s "${system_disk_mib}M" vda.raw
    mke2fs -q -t ext4 -L longshore -d tree vda.raw
    qemu-img convert -f raw -O qcow2 vda.raw vda.qcow2
    rm -rf tree vda.raw
}

quiet_disk_dir() { echo "$(recipe_folder quiet "${BASH_SOURCE[0]}" "$content")-$1-$2-$3"; }

# fill_quiet_disk SEED FORMAT SIZE_MIB: reference.raw is what the guest must see; disk.FORMAT is the disk itself.
fill_quiet_disk() {
    local seed=$1 format=$2 size_mib=$3 offset length
    python3 "$content" disk reference.raw "$size_mib" "$seed" >zeros
    if [ "$format" = raw ]; then
        cp --sparse=auto reference.raw disk.raw
        return
    fi
    # convert turns zeros into holes: put half of them back as written zeros and half as zero clusters.
    qemu-img convert -f raw -O qcow2 reference.raw disk.qcow2
    while read -r offset length; do
        if ((offset / 1048576 % 2)); then echo "write -q -P 0 $offset $length"; else echo "write -q -z $offset $length"; fi
    done <zeros | qemu-io -f qcow2 disk.qcow2 >/dev/null
    qemu-img compare -q -f raw -F qcow2 reference.raw disk.qcow2
}

# copy_system_disk FOLDER
copy_system_disk() {
    build_once "$(system_disk_dir)" fill_system_disk
    cp --sparse=auto "$(system_disk_dir)/vda.qcow2" "$1/vda.qcow2"
}

# copy_quiet_disk FOLDER TARGET FORMAT SIZE_MIB: the target's name is the seed, so two disks of a guest differ.
copy_quiet_disk() {
    local folder=$1 target=$2 format=$3 size_mib=$4 made
    made=$(quiet_disk_dir "$target" "$format" "$size_mib")
    build_once "$made" fill_quiet_disk "$target" "$format" "$size_mib"
    cp --sparse=auto "$made/disk.$format" "$folder/$target.$format"
    ln -s "$made/reference.raw" "$folder/$target.reference.raw"
}
