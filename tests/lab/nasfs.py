#!/usr/bin/env python3
"""A share that misbehaves when told to: a FUSE file system over a folder, for tests of what a bad NAS does to us.

    nasfs.py BACKING_DIR MOUNT_DIR CONTROL_FILE

CONTROL_FILE holds one JSON object, read anew for each operation; replace it by rename. Without it all is well.
    mode      ok            pass everything through (the default)
              hang          every operation waits until the mode changes, as behind a dead NFS server
              eio           every operation on content fails with EIO
              estale        every operation fails with ESTALE
              enospc        every write, and whatever makes a file or folder, fails with ENOSPC
              erofs         whatever would change something fails with EROFS, as when the server's disk has become read-only
              enospc_meta   writes that begin below byte `below` (default 327680: where qcow2 keeps its tables) fail
              late          writes are acknowledged and lost; fsync and close (once per open file) say `errno`, to whom `told` says
              flip          one byte at `offset` is inverted on its way, as by a bad cable
    file      only files whose name matches this pattern are touched by eio, enospc, erofs, enospc_meta, late and flip (`*`); one
              with a slash in it is matched with the whole path from the share's root on
    on        flip: `write` (what is stored is wrong) or `read` (what is returned is wrong); default write
    errno     late: name of the error, default EIO
    told      late: `writer` (default), or `others`: whoever else has the file open when it is written to, as behind an NFS
              client whose writer has closed the file before its pages were sent
    delay_ms  every operation takes this much longer
    bw_mb     writes share this bandwidth, in MiB/s
    read_mb   reads share this bandwidth, those that the page cache answers left out
    cap_mb    ENOSPC for every write after this many MiB

O_DIRECT works: the kernel passes such reads and writes straight to this process, past the page cache, and it leaves the
flag out on its own descriptor, where alignment isn't guaranteed. There is no write-back cache: every write arrives here
before write() returns, which is harsher than an NFS client, so trust what happens and not how long it takes. A file that is opened
again is read from the cache as far as it is in there, as behind a network client that sees no change of its attributes.
Locks are local to this machine. Needs fusepy and libfuse2.
"""
import errno
import fnmatch
import json
import os
import sys
import threading
import time

from fuse import FUSE, FuseOSError, Operations

MIB = 1 << 20
HANG_POLL_SECONDS = 0.05
QCOW2_TABLES_END = 327680


