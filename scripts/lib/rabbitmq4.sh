# Debian 13's RabbitMQ 4.0, which the tests run beside Debian 12's 3.10: its packages, with all that they need down to the C
# library, unpacked into target/lab/rabbitmq-4. Nothing of it is installed. Needs common.sh and `archive_uri`.
# shellcheck shell=bash

rabbitmq4=$root/target/lab/rabbitmq-4
rabbitmq4_suite=trixie
rabbitmq4_packages="rabbitmq-server bash coreutils gawk grep sed"
download_tries=3

# An apt of its own, which knows one suite and finds nothing installed.
apt_apart() {
    apt-get -qq -o Dir::State="$PWD/apt" -o Dir::State::status="$PWD/apt/status" -o Dir::Cache="$PWD/apt" -o Dir::Etc::SourceList="$PWD/apt/list" \
        -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Parts=/dev/null -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
        -o Acquire::Retries="$download_tries" "$@"
}

# Fills the folder that it is in.
unpack_rabbitmq4() {
    local package
    mkdir -p apt/lists/partial apt/archives/partial root
    : >apt/status
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(archive_uri) $rabbitmq4_suite main" >apt/list
    apt_apart update
    # shellcheck disable=SC2086  # a list of words
    apt_apart -y --download-only install $rabbitmq4_packages >/dev/null
    for package in apt/archives/*.deb; do dpkg-deb -x "$package" root; done
    # What the packages' scripts would have made, as far as a node needs it.
    mkdir -p root/{dev,proc,mnt}
    ln -s bash root/usr/bin/sh
    ln -s gawk root/usr/bin/awk
    echo "127.0.0.1 localhost" >root/etc/hosts
    rm -rf root/usr/share/{doc,man,locale,info}
    # The tests start it in here: a library that is missing is found now, and not by them.
    chroot root /usr/bin/sh -c 'awk "BEGIN {exit}" && test -x /usr/lib/rabbitmq/bin/rabbitmq-server && test -x /usr/lib/erlang/erts-*/bin/beam.smp'
}

# The stamp is this file: a changed recipe unpacks anew. A folder is put into its place when it is whole.
need_rabbitmq4() {
    local work
    ! cmp -s "${BASH_SOURCE[0]}" "$rabbitmq4/stamp" || return 0
    [ "$(id -u)" = 0 ] || die "unpacking RabbitMQ 4 needs root"
    say "unpacking Debian 13's RabbitMQ for the tests, 70 MB to download"
    mkdir -p "$(dirname "$rabbitmq4")"
    work=$(mktemp -d "$rabbitmq4.XXXXXX")
    # Not as a condition: bash ignores `set -e` in there.
    trap 'rm -rf "$work"' RETURN
    (cd "$work" && set -e && unpack_rabbitmq4)
    cp "${BASH_SOURCE[0]}" "$work/root/stamp"
    rm -rf "$rabbitmq4"
    mv -T "$work/root" "$rabbitmq4"
}
