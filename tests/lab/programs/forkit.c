/* Trees of processes that come and go: each adds up what its children ended with; in rounds until a file "enough".
   openMosix's stress test had a forkit. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEPTH 3
#define TREES 6

static int tree(int depth, unsigned int x) {
    int sum, status, child;
    for (int i = 0; i < 1000000; i++) x = x * 1664525 + 1013904223;
    sum = x >> 28;
    if (!depth) return sum;
    for (int side = 0; side < 2; side++) {
        pid_t pid = fork();
        if (pid < 0) { perror("fork"); exit(255); }
        if (!pid) _exit(tree(depth - 1, x + side));
    }
    for (child = 0; child < 2; child++) {
        if (wait(&status) < 0 || !WIFEXITED(status)) { fprintf(stderr, "a child: status %d\n", status); exit(255); }
        sum += WEXITSTATUS(status);
    }
    return sum & 127;
}

static unsigned long work(void) {
    unsigned long sum = 0;
    for (int number = 0; number < TREES; number++) sum = sum * 131 + tree(DEPTH, number);
    return sum;
}

int main(void) {
    puts("begun"); fflush(stdout);
    unsigned long first = work();
    while (access("enough", F_OK))
        if (work() != first) { puts("a round came out otherwise"); return 1; }
    printf("%lx\n", first);
    return 0;
}
