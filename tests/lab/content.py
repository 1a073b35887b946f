#!/usr/bin/env python3
"""Makes the content of the laboratory's disks, the same on every machine.

    content.py files DIR                 a small tree of files for the first disk
    content.py disk IMAGE SIZE_MIB SEED  a raw disk: random data, written zeros and holes, mixed
                                         prints a line `OFFSET LENGTH` for each stretch of written zeros

A backup's mistakes sit at edges: so there are stretches that begin and end off any cluster, an island of 512 bytes in
a hole, one of zeros in data, and data in the disk's last sector.
"""
import os
import random
import sys

MIB = 1 << 20
SECTOR = 512


def write_files(folder):
    source = random.Random("longshore known files")
    os.makedirs(os.path.join(folder, "known/deep/er"))
    contents = {
        "known/letter.txt": b"What you read here was on the disk when the backup was taken.\n",
        "known/empty": b"",
        "known/one mebibyte": source.randbytes(MIB),
        "known/deep/er/eleven.bin": source.randbytes(11 * MIB + 11),
        "known/deep/zeros.bin": bytes(2 * MIB),
    }
    for name, content in contents.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


def write_disk(image, size, seed):
    source = random.Random(f"longshore disk {seed}")
    zeros = []
    with open(image, "wb") as disk:
        disk.truncate(size)

        def put(offset, content):
            disk.seek(offset)
            disk.write(content)

        def put_zeros(offset, length):
            put(offset, bytes(length))
            zeros.append((offset, length))

        for start in range(0, size, MIB):
            length = min(MIB, size - start)
            kind = source.choices(["data", "hole", "zeros", "island", "ragged"], [45, 25, 10, 10, 10])[0]
            if kind == "data":
                put(start, source.randbytes(length))
            elif kind == "zeros":
                put_zeros(start, length)
            elif kind == "island":
                put(start + source.randrange(length // SECTOR) * SECTOR, source.randbytes(SECTOR))
            elif kind == "ragged":
                put(start, source.randbytes(length))
                first = source.randrange(length // SECTOR // 2) * SECTOR
                put_zeros(start + first, source.randrange(1, length // SECTOR // 2) * SECTOR)
        put(size - SECTOR, source.randbytes(SECTOR))
    return zeros


def main():
    match sys.argv[1:]:
        case ["files", folder]:
            write_files(folder)
        case ["disk", image, size_mib, seed]:
            for offset, length in write_disk(image, int(size_mib) * MIB, seed):
                print(offset, length)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
