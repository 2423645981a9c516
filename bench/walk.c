/* The walk of bench/guests/memory-loops.S in C: argv[1] million loads from random pages of 256 MiB. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	uint64_t n = strtoull(argc > 1 ? argv[1] : "1", 0, 0) * 1000000, x = 0, sum = 0;
	volatile uint8_t *p = mmap(0, 1 << 28, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise((void *)p, 1 << 28, MADV_NOHUGEPAGE);
	for (uint64_t i = 0; i < 1 << 28; i += 4096)
		p[i] = 1;
	while (n--) {
		x = x * 1664525 + 1013904223;
		sum += *(volatile uint64_t *)(p + (((uint32_t)x >> 4) & 0xffffff8));
	}
	printf("%llu\n", (unsigned long long)sum);
}
