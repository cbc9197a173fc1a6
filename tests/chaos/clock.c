/* The wall clock of a process, moved by the seconds in the file $MOVED_CLOCK (eight bytes, read at every look).
 *
 * Preloaded. The monotonic clock stays what it is, as when NTP or a person sets a machine's clock; libfaketime
 * can't leave it alone without breaking Python's time.sleep.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static volatile int64_t *moved_s;

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("MOVED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file >= 0) {
        void *page = mmap(NULL, sizeof *moved_s, PROT_READ, MAP_SHARED, file, 0);
        moved_s = page == MAP_FAILED ? NULL : page;
        close(file);
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_clock_gettime) load(); /* somebody's constructor looked before ours ran */
    int failed = real_clock_gettime(clock, now);
    if (!failed && moved_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *moved_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec looked;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &looked);
    now->tv_sec = looked.tv_sec;
    now->tv_usec = looked.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *out) {
    struct timespec looked;
    clock_gettime(CLOCK_REALTIME, &looked);
    if (out) *out = looked.tv_sec;
    return looked.tv_sec;
}
