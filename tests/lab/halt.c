/* Halts a process at a chosen write of its SQLite journal, from outside: it is preloaded (LD_PRELOAD), and the program has no hook for it.
 *
 * LONGSHORE_HALT names a folder. Once `order` is in it, transactions of the log `*.sqlite-wal` are counted from 1 on:
 *     kill|hold before|after N TEXT
 * Only those count of which a page holds TEXT; without one, all. `before`: nothing of the transaction is on the disk that would make it
 * count. `after`: all of it is synced, and nobody was told yet. `kill` is SIGKILL to the process and to nobody else; `hold` waits, and
 * with it whoever waits for the journal, until `go` is in the folder. What was done is said by a file `halted`, which is there before.
 * Children don't get it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define POLL_MICROSECONDS 2000
#define FRAME_HEAD_BYTES 24

static char folder[512];
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    int given, done, kill, after;
    long number;
    char text[256];
    ino_t file;
    struct timespec since;
} order;
static long counted;

/* Of the transaction that this thread writes: frames so far, whether it counts, and whether it is the one. */
static __thread int frames, counts, is_it;

__attribute__((constructor)) static void begin(void) {
    const char *named = getenv("LONGSHORE_HALT");
    real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    if (named && strlen(named) < sizeof folder - 16) strcpy(folder, named);
    unsetenv("LONGSHORE_HALT");
    unsetenv("LD_PRELOAD");
}

static void path_of(const char *name, char *path, size_t size) { snprintf(path, size, "%s/%s", folder, name); }

static int is_log(int file) {
    char link[64], target[1024];
    ssize_t length;
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, target, sizeof target - 1);
    return length > 11 && !memcmp(target + length - 11, ".sqlite-wal", 11);
}

/* One that is taken away or replaced is forgotten, and what was counted for it. */
static void read_order(void) {
    char path[600], line[400], verb[8], place[8];
    int words, used = 0;
    FILE *file;
    struct stat now;
    path_of("order", path, sizeof path);
    if (stat(path, &now)) {
        order.given = 0;
        return;
    }
    if (order.given && order.file == now.st_ino && order.since.tv_sec == now.st_mtim.tv_sec &&
        order.since.tv_nsec == now.st_mtim.tv_nsec)
        return;
    order.given = order.done = counted = 0;
    order.file = now.st_ino;
    order.since = now.st_mtim;
    if (!(file = fopen(path, "re"))) return;
    if (fgets(line, sizeof line, file)) {
        words = sscanf(line, "%7s %7s %ld%n", verb, place, &order.number, &used);
        if (words == 3) {
            order.given = 1;
            order.kill = !strcmp(verb, "kill");
            order.after = !strcmp(place, "after");
            line[strcspn(line, "\n")] = 0;
            snprintf(order.text, sizeof order.text, "%s", line[used] ? line + used + 1 : "");
        }
    }
    fclose(file);
}

static void halt(void) {
    char path[600];
    int said;
    order.done = 1;
    path_of("halted", path, sizeof path);
    said = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (said >= 0) close(said);
    if (order.kill) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    path_of("go", path, sizeof path);
    while (access(path, F_OK)) usleep(POLL_MICROSECONDS);
}

/* A piece of the transaction is about to be written. */
static void writes(const void *bytes, size_t length) {
    pthread_mutex_lock(&mutex);
    read_order();
    if (order.given && !order.done && !counts && (!order.text[0] || memmem(bytes, length, order.text, strlen(order.text)))) {
        counts = 1;
        is_it = ++counted == order.number;
        if (is_it && !order.after) halt();
    }
    pthread_mutex_unlock(&mutex);
}

static void synced(void) {
    pthread_mutex_lock(&mutex);
    if (is_it && order.after && !order.done) halt();
    frames = counts = is_it = 0;
    pthread_mutex_unlock(&mutex);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset) {
    /* Not the head of the whole log, which is written anew when the log begins again. */
    if (offset > 0 && length >= FRAME_HEAD_BYTES && is_log(file)) {
        frames++;
        writes(bytes, length);
    }
    return real_pwrite64(file, bytes, length, offset);
}

int fdatasync(int file) {
    int result = real_fdatasync(file);
    /* What folds the log syncs it too, on another thread, which has written nothing to it. */
    if (!result && frames && is_log(file)) synced();
    return result;
}

int fsync(int file) {
    int result = real_fsync(file);
    if (!result && frames && is_log(file)) synced();
    return result;
}
