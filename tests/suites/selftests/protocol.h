/* What goes over the two FIFOs between shim.c and server.ts. Little endian, fixed sizes. */
#include <stdint.h>

enum {
	OP_OPEN = 1,      /* a = address of the path, fd = the new descriptor */
	OP_CLOSE = 2,
	/* request, a = argument, spare = descriptor for a new file; answer.value = 1: claim the segments and ask again */
	OP_IOCTL = 3,
	OP_RUN = 4,       /* a = instructions; answer.value = 1: run again, 2: halted, run again a little later */
	OP_MMAP = 5,      /* a = length, b = offset: segments relative to the mapping */
	/* a = address, b = length of client memory that becomes a slot: segments by address; answer.value = 1: not all is shared */
	OP_CLAIM = 6,
	OP_UNCLAIM = 7,   /* a = address, b = length, spare = 1: keep the frames */
	OP_FALLOCATE = 8, /* request = mode, a = offset, b = length: segments relative to the file */
	OP_READ = 9,      /* a = address, b = length, c = offset or ~0 */
	OP_WRITE = 10,    /* a = address, b = length */
	OP_EVENTFD = 11,  /* fd = an event descriptor of the client */
	OP_PARAMETER = 12, /* a = address of a path below /sys/module, b = buffer, c = its length; result = bytes */
	OP_HELLO = 13,    /* answer.value = process id of the server, segment 0 = {descriptor, 0, 0} of the shared memory */
	OP_DUP = 14,      /* spare = the other descriptor */
	OP_CPUID = 15,    /* a = leaf, b = index: segments {eax, ebx}, {ecx, edx} */
};

struct request {
	uint32_t op;
	int32_t fd;
	uint32_t request;
	int32_t spare;
	uint32_t pid; /* forked children speak too: whose memory addresses mean */
	uint32_t zero;
	uint64_t a, b, c;
};

struct answer {
	int64_t result; /* >= 0, or a negative errno */
	uint32_t value;
	uint32_t segments;
};

struct segment {
	uint64_t at, length, offset; /* offset in the shared memory */
};
