/* Preloaded into a process: counts the calls that change files under one folder, and lets the n-th of them go wrong.
 *
 * Compiled by tests/faults.py, which arms it in a forked child, so that what is imported is imported already.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* KILL: the process ends before the call, a write half done. EIO, ENOSPC: it fails once. BROKEN: it fails, and so does
 * every later one. INT: Ctrl-C comes before it. INTS: before it, and before every later one. */
enum { NOTHING, KILL, FAIL_EIO, FAIL_ENOSPC, BROKEN, INT, INTS };

static char root[PATH_MAX];
static size_t root_length;
static long wanted;
static int kind, plain, log_handle = -1, arrived = -1, gate = -1;
static volatile int armed;
static atomic_long count;

void fault_arm(const char *folder, long at, int what, int no_flags, int log, int here, int wait) {
    snprintf(root, sizeof root, "%s/", folder);
    root_length = strlen(root);
    wanted = at;
    kind = what;
    plain = no_flags;
    log_handle = log;
    arrived = here;
    gate = wait;
    count = 0;
    armed = 1;
}

void fault_disarm(void) { armed = 0; }

long fault_count(void) { return count; }

/* What is sent and got is a call on a path in a folder of its own: "network:/send". */
static int on_network(void) { return strncmp(root, "network:", 8) == 0; }

static void full_path(char *to, int folder, const char *path) {
    char link[64];
    ssize_t length = 0;
    if (path[0] != '/') {
        if (folder == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, to, PATH_MAX - 1);
        if (length < 0)
            length = 0;
        to[length++] = '/';
    }
    snprintf(to + length, PATH_MAX - length, "%s", path);
}

static void path_of(char *to, int handle) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, to, PATH_MAX - 1);
    to[length < 0 ? 0 : length] = 0;
}

/* Of a call on a path: 0 where it is to be made, 1 where errno says how it failed, 2 where it is the last one. */
static int hit(const char *name, const char *path) {
    char line[PATH_MAX + 64];
    int itself = strncmp(path, root, root_length - 1) == 0 && path[root_length - 1] == 0;
    if (!armed || (!itself && strncmp(path, root, root_length) != 0))
        return 0;
    int before = errno;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (log_handle >= 0) {
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, name, itself ? "." : path + root_length);
        syscall(SYS_write, log_handle, line, length);
    }
    if (number == 1 && gate >= 0) { /* two runs start together: each waits until both are here */
        char one = '!';
        syscall(SYS_write, arrived, &one, 1);
        syscall(SYS_read, gate, &one, 1);
    }
    errno = before;
    if (number < wanted || (number > wanted && kind != BROKEN && kind != INTS))
        return 0;
    switch (kind) {
    case KILL: return 2;
    case FAIL_EIO: case BROKEN: errno = EIO; return 1;
    case FAIL_ENOSPC: errno = ENOSPC; return 1;
    case INT: case INTS: kill(getpid(), SIGINT); errno = before; return 0;
    default: return 0;
    }
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int fails_at(const char *name, int folder, const char *path) {
    char full[2 * PATH_MAX];
    if (!armed || path == NULL)
        return 0;
    full_path(full, folder, path);
    int found = hit(name, full);
    if (found == 2)
        end();
    return found;
}

static int fails_on(const char *name, int handle) {
    char full[PATH_MAX];
    if (!armed)
        return 0;
    path_of(full, handle);
    int found = hit(name, full);
    if (found == 2)
        end();
    return found;
}

static void *real(void **kept, const char *name) {
    if (*kept == NULL)
        *kept = dlsym(RTLD_NEXT, name);
    return *kept;
}

#define REAL(name) ((__typeof__(&name))real(&real_##name, #name))
#define WRITES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))

