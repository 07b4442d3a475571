/* Preloaded, makes the n-th operation of this process that changes something below a directory fail as told.

   It stands before the C library, so it reaches Python, Rust and C++ alike. Nothing happens until `faults_arm`. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, MOVE = 4, REMOVE = 8, SYNC = 16, ALL = 32 };

static char root[PATH_MAX];
static long at, count, counts[ALL];
static int number, kinds, stays;

/* From the `nth` operation of one of the kinds on, from 0: only that one fails, or it stays so. -1: only count. */
void faults_arm(const char *below, long nth, int error, int of_kinds, int for_good) {
    snprintf(root, sizeof root, "%s", below);
    at = nth, number = error, kinds = of_kinds, stays = for_good, count = 0;
}

long faults_count(int kind) { return counts[kind]; }

static int is_below(int directory, const char *path) {
    char name[64], full[PATH_MAX];
    if (!root[0] || !path) return 0;
    if (path[0] == '/' || directory == AT_FDCWD) return strncmp(path, root, strlen(root)) == 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(name, full, sizeof full - 1);
    return length > 0 && strncmp(full, root, strlen(root)) == 0;
}

static int fails(int kind, int below) {
    if (!below) return 0;
    __atomic_fetch_add(&counts[kind], 1, __ATOMIC_SEQ_CST);
    if (!(kind & kinds)) return 0;
    long now = __atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
    if (at < 0 || now < at || (now > at && !stays)) return 0;
    errno = number;
    return 1;
}

static int path_fails(int kind, int directory, const char *path) { return fails(kind, is_below(directory, path)); }
static int file_fails(int kind, int file) { return root[0] && fails(kind, is_below(file, "")); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
#define CHANGES(flags) ((flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0)
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        if (CHANGES(flags) && path_fails(CREATE, AT_FDCWD, path)) return -1; \
        return REAL(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        MODE(flags) \
        if (CHANGES(flags) && path_fails(CREATE, directory, path)) return -1; \
        return REAL(name)(directory, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        if (how[0] != 'r' && path_fails(CREATE, AT_FDCWD, path)) return NULL; \
        return REAL(name)(path, how); \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define FAILING(kind, test, result, name, parameters, arguments) \
    result name parameters { return test ? -1 : REAL(name) arguments; }
#define ON_FILE(kind, result, name, parameters, arguments) \
    FAILING(kind, file_fails(kind, file), result, name, parameters, arguments)
#define ON_PATH(kind, result, name, parameters, arguments) \
    FAILING(kind, path_fails(kind, AT_FDCWD, path), result, name, parameters, arguments)
#define IN_DIRECTORY(kind, result, name, parameters, arguments) \
    FAILING(kind, path_fails(kind, directory, path), result, name, parameters, arguments)

ON_FILE(WRITE, ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
ON_FILE(WRITE, ssize_t, pwrite, (int file, const void *data, size_t size, off_t place), (file, data, size, place))
ON_FILE(WRITE, ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t place), (file, data, size, place))
ON_FILE(WRITE, ssize_t, writev, (int file, const struct iovec *parts, int number_of), (file, parts, number_of))
ON_FILE(WRITE, int, ftruncate, (int file, off_t size), (file, size))
ON_FILE(WRITE, int, ftruncate64, (int file, off64_t size), (file, size))
ON_FILE(SYNC, int, fsync, (int file), (file))
ON_FILE(SYNC, int, fdatasync, (int file), (file))
ON_PATH(CREATE, int, mkdir, (const char *path, mode_t mode), (path, mode))
IN_DIRECTORY(CREATE, int, mkdirat, (int directory, const char *path, mode_t mode), (directory, path, mode))
ON_PATH(REMOVE, int, unlink, (const char *path), (path))
ON_PATH(REMOVE, int, rmdir, (const char *path), (path))
IN_DIRECTORY(REMOVE, int, unlinkat, (int directory, const char *path, int flags), (directory, path, flags))
ON_PATH(MOVE, int, rename, (const char *path, const char *target), (path, target))
IN_DIRECTORY(MOVE, int, renameat, (int directory, const char *path, int to, const char *target),
             (directory, path, to, target))
