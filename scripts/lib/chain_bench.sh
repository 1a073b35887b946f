# What the bench measures of chains: incremental backups, the restore through one, and reading all of it again, each beside the same done
# with bare tools on the same files. Needs fleet.sh, baselines.sh and the bench's own `row`.
# shellcheck shell=bash

changed_mib=100
# A full backup and three of what changed.
restored_images=4

# change GUEST ROUND: bytes of its own at a place of its own
change() {
    local device=/machine/peripheral/virtio-disk0/virtio-backend at=$((2 * changed_mib * $2))
    "$LONGSHORE_LAB_VIRSH" -q qemu-monitor-command "$1" --hmp "qemu-io -d $device \"write -P $((32 + $2)) ${at}M ${changed_mib}M\"" >&2
}

# chain_of GUEST: the images of its backups of vda, the oldest first
chain_of() {
    local manifest
    for manifest in "$fleet_share/instances/$(cat "$lab_dir/guests/$1/uuid")"/*/manifest.json; do
        printf '%s %s\n' "$(jq .number "$manifest")" "$(dirname "$manifest")/vda.qcow2"
    done | sort -n | cut -d' ' -f2
}

steps_of_last_job() { grep -ao 'steps_ms="[^"]*"' "$fleet_dir/worker.log" | tail -n 1 | sed 's/steps_ms="\(.*\)"/\1/'; }

incremental_speed() {
    local round push=() ours=() idle_push=() idle=() stored=() manifest image=$fleet_dir/push.qcow2
    push_since bench "$image" "" bare-0 >&2
    back_up bench --mode full >&2
    for ((round = 1; round <= rounds; round++)); do
        change bench "$round"
        push+=("$(milliseconds push_since bench "$image" "bare-$((2 * round - 2))" "bare-$((2 * round - 1))")")
        ours+=("$(milliseconds back_up bench --mode incremental)")
        manifest=$(chain_of bench | tail -n 1 | xargs dirname)/manifest.json
        stored+=("$(jq '.disks[0].file_bytes / 1048576 | floor' "$manifest")")
        idle_push+=("$(milliseconds push_since bench "$image" "bare-$((2 * round - 1))" "bare-$((2 * round))")")
        idle+=("$(milliseconds back_up bench --mode incremental)")
    done
    row "incremental backup of $changed_mib MiB changed of $disk_mib, compared" "$(spread ms "${ours[@]}")" \
        "libvirt's push and syncfs $(spread ms "${push[@]}")" "$(ratio ours push)" "≤ 2"
    row "its image" "$(spread MiB "${stored[@]}")" "$changed_mib MiB changed" \
        "$(awk -v stored="$(median "${stored[@]}")" -v changed="$changed_mib" 'BEGIN {printf "%.2f", stored / changed}')" "≤ 1.05"
    row "incremental backup of nothing changed" "$(spread ms "${idle[@]}")" \
        "libvirt's push and syncfs $(spread ms "${idle_push[@]}")" "$(ratio idle idle_push)" ""
    row "its steps, ms" "$(steps_of_last_job)" "" "" ""
}

restore_speed() {
    local round convert=() ours=() direct=() images=() leaf image target=$lab_dir/guests/bench/convert.qcow2
    mapfile -t images < <(chain_of bench | head -n "$restored_images")
    leaf=${images[-1]}
    "$LONGSHORE_LAB_VIRSH" -q destroy bench
    for ((round = 0; round < rounds; round++)); do
        for image in "${images[@]}"; do forget_cached "$image"; done
        rm -f "$target"
        convert+=("$(milliseconds convert_chain "$leaf" "$target")")
        for image in "${images[@]}"; do forget_cached "$image"; done
        ours+=("$(milliseconds publish_job restore bench --backup "$(basename "$(dirname "$leaf")")")")
        direct+=("$(milliseconds direct_read "$lab_dir/guests/bench/vda.qcow2")")
    done
    qemu-img compare -q "$target" "$lab_dir/guests/bench/vda.qcow2" >&2
    rm -f "$target"
    row "restore of a full and $((${#images[@]} - 1)) incremental backups, compared" "$(spread ms "${ours[@]}")" \
        "qemu-img convert -t none -T none -W -m 16 $(spread ms "${convert[@]}")" "$(ratio ours convert)" "≤ 1.1 + 1.15 × the reading"
    row "" "" "O_DIRECT read of the volume $(spread ms "${direct[@]}")" "" ""
}

validation_speed() {
    local round hashed=() ours=() images=() image
    mapfile -t images < <(chain_of bench)
    for ((round = 0; round < rounds; round++)); do
        for image in "${images[@]}"; do forget_cached "$image"; done
        hashed+=("$(milliseconds b3sum --no-names "${images[@]}")")
        for image in "${images[@]}"; do forget_cached "$image"; done
        ours+=("$(milliseconds validate_all)")
    done
    row "validation of the content of ${#images[@]} backups in a chain" "$(spread ms "${ours[@]}")" "b3sum of their images $(spread ms "${hashed[@]}")" \
        "$(ratio ours hashed)" "≤ 1.1"
}

validate_all() {
    LONGSHORE__BROKER__URI=$(broker_of "$fleet_planner") "$longshore" job publish repo-validate --host "$fleet_host" --level content \
        --repository-id "$(cat "$fleet_repository")" --type directory --address "$fleet_share" --watch
}
