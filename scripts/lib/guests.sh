# Guests on the laboratory's libvirt. Each has a folder guests/NAME with its disks, `TARGET.reference.raw` (what a quiet
# disk must read as), `known.sha256` (the files on vda), `console.log`, `domain.xml` and `uuid`.
# shellcheck shell=bash

guest_boot_seconds=60
guest_stop_seconds=30
default_guest_disks=vdb:qcow2:256
default_bare_disks=vda:qcow2:64,vdb:raw:16

guest_dir() {
    [[ $1 =~ ^[a-z0-9][a-z0-9-]{0,15}$ ]] || die "guest name \`$1\` is not usable: 1 to 16 of a-z, 0-9 and -"
    echo "$lab_dir/guests/$1"
}

# disk_xml FOLDER GUEST TARGET FORMAT. virtio-blk cuts a serial at 20 bytes; 16 of name and 4 of target just fit.
disk_xml() {
    cat <<XML
    <disk type='file' device='disk'>
      <driver name='qemu' type='$4' discard='unmap'/>
      <source file='$1/$3.$4'/>
      <target dev='$3' bus='virtio'/>
      <serial>$2-$3</serial>
    </disk>
XML
}

# disk_words SPECS: of `TARGET:FORMAT:SIZE_MIB,…` each disk's three words on a line of its own
disk_words() {
    local spec
    for spec in ${1//,/ }; do
        [[ $spec =~ ^(vd[a-z]):(qcow2|raw):([1-9][0-9]{0,4})$ ]] ||
            die "disk \`$spec\` is not TARGET:FORMAT:SIZE_MIB, such as vdb:qcow2:256"
        echo "${BASH_REMATCH[@]:1}"
    done
}

# lab_disks SPECS
lab_disks() {
    local words target format size_mib
    words=$(disk_words "${1:?usage: lab disks TARGET:FORMAT:SIZE_MIB,...}")
    while read -r target format size_mib; do
        build_once "$(quiet_disk_dir "$target" "$format" "$size_mib")" fill_quiet_disk "$target" "$format" "$size_mib"
    done <<<"$words"
}

# quiet_disks FOLDER GUEST SPECS: makes the disks and prints their XML.
quiet_disks() {
    local folder=$1 guest=$2 words target format size_mib
    words=$(disk_words "$3")
    while read -r target format size_mib; do
        copy_quiet_disk "$folder" "$target" "$format" "$size_mib"
        disk_xml "$folder" "$guest" "$target" "$format"
    done <<<"$words"
}

# domain_xml NAME MEMORY_MIB OS_XML DISKS_XML CHANNEL_XML
domain_xml() {
    local folder
    folder=$(guest_dir "$1")
    cat <<XML
<domain type='qemu'>
  <name>$1</name>
  <memory unit='MiB'>$2</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>$3</os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
$4
    <serial type='file'><source path='$folder/console.log'/></serial>
    $5
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
XML
}

kernel_xml() {
    local made
    made=$(tiny_guest_dir)
    echo "<kernel>$made/vmlinuz</kernel><initrd>$made/initrd.gz</initrd>" \
        "<cmdline>console=ttyS0 quiet loglevel=3 panic=-1 $1</cmdline>"
}

# A firmware that does nothing but wait for what never comes: a machine that searched for an OS would cost more than all else where
# emulation is slow, as in a virtual host. 64 KiB, of which the processor begins with the last 16 bytes: hlt, and back to it.
halting_firmware() {
    head -c 65520 /dev/zero
    printf '\xf4\xeb\xfd'
    head -c 13 /dev/zero
}

# define NAME on|off: and starts it, or not
define() {
    local name=$1 power=$2 folder
    folder=$(guest_dir "$name")
    virsh_lab -q define "$folder/domain.xml"
    [ "$power" = off ] || virsh_lab -q start "$name"
    virsh_lab -q domuuid "$name" | awk NF >"$folder/uuid"
}

remove_guest() {
    local folder
    folder=$(guest_dir "$1")
    virsh_lab -q destroy "$1" >/dev/null 2>&1 || true
    if virsh_lab domuuid "$1" >/dev/null 2>&1; then
        virsh_lab -q undefine "$1" --checkpoints-metadata --snapshots-metadata --nvram
    fi
    rm -rf "$folder"
}

console_says() { grep -qaF "$2" "$(guest_dir "$1")/console.log" 2>/dev/null; }

agent_answers() {
    timeout 10 "$lab_dir/bin/virsh" -q qemu-agent-command "$1" '{"execute":"guest-ping"}' --timeout 5 >/dev/null 2>&1
}

wait_for_guest() {
    local name=$1 agent=$2
    if [ "$agent" = on ]; then
        wait_until "$guest_boot_seconds" "the agent of guest $name answers" agent_answers "$name"
    else
        wait_until "$guest_boot_seconds" "guest $name says ready" console_says "$name" "longshore-guest: ready"
    fi || { tail -n 20 "$(guest_dir "$name")/console.log" >&2; return 1; }
}

# A guest with an OS: vda with files and a growing counter, and quiet disks beside it.
lab_guest() {
    local name=${1:-} agent=on disks=$default_guest_disks folder quiet
    [ -n "$name" ] || die "usage: lab guest NAME [--no-agent] [--disks TARGET:FORMAT:SIZE_MIB,...]"
    shift
    while (($#)); do
        case $1 in
        --no-agent) agent=off ;;
        --disks) disks=${2:?--disks wants TARGET:FORMAT:SIZE_MIB,...}; shift ;;
        *) die "unknown option \`$1\` of lab guest" ;;
        esac
        shift
    done
    folder=$(guest_dir "$name")
    build_tiny_guest
    remove_guest "$name"
    mkdir -p "$folder"
    copy_system_disk "$folder"
    cp "$(system_disk_dir)/known.sha256" "$folder/known.sha256"
    echo "$agent" >"$folder/agent"
    quiet=$(quiet_disks "$folder" "$name" "$disks")
    domain_xml "$name" 128 "$(kernel_xml "longshore.agent=$agent")" "$(disk_xml "$folder" "$name" vda qcow2; echo "$quiet")" \
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>" >"$folder/domain.xml"
    define "$name" on
    wait_for_guest "$name" "$agent"
    echo "$folder"
}

