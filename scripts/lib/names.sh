# A laboratory's name, folder, ports and mark. Everything else about it is derived from these.
# shellcheck shell=bash

lab_name=${LONGSHORE_LAB:-main}
[[ $lab_name =~ ^[a-z0-9][a-z0-9-]{0,12}$ && $lab_name != cache && $lab_name != venv && $lab_name != rabbitmq-4 ]] ||
    die "laboratory name \`$lab_name\` is not usable: 1 to 13 of a-z, 0-9 and -, and none of cache, venv, rabbitmq-4"
# A worker's run directory has at most 49 bytes (unix sockets lie below it), of which the tests take `/fleet/001/run`.
longest_lab_dir=35
# Elsewhere only where other users have to come to it and can't come to the checkout, or where the checkout's path is too long.
lab_base=${LONGSHORE_LAB_BASE:-$root/target/lab}
if ((${#lab_base} + 1 + ${#lab_name} > longest_lab_dir)); then
    lab_base=/var/tmp/lab-$(printf '%08x' "$(printf '%s' "$lab_base" | cksum | cut -d' ' -f1)")
fi
lab_dir=$lab_base/$lab_name
lab_cache=$root/target/lab/cache
# Which of its libvirt daemons: the one that everybody uses, or the `twin` of those who need two hosts.
libvirt_which=${LONGSHORE_LAB_LIBVIRT:-libvirt}
libvirt_socket=$lab_dir/$libvirt_which/run/libvirt/libvirt-sock

[[ $lab_dir != *[[:space:]]* ]] || die "\`$lab_dir\` holds white space, which the daemons' configuration can't carry"

# Daemons carry the mark in their environment; what runs in libvirt's mount namespace sees it as a mount's source.
# By it `down` finds all of them, whatever was killed before, and it ends with a colon so that `main` isn't `main-2`.
lab_mark=longshore-lab:$lab_dir:

# Below /var/tmp anybody could have made it before us.
make_lab_base() {
    mkdir -p -m 711 "$lab_base"
    { [ -O "$lab_base" ] && [ ! -L "$lab_base" ]; } || die "\`$lab_base\` belongs to somebody else"
}

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Four ports in a row (AMQP, distribution, management, epmd), below the kernel's ephemeral range, from the folder's name;
# the next four if somebody listens there. What was chosen is kept until `down`.
choose_ports() {
    local start base offset try
    start=$(printf '%s' "$lab_dir" | cksum | cut -d' ' -f1)
    for try in {0..49}; do
        base=$((20000 + (start + try) % 2500 * 4))
        for offset in 0 1 2 3; do
            if port_is_taken $((base + offset)); then continue 2; fi
        done
        echo "$base" >"$lab_dir/ports"
        return
    done
    die "found no four free ports from 20000 on in 50 tries"
}

# lab_port amqp|distribution|management|epmd
lab_port() {
    local base
    base=$(cat "$lab_dir/ports" 2>/dev/null) || die "laboratory \`$lab_name\` is not up: start it with \`scripts/lab up\`"
    case $1 in
    amqp) echo "$base" ;;
    distribution) echo $((base + 1)) ;;
    management) echo $((base + 2)) ;;
    epmd) echo $((base + 3)) ;;
    esac
}