class Share(Operations):
    """Passes operations through to `root`, after asking the control file what should go wrong."""

    def __init__(self, root, control):
        self.root, self.control = root, control
        self.mutex = threading.Lock()
        self.reading = threading.Lock()
        self.written = 0
        self.owed = set()
        self.handles = {}

    def path(self, name):
        return os.path.join(self.root, name.lstrip("/"))

    def orders(self):
        try:
            with open(self.control, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return {}

    def gate(self, name):
        """What every operation goes through; returns the mode, or `ok` for a file that the orders don't mean."""
        while (orders := self.orders()).get("mode") == "hang":
            time.sleep(HANG_POLL_SECONDS)
        time.sleep(orders.get("delay_ms", 0) / 1000)
        mode = orders.get("mode", "ok")
        if mode == "estale":
            raise FuseOSError(errno.ESTALE)
        pattern = orders.get("file", "*")
        meant = fnmatch.fnmatch(name if "/" in pattern else os.path.basename(name), pattern)
        return (mode if meant else "ok"), orders

    def gate_content(self, name):
        mode, orders = self.gate(name)
        if mode == "eio":
            raise FuseOSError(errno.EIO)
        return mode, orders

    def gate_changing(self, name):
        mode, orders = self.gate(name)
        if mode == "erofs":
            raise FuseOSError(errno.EROFS)
        return mode, orders

    def gate_making(self, name):
        mode, _ = self.gate_content(name)
        if mode in ("enospc", "erofs"):
            raise FuseOSError(getattr(errno, mode.upper()))

    def gate_write(self, name, length, offset):
        mode, orders = self.gate_content(name)
        with self.mutex:
            wait_for(length, orders.get("bw_mb"))
            self.written += length
            over = self.written > orders.get("cap_mb", float("inf")) * MIB
        if mode == "erofs":
            raise FuseOSError(errno.EROFS)
        low = mode == "enospc_meta" and offset < orders.get("below", QCOW2_TABLES_END)
        if mode == "enospc" or low or over:
            raise FuseOSError(errno.ENOSPC)
        return mode, orders

    def open(self, path, flags):
        self.gate_content(path)
        return self.opened(os.open(self.path(path), flags & ~os.O_DIRECT))

    def create(self, path, mode, fi=None):
        self.gate_making(path)
        return self.opened(os.open(self.path(path), os.O_RDWR | os.O_CREAT, mode))

    def opened(self, fh):
        status = os.fstat(fh)
        with self.mutex:
            self.handles[fh] = (status.st_dev, status.st_ino)
        return fh

    def read(self, path, size, offset, fh):
        mode, orders = self.gate_content(path)
        with self.reading:
            wait_for(size, orders.get("read_mb"))
        data = os.pread(fh, size, offset)
        return flipped(data, offset, orders) if mode == "flip" and orders.get("on") == "read" else data

    def write(self, path, data, offset, fh):
        mode, orders = self.gate_write(path, len(data), offset)
        if mode == "late":
            with self.mutex:
                if orders.get("told") == "others":
                    self.owed.update(other for other, file in self.handles.items() if file == self.handles[fh] and other != fh)
                else:
                    self.owed.add(fh)
            # The size grows as a cache would show it; the bytes are what never arrives.
            if os.fstat(fh).st_size < offset + len(data):
                os.ftruncate(fh, offset + len(data))
            return len(data)
        if mode == "flip" and orders.get("on", "write") == "write":
            data = flipped(data, offset, orders)
        return os.pwrite(fh, data, offset)

    def pay(self, fh):
        """An error of earlier writes is reported once per open file, by whichever of fsync and close comes first."""
        with self.mutex:
            owed = fh in self.owed
            self.owed.discard(fh)
        if owed:
            raise FuseOSError(getattr(errno, self.orders().get("errno", "EIO")))

    def flush(self, path, fh):
        self.gate_content(path)
        self.pay(fh)

    def fsync(self, path, datasync, fh):
        self.gate_content(path)
        self.pay(fh)
        os.fsync(fh)

    def fsyncdir(self, path, datasync, fh):
        self.gate_content(path)

    def release(self, path, fh):
        with self.mutex:
            self.owed.discard(fh)
            del self.handles[fh]
        os.close(fh)

    def truncate(self, path, length, fh=None):
        self.gate_making(path)
        os.truncate(self.path(path), length)

    def getattr(self, path, fh=None):
        self.gate(path)
        status = os.lstat(self.path(path)) if fh is None else os.fstat(fh)
        fields = "st_atime st_ctime st_mtime st_gid st_uid st_mode st_nlink st_size st_blocks st_ino"
        return {field: getattr(status, field) for field in fields.split()}

    def readdir(self, path, fh):
        self.gate(path)
        return [".", "..", *os.listdir(self.path(path))]

    def statfs(self, path):
        self.gate(path)
        status = os.statvfs(self.root)
        fields = "f_bavail f_bfree f_blocks f_bsize f_favail f_ffree f_files f_flag f_frsize f_namemax"
        return {field: getattr(status, field) for field in fields.split()}

    def mkdir(self, path, mode):
        self.gate_making(path)
        os.mkdir(self.path(path), mode)

    def unlink(self, path):
        self.gate_changing(path)
        os.unlink(self.path(path))

    def rmdir(self, path):
        self.gate_changing(path)
        os.rmdir(self.path(path))

    def rename(self, old, new):
        self.gate_making(new)
        os.rename(self.path(old), self.path(new))

    def link(self, target, source):
        self.gate_making(target)
        os.link(self.path(source), self.path(target))

    def symlink(self, target, source):
        self.gate_making(target)
        os.symlink(source, self.path(target))

    def readlink(self, path):
        self.gate(path)
        return os.readlink(self.path(path))

    def chmod(self, path, mode):
        self.gate_changing(path)
        os.chmod(self.path(path), mode)

    def chown(self, path, uid, gid):
        self.gate_changing(path)
        os.chown(self.path(path), uid, gid, follow_symlinks=False)

    def utimens(self, path, times=None):
        self.gate_changing(path)
        os.utime(self.path(path), times, follow_symlinks=False)


def wait_for(length, bandwidth):
    if bandwidth:
        time.sleep(length / MIB / bandwidth)


def flipped(data, offset, orders):
    place = orders.get("offset", 0) - offset
    if not 0 <= place < len(data):
        return data
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1:]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    backing, mount, control = (os.path.abspath(argument) for argument in sys.argv[1:])
    # hard_remove: a file deleted while open vanishes at once, as its folder must look empty to who deletes that next.
    # kernel_cache: what was written is still in the page cache when the file is opened again.
    options = {"big_writes": True, "hard_remove": True, "kernel_cache": True}
    FUSE(Share(backing, control), mount, foreground=True, fsname="longshore-nasfs", **options)


if __name__ == "__main__":
    main()
