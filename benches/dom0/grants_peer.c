/* The peer of grant-cache: a device that maps each part of a ring, and each buffer, for one access at a time, by Debian's libxengnttab.
 *
 * Reads a line, "DOMID SIZE DESCRIPTORS AVAILABLE USED FIRST": the three parts of a split ring (virtio 1.3, section 2.7) lie in
 * pages of these grant references, and buffers have addresses as Linux makes them of references (drivers/xen/grant-dma-ops.c).
 * Takes all chains from the available entry FIRST on, reads what is readable, fills what is writable, gives them back. Prints the
 * nanoseconds for one chain, and how many there were.
 */

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <xengnttab.h>

#define PAGE 4096
#define NEXT 1
#define WRITE 2
#define FILLING 0x5a

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

static xengnttab_handle *grants;
static uint32_t domid;

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static uint8_t *map(uint32_t reference, int protection)
{
    uint8_t *page = xengnttab_map_grant_ref(grants, domid, reference, protection);

    if (!page)
        fail("xengnttab_map_grant_ref");
    return page;
}

static void unmap(uint8_t *page)
{
    if (xengnttab_unmap(grants, page, 1))
        fail("xengnttab_unmap");
}

/* One access: the page is mapped for it, and for nothing else. */
static void get(uint32_t reference, size_t offset, void *to, size_t length)
{
    uint8_t *page = map(reference, PROT_READ);

    memcpy(to, page + offset, length);
    unmap(page);
}

static void put(uint32_t reference, size_t offset, const void *from, size_t length)
{
    uint8_t *page = map(reference, PROT_READ | PROT_WRITE);

    memcpy(page + offset, from, length);
    unmap(page);
}

int main(void)
{
    static uint8_t buffer[PAGE];
    uint32_t descriptors, available, used;
    unsigned size, first;

    grants = xengnttab_open(NULL, 0);
    if (!grants)
        fail("xengnttab_open");
    while (scanf("%" SCNu32 " %u %" SCNu32 " %" SCNu32 " %" SCNu32 " %u", &domid, &size, &descriptors, &available, &used,
                 &first) == 6) {
        uint64_t start = now(), chains = 0;
        uint16_t at = first;

        for (;; at++, chains++) {
            uint16_t index, head, flags;
            struct { uint32_t id, length; } element = {0};
            struct descriptor descriptor;

            get(available, 2, &index, sizeof(index));
            if (index == at)
                break;
            get(available, 4 + 2 * (at % size), &head, sizeof(head));
            element.id = head;
            descriptor.next = head;
            do {
                get(descriptors, sizeof(descriptor) * (descriptor.next % size), &descriptor, sizeof(descriptor));
                if (descriptor.address % PAGE + descriptor.length > PAGE) {
                    fprintf(stderr, "a buffer leaves its page\n");
                    return 1;
                }
                if (descriptor.flags & WRITE) {
                    memset(buffer, FILLING, descriptor.length);
                    put(descriptor.address / PAGE, descriptor.address % PAGE, buffer, descriptor.length);
                    element.length += descriptor.length;
                } else {
                    get(descriptor.address / PAGE, descriptor.address % PAGE, buffer, descriptor.length);
                }
            } while (descriptor.flags & NEXT);
            put(used, 4 + sizeof(element) * (at % size), &element, sizeof(element));
            index = at + 1;
            put(used, 2, &index, sizeof(index));
            get(available, 0, &flags, sizeof(flags)); /* does the driver want to be called? */
        }
        printf("%" PRIu64 " %" PRIu64 "\n", (now() - start) / (chains ? chains : 1), chains);
        fflush(stdout);
    }
    return 0;
}
