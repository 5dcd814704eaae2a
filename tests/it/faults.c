/* Preloaded into a process under test: its calls on the files of its database fail when they are told to. The directory
 * FAULTS holds the control files, each in force for as long as it exists:
 *
 *   sync    no sync works
 *   back    no sync of the database itself works, without its log: that of writing back
 *   write   there is no room for another byte
 *   room    the disk says that it is full
 *
 * FAULT_AT is "CALL NUMBER ERRNO TIMES": so many calls of this sort fail from this one on. CALL is write, read, sync,
 * truncate or unlink; ERRNO 0 makes a write or read short. The file `fired` tells that it has come to that, and `syncs`
 * has a byte for every sync that worked. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

enum { OTHER, DATABASE, BESIDE };
enum { PASS, SHORT, FAIL };

static int sort_of(const char *path) {
    const char *name = strstr(path, "/jobwire.db");
    if (name == NULL || strcmp(name, "/jobwire.db-shm") == 0) return OTHER;
    return strcmp(name, "/jobwire.db") == 0 ? DATABASE : BESIDE;
}

static int file_of(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return OTHER;
    path[length] = 0;
    return sort_of(path);
}

static void control(const char *name, char path[PATH_MAX]) { snprintf(path, PATH_MAX, "%s/%s", getenv("FAULTS"), name); }

static int told(const char *name) {
    char path[PATH_MAX];
    control(name, path);
    return access(path, F_OK) == 0;
}

static void note(const char *name) {
    char path[PATH_MAX];
    control(name, path);
    int out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (out < 0) return;
    (void)!NEXT(ssize_t (*)(int, const void *, size_t), "write")(out, "!", 1);
    close(out);
}

/* Whether this call is one of those that FAULT_AT names. */
static int turn(const char *call) {
    static atomic_int calls;
    char wanted[16];
    int number, error, times;
    const char *at = getenv("FAULT_AT");
    if (at == NULL || sscanf(at, "%15s %d %d %d", wanted, &number, &error, &times) != 4) return PASS;
    if (strcmp(call, wanted) != 0) return PASS;
    int mine = ++calls;
    if (mine < number || mine - number >= times) return PASS;
    note("fired");
    if (error == 0) return SHORT;
    errno = error;
    return FAIL;
}

static int sync_as(const char *function, int fd) {
    int (*real)(int) = NEXT(int (*)(int), function);
    int file = file_of(fd);
    if (file == OTHER) return real(fd);
    if (turn("sync") != PASS) return -1;
    if (told("sync") || (file == DATABASE && told("back"))) {
        errno = EIO;
        return -1;
    }
    int result = real(fd);
    if (result == 0) note("syncs");
    return result;
}

int fsync(int fd) { return sync_as("fsync", fd); }
int fdatasync(int fd) { return sync_as("fdatasync", fd); }

/* How many bytes may be written; -1 if none. */
static ssize_t writable(int fd, size_t count) {
    if (file_of(fd) == OTHER) return count;
    switch (turn("write")) {
    case SHORT: return count / 2;
    case FAIL: return -1;
    }
    if (!told("write")) return count;
    errno = ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t room = writable(fd, count);
    if (room < 0) return -1;
    return NEXT(ssize_t (*)(int, const void *, size_t), "write")(fd, bytes, room);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    ssize_t room = writable(fd, count);
    if (room < 0) return -1;
    return NEXT(ssize_t (*)(int, const void *, size_t, off_t), "pwrite")(fd, bytes, room, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    ssize_t room = writable(fd, count);
    if (room < 0) return -1;
    return NEXT(ssize_t (*)(int, const void *, size_t, off64_t), "pwrite64")(fd, bytes, room, at);
}

static ssize_t readable(int fd, size_t count) {
    if (file_of(fd) == OTHER) return count;
    switch (turn("read")) {
    case SHORT: return count / 2;
    case FAIL: return -1;
    }
    return count;
}

ssize_t read(int fd, void *bytes, size_t count) {
    ssize_t size = readable(fd, count);
    if (size < 0) return -1;
    return NEXT(ssize_t (*)(int, void *, size_t), "read")(fd, bytes, size);
}

ssize_t pread(int fd, void *bytes, size_t count, off_t at) {
    ssize_t size = readable(fd, count);
    if (size < 0) return -1;
    return NEXT(ssize_t (*)(int, void *, size_t, off_t), "pread")(fd, bytes, size, at);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    ssize_t size = readable(fd, count);
    if (size < 0) return -1;
    return NEXT(ssize_t (*)(int, void *, size_t, off64_t), "pread64")(fd, bytes, size, at);
}

int ftruncate(int fd, off_t length) {
    if (file_of(fd) != OTHER && turn("truncate") != PASS) return -1;
    return NEXT(int (*)(int, off_t), "ftruncate")(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    if (file_of(fd) != OTHER && turn("truncate") != PASS) return -1;
    return NEXT(int (*)(int, off64_t), "ftruncate64")(fd, length);
}

int unlink(const char *path) {
    if (sort_of(path) != OTHER && turn("unlink") != PASS) return -1;
    return NEXT(int (*)(const char *), "unlink")(path);
}

int statvfs64(const char *path, struct statvfs64 *stat) {
    int result = NEXT(int (*)(const char *, struct statvfs64 *), "statvfs64")(path, stat);
    if (result == 0 && told("room")) stat->f_bavail = 0;
    return result;
}

int statvfs(const char *path, struct statvfs *stat) {
    int result = NEXT(int (*)(const char *, struct statvfs *), "statvfs")(path, stat);
    if (result == 0 && told("room")) stat->f_bavail = 0;
    return result;
}
