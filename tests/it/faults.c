/* Preloaded into a process under test: syncs and writes of its database fail once a control file exists, and every
 * sync that works is noted. The files are named by FAULT_SYNC, FAULT_WRITE and FAULT_LOG; FAULT_BACK is that of syncs
 * of the database itself, without its log: those of writing back. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* 0: another file, 1: the database, 2: what belongs to it. */
static int of_database(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    const char *name = strstr(path, "/jobwire.db");
    if (name == NULL) return 0;
    return strcmp(name, "/jobwire.db") == 0 ? 1 : 2;
}

static int asked(const char *variable) {
    const char *file = getenv(variable);
    return file != NULL && access(file, F_OK) == 0;
}

static int sync_with(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int file = of_database(fd);
    if (file == 0) return real(fd);
    if (asked("FAULT_SYNC") || (file == 1 && asked("FAULT_BACK"))) {
        errno = EIO;
        return -1;
    }
    int result = real(fd);
    const char *log = getenv("FAULT_LOG");
    if (result == 0 && log != NULL) {
        int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (out >= 0) {
            ssize_t (*put)(int, const void *, size_t) =
                (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
            (void)!put(out, "s", 1);
            close(out);
        }
    }
    return result;
}

int fdatasync(int fd) { return sync_with("fdatasync", fd); }

int fsync(int fd) { return sync_with("fsync", fd); }

static int full(int fd) {
    if (!asked("FAULT_WRITE") || !of_database(fd)) return 0;
    errno = ENOSPC;
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (full(fd)) return -1;
    return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    if (full(fd)) return -1;
    return ((ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite"))(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    if (full(fd)) return -1;
    return ((ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64"))(fd, bytes, count, at);
}
