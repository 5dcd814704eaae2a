/* Preloaded into a process under test: writes down, in order, all that it does to the files below the directory
 * RECORD_ROOT, in the file RECORD_TO. What a call did is there before the call returns: whoever hears from the process
 * and then looks at the length of the record knows that all of it came before. trace.rs reads it. When the file
 * RECORD_KILL exists, the process dies after the next record: a kill from outside could come between a call and its
 * record.
 *
 * The index of the log (-shm) is left out: it is mapped memory, and worth nothing after a crash. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

struct record {
    char what;
    char padding[3];
    uint32_t size; /* of what follows: a name or the bytes written */
    uint64_t file; /* inode */
    uint64_t place; /* offset, length, or the number of a sync */
};

/* Held from before a change until it is written down, so that the order is the true one. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static void put(char what, uint64_t file, uint64_t place, const void *bytes, size_t size) {
    static int out = -1;
    if (out < 0)
        out = NEXT(int (*)(const char *, int, ...), "open64")(
            getenv("RECORD_TO"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct record head = {.what = what, .size = size, .file = file, .place = place};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)bytes, size}};
    if (writev(out, parts, 2) != (ssize_t)(sizeof head + size)) abort();
    if (access(getenv("RECORD_KILL"), F_OK) == 0) raise(SIGKILL);
}

/* The name below the root, or NULL. */
static const char *below(const char *path) {
    const char *root = getenv("RECORD_ROOT");
    size_t length = strlen(root), whole = strlen(path);
    if (strncmp(path, root, length) != 0) return NULL;
    if (path[length] == 0) return path + length;
    if (path[length] != '/') return NULL;
    if (whole > 4 && strcmp(path + whole - 4, "-shm") == 0) return NULL;
    return path + length + 1;
}

static const char *name_of(int fd, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return below(path);
}

static uint64_t inode(int fd) {
    struct stat64 stat;
    return fstat64(fd, &stat) == 0 ? stat.st_ino : 0;
}

static int open_as(const char *function, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = NEXT(int (*)(const char *, int, ...), function);
    const char *name = below(path);
    if (name == NULL) return real(path, flags, mode);
    pthread_mutex_lock(&order);
    /* Whether it was there before is known only if it must not be. */
    int created = flags & O_CREAT;
    int fd = real(path, created ? flags | O_EXCL : flags, mode);
    if (fd < 0 && created && !(flags & O_EXCL) && errno == EEXIST) {
        created = 0;
        fd = real(path, flags, mode);
    }
    int error = errno;
    if (fd >= 0) put(created ? 'C' : 'O', inode(fd), 0, name, strlen(name));
    pthread_mutex_unlock(&order);
    errno = error;
    return fd;
}

#define OPEN(function)                                                  \
    int function(const char *path, int flags, ...) {                    \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;       \
        va_end(rest);                                                   \
        return open_as(#function, path, flags, mode);                   \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    const char *name = below(path);
    pthread_mutex_lock(&order);
    int result = NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode), error = errno;
    if (result == 0 && name != NULL) put('D', 0, 0, name, strlen(name));
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

int unlink(const char *path) {
    const char *name = below(path);
    pthread_mutex_lock(&order);
    int result = NEXT(int (*)(const char *), "unlink")(path), error = errno;
    if (result == 0 && name != NULL) put('U', 0, 0, name, strlen(name));
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    char path[PATH_MAX];
    ssize_t (*real)(int, const void *, size_t) = NEXT(ssize_t (*)(int, const void *, size_t), "write");
    if (name_of(fd, path) == NULL) return real(fd, bytes, count);
    pthread_mutex_lock(&order);
    off64_t at = lseek64(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, bytes, count);
    int error = errno;
    if (done > 0) put('W', inode(fd), at, bytes, done);
    pthread_mutex_unlock(&order);
    errno = error;
    return done;
}

static ssize_t pwrite_as(const char *function, int fd, const void *bytes, size_t count, off64_t at) {
    char path[PATH_MAX];
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        NEXT(ssize_t (*)(int, const void *, size_t, off64_t), function);
    if (name_of(fd, path) == NULL) return real(fd, bytes, count, at);
    pthread_mutex_lock(&order);
    ssize_t done = real(fd, bytes, count, at);
    int error = errno;
    if (done > 0) put('W', inode(fd), at, bytes, done);
    pthread_mutex_unlock(&order);
    errno = error;
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite_as("pwrite", fd, bytes, count, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return pwrite_as("pwrite64", fd, bytes, count, at);
}

static int truncate_as(const char *function, int fd, off64_t length) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    pthread_mutex_lock(&order);
    int result = NEXT(int (*)(int, off64_t), function)(fd, length), error = errno;
    if (result == 0 && name != NULL) put('T', inode(fd), length, NULL, 0);
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

int ftruncate(int fd, off_t length) { return truncate_as("ftruncate", fd, length); }
int ftruncate64(int fd, off64_t length) { return truncate_as("ftruncate64", fd, length); }

/* What is written while a sync is under way may not be part of it: its begin and its end are two records. */
static int sync_as(const char *function, int fd) {
    static uint64_t syncs;
    char path[PATH_MAX];
    int (*real)(int) = NEXT(int (*)(int), function);
    const char *name = name_of(fd, path);
    if (name == NULL) return real(fd);
    pthread_mutex_lock(&order);
    uint64_t number = ++syncs;
    put('B', inode(fd), number, name, strlen(name));
    pthread_mutex_unlock(&order);
    int result = real(fd), error = errno;
    pthread_mutex_lock(&order);
    put(result == 0 ? 'E' : 'F', inode(fd), number, name, strlen(name));
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

int fsync(int fd) { return sync_as("fsync", fd); }
int fdatasync(int fd) { return sync_as("fdatasync", fd); }