# A domain without an OS; its disks back up all the same and it runs within a second.
lab_bare() {
    local name=${1:-} disks=$default_bare_disks power=on folder quiet
    [ -n "$name" ] || die "usage: lab bare NAME [--off] [--disks TARGET:FORMAT:SIZE_MIB,...]"
    shift
    while (($#)); do
        case $1 in
        --off) power=off ;;
        --disks) disks=${2:?--disks wants TARGET:FORMAT:SIZE_MIB,...}; shift ;;
        *) die "unknown option \`$1\` of lab bare" ;;
        esac
        shift
    done
    folder=$(guest_dir "$name")
    remove_guest "$name"
    mkdir -p "$folder"
    halting_firmware >"$folder/firmware.rom"
    quiet=$(quiet_disks "$folder" "$name" "$disks")
    domain_xml "$name" 16 "<loader readonly='yes' type='rom'>$folder/firmware.rom</loader>" "$quiet" "" >"$folder/domain.xml"
    define "$name" "$power"
    echo "$folder"
}

# agent NAME COMMAND ARGUMENTS_JSON FILTER: what jq's filter makes of the agent's answer
agent() {
    virsh_lab -q qemu-agent-command "$1" "{\"execute\":\"$2\",\"arguments\":$3}" --timeout 10 | jq -r "$4"
}

# agent_open NAME PATH MODE: the handle of the opened file
agent_open() { agent "$1" guest-file-open "$(jq -nc --arg path "$2" --arg mode "$3" '{path: $path, mode: $mode}')" .return; }

lab_write() {
    local name=${1:?usage: lab write GUEST PATH TEXT} path=${2:?} text=${3:?} handle
    handle=$(agent_open "$name" "$path" w)
    agent "$name" guest-file-write "{\"handle\":$handle,\"buf-b64\":\"$(base64 -w0 <<<"$text")\"}" .return.count >/dev/null
    agent "$name" guest-file-flush "{\"handle\":$handle}" . >/dev/null
    agent "$name" guest-file-close "{\"handle\":$handle}" . >/dev/null
}

lab_read() {
    local name=${1:?usage: lab read GUEST PATH} path=${2:?} handle
    handle=$(agent_open "$name" "$path" r) && [ -n "$handle" ] || return
    agent "$name" guest-file-read "{\"handle\":$handle,\"count\":65536}" '.return["buf-b64"]' | base64 -d
    agent "$name" guest-file-close "{\"handle\":$handle}" . >/dev/null
}

guest_is_shut_off() { [ "$(virsh_lab -q domstate "$1" | awk NF)" = "shut off" ]; }

# Through the agent where there is one, so that the file system is clean afterwards; otherwise the plug is pulled.
lab_stop() {
    local name=${1:?usage: lab stop NAME}
    if [ "$(cat "$(guest_dir "$name")/agent" 2>/dev/null)" = on ]; then
        # A guest that is gone before its agent has answered makes virsh fail; whether it stops is looked at below.
        virsh_lab -q shutdown "$name" --mode agent >/dev/null || say "the agent of $name did not answer its shutdown"
        wait_until "$guest_stop_seconds" "guest $name shuts down" guest_is_shut_off "$name"
    else
        virsh_lab -q destroy "$name" >/dev/null
    fi
}

lab_start() {
    local name=${1:?usage: lab start NAME} agent
    agent=$(cat "$(guest_dir "$name")/agent" 2>/dev/null) || agent=
    rm -f "$(guest_dir "$name")/console.log"
    virsh_lab -q start "$name"
    [ -z "$agent" ] || wait_for_guest "$name" "$agent"
}
