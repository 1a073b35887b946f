"""The faulty share does what it is ordered to: a fault injector that injects nothing would make every test green.

Run by scripts/test inside a laboratory (`scripts/lab env`).
"""
import errno
import json
import mmap
import os
import pathlib
import subprocess
import threading
import time
import unittest

TOOL = pathlib.Path(__file__).with_name("faulty-share")
BLOCK = 4096


def share(*arguments):
    return subprocess.run([TOOL, *arguments], check=True, capture_output=True, text=True, timeout=30).stdout.strip()


class FaultyShare(unittest.TestCase):
    def setUp(self):
        self.addCleanup(share, "down", "nasfs-test")
        self.folder = pathlib.Path(share("up", "nasfs-test"))
        self.backing = self.folder.with_name("nasfs-test.backing")

    def order(self, **orders):
        share("set", "nasfs-test", json.dumps(orders))

    def assert_fails(self, code, action):
        with self.assertRaises(OSError) as caught:
            action()
        self.assertEqual(errno.errorcode[caught.exception.errno], errno.errorcode[code])

    def open_new(self, name):
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT)
        return descriptor

    def test_without_orders_it_stores_what_is_written(self):
        content = os.urandom(3 * BLOCK)
        (self.folder / "file").write_bytes(content)
        self.assertEqual((self.backing / "file").read_bytes(), content)
        (self.folder / "file").rename(self.folder / "renamed")
        self.assertEqual(os.listdir(self.folder), ["renamed"])

    def test_a_file_opened_for_direct_io_reads_what_is_stored_now_and_not_what_was_cached(self):
        (self.folder / "file").write_bytes(b"a" * BLOCK)
        self.assertEqual((self.folder / "file").read_bytes(), b"a" * BLOCK)
        (self.backing / "file").write_bytes(b"b" * BLOCK)
        self.assertEqual((self.folder / "file").read_bytes(), b"a" * BLOCK, "the cache is asked, as it is by network clients")
        descriptor = os.open(self.folder / "file", os.O_RDONLY | os.O_DIRECT)
        self.addCleanup(os.close, descriptor)
        with mmap.mmap(-1, BLOCK) as aligned:
            self.assertEqual(os.preadv(descriptor, [aligned], 0), BLOCK)
            self.assertEqual(aligned[:], b"b" * BLOCK)

    def test_a_slow_share_takes_its_time_for_what_the_cache_does_not_answer(self):
        path = self.folder / "file"
        path.write_bytes(bytes(1 << 18))
        self.order(read_mb=0.5)

        def seconds():
            began = time.monotonic()
            path.read_bytes()
            return time.monotonic() - began
        self.assertGreaterEqual(seconds(), 0.5)
        self.assertLess(seconds(), 0.5)
        subprocess.run(["dd", "iflag=nocache", "count=0", "status=none", f"if={path}"], check=True)
        self.assertGreaterEqual(seconds(), 0.5)

    def test_a_full_share_refuses_writes_and_new_files(self):
        descriptor = self.open_new("file")
        self.order(mode="enospc")
        self.assert_fails(errno.ENOSPC, lambda: os.write(descriptor, b"x"))
        self.assert_fails(errno.ENOSPC, lambda: os.mkdir(self.folder / "more"))
        self.order()
        os.close(descriptor)

    def test_a_share_with_little_room_is_full_after_it(self):
        self.order(cap_mb=1)
        descriptor = self.open_new("file")
        os.write(descriptor, bytes(BLOCK))
        self.assert_fails(errno.ENOSPC, lambda: [os.pwrite(descriptor, bytes(1 << 16), 0) for _ in range(17)])
        os.close(descriptor)

    def test_only_the_tables_at_the_start_find_no_room(self):
        descriptor = self.open_new("image")
        self.order(mode="enospc_meta")
        os.pwrite(descriptor, b"data", 1 << 20)
        self.assert_fails(errno.ENOSPC, lambda: os.pwrite(descriptor, b"table", 65536))
        os.close(descriptor)

    def test_errors_and_stale_handles_reach_the_reader(self):
        (self.folder / "file").write_bytes(b"x")
        self.order(mode="eio")
        self.assert_fails(errno.EIO, lambda: (self.folder / "file").read_bytes())
        self.order(mode="estale")
        self.assert_fails(errno.ESTALE, lambda: os.statvfs(self.folder))

    def test_a_read_only_share_changes_nothing_and_is_read(self):
        (self.folder / "file").write_bytes(b"x")
        self.order(mode="erofs")
        self.assert_fails(errno.EROFS, lambda: (self.folder / "file").write_bytes(b"y"))
        self.assert_fails(errno.EROFS, lambda: (self.folder / "other").write_bytes(b"y"))
        self.assert_fails(errno.EROFS, lambda: (self.folder / "file").unlink())
        self.assertEqual((self.folder / "file").read_bytes(), b"x")

    def test_a_late_write_error_shows_at_fsync_only_and_once(self):
        descriptor = self.open_new("file")
        self.order(mode="late", errno="EDQUOT")
        os.write(descriptor, b"lost")
        self.assert_fails(errno.EDQUOT, lambda: os.fsync(descriptor))
        os.fsync(descriptor)
        os.close(descriptor)
        self.assertEqual((self.backing / "file").read_bytes(), bytes(4))

    def test_a_late_write_error_shows_at_close_where_nobody_asked_before(self):
        self.order(mode="late")
        descriptor = self.open_new("file")
        os.write(descriptor, b"lost")
        self.assert_fails(errno.EIO, lambda: os.close(descriptor))

    def test_a_late_write_error_can_be_told_to_those_alone_who_had_the_file_open_before(self):
        held, writer = self.open_new("file"), self.open_new("file")
        self.order(mode="late", told="others")
        os.write(writer, b"lost")
        os.fsync(writer)
        os.close(writer)
        later = self.open_new("file")
        os.fsync(later)
        os.close(later)
        self.assert_fails(errno.EIO, lambda: os.fsync(held))
        os.close(held)

    def test_a_pattern_with_a_slash_means_a_path(self):
        for folder in ("a", "b"):
            (self.folder / folder).mkdir()
            (self.folder / folder / "file").write_bytes(b"x")
        self.order(mode="eio", file="*/a/file")
        self.assert_fails(errno.EIO, lambda: (self.folder / "a" / "file").read_bytes())
        self.assertEqual((self.folder / "b" / "file").read_bytes(), b"x")

    def test_a_byte_flips_on_its_way_in_and_only_in_the_file_that_was_named(self):
        self.order(mode="flip", file="*.qcow2", offset=5000)
        for name in ("a.qcow2", "a.json"):
            (self.folder / name).write_bytes(bytes(2 * BLOCK))
        stored = (self.backing / "a.qcow2").read_bytes()
        self.assertEqual([place for place, byte in enumerate(stored) if byte], [5000])
        self.assertEqual((self.backing / "a.json").read_bytes(), bytes(2 * BLOCK))

    def test_a_byte_flips_on_its_way_out_and_what_is_stored_stays_right(self):
        (self.backing / "file").write_bytes(bytes(BLOCK))
        self.order(mode="flip", on="read", offset=7)
        self.assertEqual((self.folder / "file").read_bytes()[7], 0xFF)
        self.assertEqual((self.backing / "file").read_bytes(), bytes(BLOCK))

    def test_a_hung_share_answers_nobody_until_it_is_told_to(self):
        self.order(mode="hang")
        answered = threading.Event()

        def ask():
            os.statvfs(self.folder)
            answered.set()

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        self.assertFalse(answered.wait(1))
        self.order(mode="ok")
        self.assertTrue(answered.wait(10))
        asking.join(10)

    def test_a_hung_share_can_be_taken_away(self):
        self.order(mode="hang")
        reader = subprocess.Popen(["cat", self.folder / "file"], stderr=subprocess.DEVNULL)
        with self.assertRaises(subprocess.TimeoutExpired):
            reader.wait(0.5)
        share("down", "nasfs-test")
        self.assertNotEqual(reader.wait(10), 0)
        self.assertNotIn(str(self.folder), pathlib.Path("/proc/self/mountinfo").read_text())


if __name__ == "__main__":
    unittest.main()
