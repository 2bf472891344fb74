/* The peer of map-*: Debian's libxenforeignmemory, as a C program uses it.
 *
 * Reads a line, "DOMID FIRST COUNT STRIDE ROUNDS": maps COUNT frames from FIRST on, reads a byte of every STRIDE-th
 * and unmaps, ROUNDS times. Prints the median of the rounds' nanoseconds. Any frame that fails ends it.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <xenforeignmemory.h>

#define FRAME 4096

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(void)
{
    xenforeignmemory_handle *handle = xenforeignmemory_open(NULL, 0);
    uint64_t first, count, stride, rounds;
    unsigned domid;

    if (!handle)
        fail("xenforeignmemory_open");
    while (scanf("%u %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &domid, &first, &count, &stride, &rounds) == 5) {
        xen_pfn_t *frames = calloc(count, sizeof(*frames));
        int *errors = calloc(count, sizeof(*errors));
        uint64_t *taken = calloc(rounds, sizeof(*taken));
        uint64_t start, i, round;
        unsigned sum = 0;

        if (!frames || !errors || !taken || !rounds)
            fail("calloc");
        for (i = 0; i < count; i++)
            frames[i] = first + i;
        for (round = 0; round < rounds; round++) {
            volatile unsigned char *mapped;

            start = now();
            mapped = xenforeignmemory_map(handle, domid, PROT_READ, count, frames, errors);
            if (!mapped)
                fail("xenforeignmemory_map");
            for (i = 0; i < count; i++)
                if (errors[i]) {
                    fprintf(stderr, "frame %#" PRIx64 ": %d\n", frames[i], errors[i]);
                    return 1;
                }
            for (i = 0; i < count; i += stride)
                sum += mapped[i * FRAME];
            if (xenforeignmemory_unmap(handle, (void *)mapped, count))
                fail("xenforeignmemory_unmap");
            taken[round] = now() - start;
        }
        qsort(taken, rounds, sizeof(*taken), compare);
        printf("%" PRIu64 " %u\n", taken[rounds / 2], sum);
        fflush(stdout);
        free(frames);
        free(errors);
        free(taken);
    }
    return 0;
}
