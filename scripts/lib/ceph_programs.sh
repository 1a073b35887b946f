# Debian's Ceph daemons, unpacked once into target/lab/cache. Nothing of them is installed: as packages they bring LVM, SMART and units of
# their own to the machine. What asks and mounts comes with ceph-common, which is installed (scripts/setup).
# shellcheck shell=bash

ceph_packages="ceph-mon ceph-mgr ceph-osd ceph-mds ceph-base librados2 libleveldb1d libsnappy1v5 libboost-python1.74.0 libpython3.11"

ceph_programs() { recipe_folder ceph "${BASH_SOURCE[0]}"; }

download_ceph() {
    # shellcheck disable=SC2086  # a list of words
    apt-get -o APT::Sandbox::User=root -qq download $ceph_packages
}

fill_ceph() {
    local package
    download_ceph 2>/dev/null || { apt-get -qq update && download_ceph; }
    for package in ./*.deb; do dpkg -x "$package" .; done
    rm -rf ./*.deb usr/share etc lib
    # The tests start them: a library that is missing is found now, and not by them.
    ! LD_LIBRARY_PATH=$PWD/usr/lib/x86_64-linux-gnu ldd usr/bin/ceph-{mon,mgr,osd,mds} | grep 'not found' >&2
}