#define OPEN(name)                                                                  \
    static void *real_##name;                                                       \
    int name(const char *path, int flags, ...) {                                    \
        va_list rest;                                                               \
        va_start(rest, flags);                                                      \
        mode_t mode = va_arg(rest, mode_t);                                         \
        va_end(rest);                                                               \
        if (WRITES(flags) && fails_at("open", AT_FDCWD, path)) return -1;           \
        return ((int (*)(const char *, int, ...))REAL(name))(path, flags, mode);    \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                            \
    static void *real_##name;                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                    \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        mode_t mode = va_arg(rest, mode_t);                                                     \
        va_end(rest);                                                                           \
        if (WRITES(flags) && fails_at("open", folder, path)) return -1;                         \
        return ((int (*)(int, const char *, int, ...))REAL(name))(folder, path, flags, mode);   \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                              \
    static void *real_##name;                                                                    \
    FILE *name(const char *path, const char *mode) {                                             \
        if (strpbrk(mode, "wa+") && fails_at("open", AT_FDCWD, path)) return NULL;               \
        return ((FILE * (*)(const char *, const char *))REAL(name))(path, mode);                 \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* A kill comes in the middle of what is written. */
#define WRITE(name, extra, pass)                                                                       \
    static void *real_##name;                                                                          \
    ssize_t name(int handle, const void *bytes, size_t size extra) {                                   \
        char full[PATH_MAX];                                                                           \
        int found = 0;                                                                                 \
        if (armed) {                                                                                   \
            path_of(full, handle);                                                                     \
            found = hit("write", full);                                                                \
        }                                                                                              \
        if (found == 1) return -1;                                                                     \
        if (found == 2) {                                                                              \
            ((ssize_t (*)())REAL(name))(handle, bytes, size / 2 pass);                                 \
            end();                                                                                     \
        }                                                                                              \
        return ((ssize_t (*)())REAL(name))(handle, bytes, size pass);                                  \
    }
#define COMMA ,
WRITE(write, , )
WRITE(pwrite, COMMA off_t where, COMMA where)
WRITE(pwrite64, COMMA off64_t where, COMMA where)

static void *real_writev;
ssize_t writev(int handle, const struct iovec *parts, int many) {
    return fails_on("write", handle) ? -1 : REAL(writev)(handle, parts, many);
}

/* What the C library writes of its own, for numpy: its inner calls do not come by here. */
static void *real_fwrite;
size_t fwrite(const void *bytes, size_t size, size_t many, FILE *file) {
    return fails_on("write", fileno(file)) ? 0 : REAL(fwrite)(bytes, size, many, file);
}

#define PATH_CALL(name, arguments, folder, path, pass)                              \
    static void *real_##name;                                                       \
    int name arguments { return fails_at(#name, folder, path) ? -1 : REAL(name) pass; }
PATH_CALL(unlink, (const char *path), AT_FDCWD, path, (path))
PATH_CALL(unlinkat, (int folder, const char *path, int flags), folder, path, (folder, path, flags))
PATH_CALL(rmdir, (const char *path), AT_FDCWD, path, (path))
PATH_CALL(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
PATH_CALL(mkdirat, (int folder, const char *path, mode_t mode), folder, path, (folder, path, mode))
PATH_CALL(rename, (const char *path, const char *to), AT_FDCWD, to, (path, to))
PATH_CALL(renameat, (int a, const char *path, int b, const char *to), b, to, (a, path, b, to))
PATH_CALL(link, (const char *path, const char *to), AT_FDCWD, to, (path, to))
PATH_CALL(linkat, (int a, const char *path, int b, const char *to, int flags), b, to, (a, path, b, to, flags))
PATH_CALL(symlink, (const char *path, const char *to), AT_FDCWD, to, (path, to))
PATH_CALL(symlinkat, (const char *path, int b, const char *to), b, to, (path, b, to))
PATH_CALL(chmod, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
PATH_CALL(fchmodat, (int folder, const char *path, mode_t mode, int flags), folder, path, (folder, path, mode, flags))
PATH_CALL(truncate, (const char *path, off_t size), AT_FDCWD, path, (path, size))
PATH_CALL(truncate64, (const char *path, off64_t size), AT_FDCWD, path, (path, size))
PATH_CALL(utimensat, (int folder, const char *path, const struct timespec times[2], int flags), folder, path,
          (folder, path, times, flags))

static void *real_renameat2;
int renameat2(int a, const char *path, int b, const char *to, unsigned int flags) {
    if (armed && plain && flags) { /* a system that does not know them */
        errno = EINVAL;
        return -1;
    }
    if (fails_at(flags == 2 ? "exchange" : "rename", b, to))
        return -1;
    return REAL(renameat2)(a, path, b, to, flags);
}

#define HANDLE_CALL(type, name, arguments, handle, pass)                            \
    static void *real_##name;                                                       \
    type name arguments { return fails_on(#name, handle) ? -1 : REAL(name) pass; }
HANDLE_CALL(int, fsync, (int handle), handle, (handle))
HANDLE_CALL(int, fdatasync, (int handle), handle, (handle))
HANDLE_CALL(int, fchmod, (int handle, mode_t mode), handle, (handle, mode))
HANDLE_CALL(int, ftruncate, (int handle, off_t size), handle, (handle, size))
HANDLE_CALL(int, ftruncate64, (int handle, off64_t size), handle, (handle, size))
HANDLE_CALL(int, fallocate, (int handle, int mode, off_t from, off_t size), handle, (handle, mode, from, size))
HANDLE_CALL(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned int flags), to,
            (from, a, to, b, size, flags))

/* Declared here: <sys/sendfile.h> renames one into the other. */
#define SENDFILE(name)                                                                          \
    static void *real_##name;                                                                   \
    ssize_t name(int to, int from, off_t *where, size_t size) {                                 \
        if (fails_on("sendfile", to)) return -1;                                                \
        void *found = real(&real_##name, #name);                                                \
        return ((ssize_t (*)(int, int, off_t *, size_t))found)(to, from, where, size);          \
    }
SENDFILE(sendfile)
SENDFILE(sendfile64)

/* A connection on which something went wrong is one no more. */
static int lost(int handle) {
    int before = errno;
    shutdown(handle, SHUT_RDWR);
    errno = before;
    return -1;
}

#define NETWORK_CALL(type, name, arguments, pass)                                   \
    static void *real_##name;                                                       \
    type name arguments {                                                           \
        int found = armed && on_network() ? hit(#name, "network:/") : 0;            \
        if (found == 2)                                                             \
            end();                                                                  \
        return found ? lost(handle) : REAL(name) pass;                              \
    }
NETWORK_CALL(int, connect, (int handle, const struct sockaddr *to, socklen_t size), (handle, to, size))
NETWORK_CALL(ssize_t, recv, (int handle, void *bytes, size_t size, int flags), (handle, bytes, size, flags))

/* A kill comes in the middle of what is sent. */
static void *real_send;
ssize_t send(int handle, const void *bytes, size_t size, int flags) {
    int found = armed && on_network() ? hit("send", "network:/") : 0;
    if (found == 1)
        return lost(handle);
    if (found == 2) {
        REAL(send)(handle, bytes, size / 2, flags);
        end();
    }
    return REAL(send)(handle, bytes, size, flags);
}
