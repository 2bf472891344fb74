/*
 * The guest's part of benches/legs.py: a static program for Linux on aarch64, without a C library.
 *
 * It shares two pages with dom0, which maps them by their frames: one for commands, one for stamps, four to a
 * request, of the virtual counter (CNTVCT_EL0). Nothing but the program runs in the guest, so the last gap
 * between two looks at the counter, before a request is seen done, is the interrupt.
 */
#include <linux/aio_abi.h>

#define REGISTERS 0x2000000UL
#define MAGIC (0x00 / 4)
#define QUEUE_NOTIFY (0x50 / 4)
#define PAGE 4096UL
#define BLOCK 4096UL

enum { OPENAT = 56, CLOSE = 57, PREAD = 67, WRITE = 64, MMAP = 222, EXIT = 93, IO_SETUP = 0, IO_SUBMIT = 2 };
enum { O_RDWR = 2, O_DIRECT = 0200000, O_SYNC = 04010000, READ_WRITE = 3, SHARED = 1, ANONYMOUS = 0x20 };
enum { LOCKED = 0x2000, POPULATE = 0x8000, AT_FDCWD = -100 };

/* Of the page of commands. */
enum { TURN, COMMAND, COUNT, DONE, STAMP, IDLE };
enum { END, PING, KICK, READ_REGISTER, REQUEST };

typedef unsigned long u64;

/* What Linux keeps at the address of an AIO context (fs/aio.c). */
struct ring {
	unsigned id, nr, head, tail, magic;
};

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 asm("x8") = number, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c;
	register long x3 asm("x3") = d, x4 asm("x4") = e, x5 asm("x5") = f;
	asm volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

static void need(long result)
{
	if (result < 0) {
		call(WRITE, 1, (long)"the guest's program failed\n", 27, 0, 0, 0);
		call(EXIT, -result, 0, 0, 0, 0, 0);
	}
}

/* What was written before is seen before what is written after. */
static void order(void)
{
	asm volatile("dmb ish" : : : "memory");
}

static u64 now(void)
{
	u64 value;
	asm volatile("isb; mrs %0, cntvct_el0" : "=r"(value) : : "memory");
	return value;
}

static int open_file(const char *path, int flags)
{
	long fd = call(OPENAT, AT_FDCWD, (long)path, flags, 0, 0, 0);
	need(fd);
	return fd;
}

static volatile u64 *pages(u64 number)
{
	long flags = SHARED | ANONYMOUS | LOCKED | POPULATE;
	long address = call(MMAP, 0, number * PAGE, READ_WRITE, flags, -1, 0);
	need(address);
	return (volatile u64 *)address;
}

static u64 frame(volatile void *page)
{
	u64 entry;
	int fd = open_file("/proc/self/pagemap", 0);
	need(call(PREAD, fd, (long)&entry, 8, (u64)page / PAGE * 8, 0, 0));
	call(CLOSE, fd, 0, 0, 0, 0, 0);
	return entry & ((1UL << 55) - 1);
}

static void say(u64 value)
{
	char text[18];
	for (int i = 0; i < 16; i++)
		text[i] = "0123456789abcdef"[value >> (60 - 4 * i) & 15];
	text[16] = '\n';
	need(call(WRITE, 1, (long)text, 17, 0, 0, 0));
}

static void request(volatile u64 *stamps, int disk, aio_context_t context, u64 buffer)
{
	volatile struct ring *ring = (void *)context;
	struct iocb block = { .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = disk, .aio_buf = buffer };
	struct iocb *blocks = &block;
	block.aio_nbytes = BLOCK;
	stamps[0] = now();
	need(call(IO_SUBMIT, context, 1, (long)&blocks, 0, 0, 0));
	stamps[1] = now();
	u64 last = stamps[1], before = last;
	while (ring->tail == ring->head) {
		u64 time = now();
		before = last;
		last = time;
	}
	/* The interrupt came after the last look, or between the last two. */
	u64 end = now();
	if (end - last > last - before) {
		before = last;
		last = end;
	}
	stamps[2] = before;
	stamps[3] = last;
	ring->head = ring->tail;
}

void _start(void)
{
	volatile u64 *command = pages(1), *results = pages(1);
	u64 buffer = (u64)pages(1), turn = 0, tick = 0;
	aio_context_t context = 0;
	int memory = open_file("/dev/mem", O_RDWR | O_SYNC), disk = open_file("/dev/vda", O_RDWR | O_DIRECT);
	long at = call(MMAP, 0, PAGE, READ_WRITE, SHARED, memory, REGISTERS);
	need(at);
	volatile unsigned *registers = (void *)at;
	need(call(IO_SETUP, 4, (long)&context, 0, 0, 0, 0));
	asm volatile("mrs %0, cntfrq_el0" : "=r"(tick));
	command[STAMP] = tick;
	say(frame(command));
	say(frame(results));
	for (;;) {
		while (command[TURN] == turn)
			;
		turn = command[TURN];
		order();
		u64 what = command[COMMAND], count = command[COUNT];
		if (what == PING)
			command[STAMP] = now();
		else if (what == END)
			call(EXIT, 0, 0, 0, 0, 0, 0);
		else
			for (u64 i = 0; i < count; i++) {
				volatile u64 *stamps = results + 4 * i;
				/* So long that whoever was woken for the last one sleeps again. */
				for (u64 until = now() + command[IDLE]; now() < until;)
					;
				if (what == REQUEST) {
					request(stamps, disk, context, buffer);
					continue;
				}
				stamps[0] = now();
				if (what == KICK)
					registers[QUEUE_NOTIFY] = 0;
				else
					(void)registers[MAGIC];
				stamps[1] = now();
			}
		order();
		command[DONE] = turn;
	}
}
