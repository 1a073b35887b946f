# What every script here shares: where things are, how they speak and how they wait.
# Data goes to stdout, everything else to stderr.
# shellcheck shell=bash
set -euo pipefail
shopt -s inherit_errexit

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/target/lab/venv

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

# A script that `set -e` ends says where: a silent exit is the hardest one to explain.
set -o errtrace
trap 'say "${BASH_SOURCE[0]##*/}:$LINENO: \`$BASH_COMMAND\` failed with status $?"' ERR

# How often wait_until looks.
poll_seconds=0.1

# wait_until SECONDS WHAT COMMAND...: polls the command; past the deadline it says what didn't happen.
wait_until() {
    local seconds=$1 what=$2
    shift 2
    local deadline=$((SECONDS + seconds))
    until "$@"; do
        if ((SECONDS >= deadline)); then
            say "${0##*/}: $what: not within ${seconds} s"
            return 1
        fi
        sleep "$poll_seconds"
    done
}
