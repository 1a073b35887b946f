# A worker in the laboratory and jobs for it, for the demo and the bench. Needs names.sh and the addresses of `lab env`.
# shellcheck shell=bash

fleet_dir=$lab_dir/fleet
fleet_host=demo
fleet_share=$fleet_dir/share
fleet_repository=$fleet_dir/repository-id
fleet_config=$fleet_dir/worker.toml
fleet_passwords=$fleet_dir/passwords
# Publishes its jobs and reads their events.
fleet_planner=demo.planner
worker_start_seconds=30
# More than its drain and the way back of what it then stops.
worker_stop_seconds=60
longshore=${LONGSHORE_BIN:-${CARGO_TARGET_DIR:-$root/target}/debug/longshore}

# broker_of USER: where that user finds the broker.
broker_of() { echo "amqp://$1:$(cat "$fleet_passwords/$1")@127.0.0.1:$LONGSHORE_LAB_AMQP_PORT/%2f"; }

# The lab's broker outlives the folder with the passwords.
secure_broker() {
    LONGSHORE_MANAGEMENT_PASSWORD=guest "$longshore" broker setup --management "http://${LONGSHORE_LAB_MANAGEMENT_URI#*@}" --user guest \
        --host "$fleet_host" --publisher "$fleet_planner" --event-reader "$fleet_planner" --passwords "$fleet_passwords" --new-passwords \
        --amqp "amqp://127.0.0.1:$LONGSHORE_LAB_AMQP_PORT"
}

# The share is a directory beside the disks, on the same file system: the worker must be told that this is meant.
write_worker_config() {
    mkdir -p "$fleet_dir"/{state,run,scratch} "$fleet_share"
    # The broker's password is in it.
    install -m 600 /dev/null "$fleet_config"
    cat >"$fleet_config" <<CONFIG
host = "$fleet_host"

[broker]
uri = "$(broker_of "$fleet_host")"

[libvirt]
uri = "$LONGSHORE_LAB_LIBVIRT_URI"

[worker]
state_dir = "$fleet_dir/state"
run_dir = "$fleet_dir/run"
drain_seconds = 20

[scratch]
dir = "$fleet_dir/scratch"

[backup]
same_device_ok = true
CONFIG
}

worker_consumes() { "$LONGSHORE_LAB_RABBITMQCTL" -q list_consumers queue_name 2>/dev/null | grep -qx "longshore.jobs.$fleet_host"; }

# Its home is the laboratory's, by which `lab down` ends it and its guards too where we can't.
start_worker() {
    mkdir -p "$fleet_dir"
    secure_broker >"$fleet_dir/setup.log" || { cat "$fleet_dir/setup.log" >&2; return 1; }
    write_worker_config
    "$longshore" repository init "$fleet_share" >"$fleet_repository" || return
    HOME=$fleet_dir "$longshore" worker --config "$fleet_config" >"$fleet_dir/worker.log" 2>&1 </dev/null &
    worker_pid=$!
    wait_until "$worker_start_seconds" "the worker consumes longshore.jobs.$fleet_host" worker_consumes ||
        { tail -n 20 "$fleet_dir/worker.log" >&2; return 1; }
}

stop_worker() {
    [ -n "${worker_pid:-}" ] || return 0
    local status=0
    kill -TERM "$worker_pid" 2>/dev/null || true
    wait_until "$worker_stop_seconds" "the worker ends after SIGTERM" process_is_gone "$worker_pid" ||
        kill -KILL "$worker_pid"
    wait "$worker_pid" || status=$?
    worker_pid=
    return "$status"
}

# The folder itself is a mount (share_fleet_mounts), and stays.
empty_fleet() { rm -rf "${fleet_dir:?}"/*; }

backups_of() {
    local manifest
    for manifest in "$fleet_share/instances/$1"/*/manifest.json; do
        [ ! -e "$manifest" ] || dirname "$manifest"
    done
}

# publish_job KIND GUEST OPTION...: publishes, and follows the job to its end
publish_job() {
    local kind=$1 guest=$2
    shift 2
    LONGSHORE__BROKER__URI=$(broker_of "$fleet_planner") "$longshore" job publish "$kind" --host "$fleet_host" \
        --instance "$guest" --repository-id "$(cat "$fleet_repository")" --type directory --address "$fleet_share" --watch "$@"
}

# back_up GUEST OPTION...: leaves the new backup's folder in $backup
back_up() {
    local guest=$1 instance before
    shift
    instance=$(cat "$lab_dir/guests/$guest/uuid")
    before=$(backups_of "$instance")
    publish_job backup "$guest" "$@"
    backup=$(comm -13 <(echo "$before") <(backups_of "$instance"))
    [ -d "$backup" ] || die "the job is done, but no new backup is on \`$fleet_share\`"
}
