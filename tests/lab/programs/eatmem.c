/* A computation that grows: more and more memory, all of it used at each step; in rounds until there is a file "enough".
   openMosix's stress test had an eatmem. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define STEPS 24
#define STEP_WORDS (1 << 19)

static unsigned long work(void) {
    unsigned int *memory = NULL, x = 1;
    unsigned long sum = 0;
    size_t size = 0, at;
    for (int step = 0; step < STEPS; step++) {
        size += STEP_WORDS;
        memory = realloc(memory, size * sizeof *memory);
        if (!memory) { perror("realloc"); exit(1); }
        for (at = size - STEP_WORDS; at < size; at++) memory[at] = x = x * 1664525 + 1013904223;
        for (at = 1; at < size; at++) memory[at] += memory[at - 1] >> 3;
        sum = sum * 31 + memory[size - 1];
    }
    free(memory);
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
