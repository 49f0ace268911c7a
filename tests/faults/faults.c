/* Faults under a process: what it asks of files below one folder is counted, and the Nth time goes wrong.
 *
 * Loaded with LD_PRELOAD; the process arms it through ctypes. A kill comes before the call, and in the midst
 * of a write: half of the bytes are there. A full disk takes half of the Nth write, and nothing after it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, SHORT, CLOCK };

static volatile long armed_at = -1, counted;
static int armed_mode;
static char root[PATH_MAX];

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); \
	if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void faults_arm(int mode, long at, const char *folder) {
	strncpy(root, folder, sizeof root - 1);
	counted = 0;
	armed_mode = mode;
	armed_at = at;
}

long faults_disarm(void) {
	armed_at = -1;
	return counted;
}

static int below(const char *path) {
	return armed_at >= 0 && path && !strncmp(path, root, strlen(root));
}

static int holds(int fd) {
	char link[64], path[PATH_MAX];
	if (armed_at < 0) return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t size = readlink(link, path, sizeof path - 1);
	if (size < 0) return 0;
	path[size] = 0;
	return below(path);
}

/* Count a call; die there where that is asked for. Returns how far behind the Nth it is. */
static long struck(void) {
	long now = __sync_add_and_fetch(&counted, 1);
	if (armed_mode == KILL && now == armed_at) {
		kill(getpid(), SIGKILL);
		for (;;) pause();
	}
	return now - armed_at;
}

static int refused(void) {
	if (struck() < 0 || armed_mode != FULL) return 0;
	errno = ENOSPC;
	return 1;
}

static int dies_in_the_midst(size_t size) {
	return armed_mode == KILL && counted + 1 == armed_at && size > 1;
}

/* How many bytes of a write pass: 0 where the disk is full. */
static size_t passing(size_t size) {
	long behind = struck();
	if (armed_mode == SHORT) return (size + 1) / 2;
	if (armed_mode != FULL || behind < 0) return size;
	errno = ENOSPC;
	return behind ? 0 : size / 2;
}

ssize_t write(int fd, const void *data, size_t size) {
	REAL(ssize_t, "write", int, const void *, size_t);
	if (!holds(fd)) return real(fd, data, size);
	if (dies_in_the_midst(size)) real(fd, data, size / 2);
	size_t some = passing(size);
	return some ? real(fd, data, some) : -1;
}

/* As SQLite writes. */
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
	REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
	if (!holds(fd)) return real(fd, data, size, at);
	if (dies_in_the_midst(size)) real(fd, data, size / 2, at);
	size_t some = passing(size);
	return some ? real(fd, data, some, at) : -1;
}

ssize_t read(int fd, void *data, size_t size) {
	REAL(ssize_t, "read", int, void *, size_t);
	return real(fd, data, armed_mode == SHORT && size > 1 && holds(fd) ? (size + 1) / 2 : size);
}

int fsync(int fd) {
	REAL(int, "fsync", int);
	return holds(fd) && refused() ? -1 : real(fd);
}

int fdatasync(int fd) {
	REAL(int, "fdatasync", int);
	return holds(fd) && refused() ? -1 : real(fd);
}

int ftruncate64(int fd, off64_t size) {
	REAL(int, "ftruncate64", int, off64_t);
	if (holds(fd)) struck();
	return real(fd, size);
}

int rename(const char *from, const char *to) {
	REAL(int, "rename", const char *, const char *);
	return below(to) && refused() ? -1 : real(from, to);
}

int link(const char *from, const char *to) {
	REAL(int, "link", const char *, const char *);
	return below(to) && refused() ? -1 : real(from, to);
}

int unlink(const char *path) {
	REAL(int, "unlink", const char *);
	if (below(path)) struck();
	return real(path);
}

int mkdir(const char *path, mode_t mode) {
	REAL(int, "mkdir", const char *, mode_t);
	return below(path) && refused() ? -1 : real(path, mode);
}

int open64(const char *path, int flags, ...) {
	REAL(int, "open64", const char *, int, ...);
	va_list rest;
	va_start(rest, flags);
	mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
	va_end(rest);
	return flags & O_CREAT && below(path) && refused() ? -1 : real(path, flags, mode);
}

/* A clock that jumps ten years ahead and back again at every look. */
int clock_gettime(clockid_t clock, struct timespec *now) {
	REAL(int, "clock_gettime", clockid_t, struct timespec *);
	static long looks;
	int status = real(clock, now);
	if (armed_at >= 0 && armed_mode == CLOCK && clock == CLOCK_REALTIME)
		now->tv_sec += __sync_add_and_fetch(&looks, 1) % 2 ? 315360000 : -315360000;
	return status;
}
