# The laboratory's RabbitMQ: own node, ports, cookie and epmd, reachable from this machine only.
# shellcheck shell=bash

rabbitmq=/usr/lib/rabbitmq/bin # Debian's wrappers in /usr/sbin would switch to another user and its home
broker_start_seconds=60
broker_stop_seconds=15
broker_dir=$lab_dir/broker

write_broker_files() {
    mkdir -p "$broker_dir" "$lab_dir/bin"
    (umask 377 && { [ -e "$broker_dir/.erlang.cookie" ] || echo "longshore-$RANDOM$RANDOM$RANDOM" >"$broker_dir/.erlang.cookie"; })
    echo '[rabbitmq_management].' >"$broker_dir/enabled_plugins"
    cat >"$broker_dir/rabbitmq.conf" <<CONF
listeners.tcp.local = 127.0.0.1:$(lab_port amqp)
management.tcp.ip = 127.0.0.1
management.tcp.port = $(lab_port management)
disk_free_limit.absolute = 64MB
log.file.level = info
CONF
    # Schedulers that don't spin while idle: the machine is shared with guests under emulation.
    cat >"$broker_dir/environment" <<ENVIRONMENT
export HOME=$broker_dir
export ERL_EPMD_ADDRESS=127.0.0.1
export ERL_EPMD_PORT=$(lab_port epmd)
export RABBITMQ_NODENAME=longshore-$lab_name@localhost
export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
export RABBITMQ_DIST_PORT=$(lab_port distribution)
export RABBITMQ_MNESIA_BASE=$broker_dir/mnesia
export RABBITMQ_LOG_BASE=$broker_dir/log
export RABBITMQ_PID_FILE=$broker_dir/pid
export RABBITMQ_ENABLED_PLUGINS_FILE=$broker_dir/enabled_plugins
export RABBITMQ_CONFIG_FILE=$broker_dir/rabbitmq.conf
export RABBITMQ_CONF_ENV_FILE=/dev/null
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
ENVIRONMENT
    printf '#!/bin/sh\n. %s/environment\nexec %s/rabbitmqctl "$@"\n' "$broker_dir" "$rabbitmq" >"$lab_dir/bin/rabbitmqctl"
    chmod +x "$lab_dir/bin/rabbitmqctl"
}

broker_launch() {
    write_broker_files
    rm -f "$broker_dir/pid"
    LONGSHORE_LAB_MARK=$lab_mark setsid sh -c ". '$broker_dir/environment'; exec $rabbitmq/rabbitmq-server" \
        >"$broker_dir/output" 2>&1 </dev/null &
}

# The broker's first frame after our protocol header starts with a 1 (a method); a closed port or another program's won't.
amqp_answers() {
    local port first
    port=$(lab_port amqp)
    # The redirection of the group, not only of `exec`, keeps bash's own complaint about a closed port away.
    { exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || return 1
    printf 'AMQP\x00\x00\x09\x01' >&3
    first=$(timeout 2 head -c 1 <&3 2>/dev/null | od -An -tu1 | tr -d ' ')
    exec 3>&-
    [ "$first" = 1 ]
}

management_answers() {
    local status=
    { exec 3<>"/dev/tcp/127.0.0.1/$(lab_port management)"; } 2>/dev/null || return 1
    printf 'GET /api/overview HTTP/1.0\r\n\r\n' >&3
    read -r -t 2 status <&3 || true
    exec 3>&-
    [[ $status == *" 401 "* ]]
}

broker_answers() { amqp_answers && management_answers; }

broker_wait() {
    wait_until "$broker_start_seconds" "RabbitMQ answers on port $(lab_port amqp)" broker_answers ||
        { tail -n 20 "$broker_dir/output" >&2; return 1; }
}

# broker_end TERM|KILL: ends the node by the pid file that it wrote itself; its epmd stays for the next start.
broker_end() {
    local pid
    pid=$(cat "$broker_dir/pid" 2>/dev/null) || return 0
    carries_mark "$pid" || return 0
    kill "-$1" "$pid"
    wait_until "$broker_stop_seconds" "RabbitMQ's node ($pid) ends after SIG$1" process_is_gone "$pid"
}
