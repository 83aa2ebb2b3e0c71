/* What single system calls cost here: a line "name nanoseconds" for each, the fastest of its rounds.
 * argv: a file to open, rounds, calls in a round, and of the slow calls (those that another process answers). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *path;
static int file;

static void *nothing(void *unused) { return unused; }
static void null_call(void) { syscall(SYS_getuid); }
static void stat_file(void) { struct stat found; if (stat(path, &found)) abort(); }
static void open_close(void) { int opened = open(path, O_RDONLY); if (opened < 0) abort(); close(opened); }
static void read_byte(void) { char byte; if (pread(file, &byte, 1, 0) < 0) abort(); }
static void start_thread(void) { pthread_t thread; if (pthread_create(&thread, 0, nothing, 0)) abort(); pthread_join(thread, 0); }
static void fork_wait(void) { pid_t child = fork(); if (!child) _exit(0); waitpid(child, 0, 0); }
static void ask_parent(void) { syscall(SYS_getppid); }
static void refused(void) { syscall(SYS_keyctl, 99, 0, 0, 0, 0); }

static const struct { const char *name; void (*call)(void); int share; } rows[] = {
    {"getuid", null_call, 1}, {"stat", stat_file, 1}, {"open+close", open_close, 1}, {"pread", read_byte, 1},
    {"thread", start_thread, 20}, {"fork+wait", fork_wait, 100}, {"getppid", ask_parent, 0}, {"keyctl", refused, 0},
};

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 5) return 2;
    path = argv[1];
    file = open(path, O_RDONLY);
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        int calls = rows[row].share ? atoi(argv[3]) / rows[row].share : atoi(argv[4]);
        double best = 1e18;
        for (int round = atoi(argv[2]); round > 0; round--) {
            double begin = now_ns();
            for (int call = 0; call < calls; call++) rows[row].call();
            double each = (now_ns() - begin) / calls;
            if (each < best) best = each;
        }
        printf("%s %.1f\n", rows[row].name, best);
    }
    return 0;
}
