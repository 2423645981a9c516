/*
 * The translation path of tools/generate-fill.ts and assembly/memory/quick.ts in C, line by line, over the same layout: argv[1] million random loads from
 * 256 MiB mapped by 4 KiB pages to scattered frames. Prints the CPU nanoseconds of one.
 * The vCPU's address is an argument, as there: noipa, else gcc makes it a constant.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

enum { PAGES = 65536, U = 4, X = 8, W = 0x10, STORE = 0x20, VALID = 0x40, PRIVATE = 0x80, GLOBAL = 0x100, LEVEL2 = 0x200, LARGE = 0x400 };
#define NONE (~0ull)
#define INFO_MASK (0x2ffffull << 32)
#define INFO_DIRTY (1ull << 56)
#define INFO_CODE 0xffffffffull

/* Linear memory: u32 addresses from here, as in WebAssembly. */
static u8 *memory;
#define AT(type, address) (*(type *)(memory + (u32)(address)))

enum { INFO = 0x100000, VCPU = 0x1200000, TABLES = 0x1400000, HEAP = 0x1600000 };

struct vcpu {
	u32 tlb_base, used, fills, units, bit, data, clean, stamp;
	u64 now, psc, local, global, mask, want, info, large_base, large_mask;
	u32 fill_list[900];
	struct { u64 tag; u32 table, word; } pscs[512];
	struct { u64 tag; u32 data, clean; } l2[65536];
	u64 dense[65536];
	struct { u64 read, write, exec, addend; } l1[1024];
};

_Static_assert(sizeof(struct vcpu) < TABLES - VCPU, "the vCPU fits");

static inline int install(u32 s, u64 va, u32 data, u32 n, int alone)
{
	struct vcpu *v = (struct vcpu *)(memory + s);
	u64 page = va & ~0xfffull;
	u32 has = (u32)(v->now >> (data & 63));
	u32 e = v->tlb_base + ((u32)(va >> 7) & 0x7fe0);
	if (!(has & n & 3) || (alone ? ((u32)va & 0xfff) + (n >> 2) > 0x1000 : AT(u64, e) == page))
		return 0;
	AT(u64, e) = page;
	AT(u64, e + 8) = has & 2 ? page : NONE;
	AT(u64, e + 16) = has & 4 ? page : NONE;
	AT(u64, e + 24) = (u32)((data & ~0xfffu) - (u32)page);
	u32 fills = v->fills;
	if (fills < 900) {
		v->fill_list[fills] = e;
		v->fills = fills + 1;
		v->used |= v->bit;
	}
	return 1;
}

static __attribute__((noipa)) int walk(u32 s, u64 va, u32 n)
{
	struct vcpu *v = (struct vcpu *)(memory + s);
	u64 vpn = va >> 12, page = va & ~0xfffull;
	u32 l2 = (vpn ^ (vpn >> 16)) & 65535;
	u64 context = v->l2[l2].tag ^ page;
	u32 want = v->data, data = v->l2[l2].data;
	if ((context != v->local && context != v->global) || (data & (VALID | PRIVATE)) != want) {
		u32 psc = (va >> 21) & 511;
		if (v->pscs[psc].tag != ((va >> 21) | v->psc))
			return 0;
		u32 word = v->pscs[psc].word, table = v->pscs[psc].table, at;
		u64 entry;
		if (!(word & LEVEL2)) {
			entry = AT(u64, table + ((u32)(va >> 9) & 0xff8));
			if ((entry & v->mask) != v->want)
				return 0;
			at = entry >> 12;
			data = want;
		} else {
			if ((va & v->large_mask) != v->large_base)
				return 0;
			entry = AT(u64, table + ((u32)(va >> 18) & 0xff8));
			if ((entry & (v->mask | 0x1fe080)) != (v->want | 0x80))
				return 0;
			at = ((u32)(entry >> 12) & ~0x1ffu) | (vpn & 0x1ff);
			data = want | LARGE;
		}
		u32 unit = AT(u32, v->units + ((at >> 7) & 0x3ffc));
		u32 frame = AT(u32, unit + ((at & 0x1ff) << 2));
		if (!frame)
			return 0;
		u32 bits = (u32)entry;
		data |= frame | (((bits & (U | GLOBAL)) | ((bits << 3) & W) | ((bits >> 1) & STORE) | ((u32)(~entry >> 60) & X)) & word);
	}
	u64 info = AT(u64, INFO + ((data >> 8) & ~15u));
	if ((info & INFO_MASK) != v->info)
		return 0;
	u64 tag = page | (data & GLOBAL ? v->global : v->local);
	if ((info & (INFO_DIRTY | INFO_CODE)) == INFO_DIRTY) {
		v->l2[l2].tag = tag;
		v->l2[l2].data = data;
		v->l2[l2].clean = v->clean;
		return install(s, va, data, n, 1);
	}
	if ((data & (STORE | W)) == (STORE | W))
		return 0;
	v->l2[l2].tag = tag;
	v->l2[l2].data = data;
	v->l2[l2].clean = 0;
	return install(s, va, data & ~STORE, n, 1);
}

static inline int lookup(u32 s, u64 va, u32 n)
{
	struct vcpu *v = (struct vcpu *)(memory + s);
	u64 page = va & ~0xfffull;
	u32 dense = s + offsetof(struct vcpu, dense) + ((u32)((va >> 9) ^ (va >> 25)) & 0x7fff8);
	u64 word = AT(u64, dense);
	u32 tag = ((u32)(va >> 28) << 12) | v->stamp, beyond = (va + 0x800000000000) >> 48, data = word;
	if (((u32)(word >> 32) ^ tag) | beyond) {
		u32 l2 = (u32)((va >> 8) ^ (va >> 24)) & 0xffff0;
		u64 context = AT(u64, s + offsetof(struct vcpu, l2) + l2) ^ page;
		if (context != v->local && context != v->global)
			return 0;
		if (AT(u32, s + offsetof(struct vcpu, l2) + 12 + l2) != v->clean)
			return 0;
		data = AT(u32, s + offsetof(struct vcpu, l2) + 8 + l2);
		if (!beyond)
			AT(u64, dense) = data | (u64)tag << 32;
	}
	return install(s, va, data, n, 0);
}

static u32 seed;
static u64 sum, miss;

static __attribute__((noipa)) u32 run(u32 s, u64 base, u32 mask, u32 left)
{
	u32 x = seed;
	u64 total = sum, va = base + ((x >> 4) & mask);
	while (left) {
		u32 e = ((struct vcpu *)(memory + s))->tlb_base + ((u32)(va >> 7) & 0x7fe0);
		if (AT(u64, e) == ((va + 7) & ~0xfffull)) {
			total += AT(u64, (u32)va + AT(u32, e + 24));
			x = x * 1664525 + 1013904223;
			va = base + ((x >> 4) & mask);
			left--;
			continue;
		}
		if (lookup(s, va, 33))
			continue;
		miss = va;
		break;
	}
	seed = x;
	sum = total;
	return left;
}

static u64 loads(u32 s, u64 base, u32 mask, u32 n)
{
	seed = 1;
	sum = 0;
	while ((n = run(s, base, mask, n)))
		if (!walk(s, miss, 33))
			abort();
	return sum;
}

int main(int argc, char **argv)
{
	u32 millions = argc > 1 ? atoi(argv[1]) : 1;
	memory = mmap(0, 1ull << 32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	/* The pages of WebAssembly memory are 4 KiB too. */
	madvise(memory, 1ull << 32, MADV_NOHUGEPAGE);
	struct vcpu *v = (struct vcpu *)(memory + VCPU);
	memset(v->l1, 0xff, sizeof v->l1);
	v->tlb_base = (u8 *)v->l1 - memory;
	v->mask = 0x21 | 0x000ffffe00000000;
	v->want = 0x21;
	v->info = 0x20000ull << 32;
	v->data = VALID;
	v->clean = 1;
	v->stamp = 1;
	v->large_base = NONE;
	v->local = v->psc = 1ull << 52;
	v->global = 2ull << 52;
	v->now = 0x7733551155115511;
	v->bit = 2;
	/* Frame map, its units, page tables: TABLES + 0, + 1 MiB, + 1.5 MiB. */
	v->units = TABLES + 0x100000;
	for (u32 i = 0; i < PAGES; i++) {
		u32 frame = HEAP + (i << 12);
		AT(u32, TABLES + (i << 2)) = frame;
		AT(u64, INFO + (frame >> 8)) = (0x20000ull << 32) | INFO_DIRTY;
		AT(u64, frame) = i;
	}
	for (u32 i = 0; i < PAGES / 512; i++)
		AT(u32, v->units + (i << 2)) = TABLES + (i << 11);
	for (u32 i = 0; i < PAGES; i++)
		AT(u64, TABLES + 0x180000 + (i << 3)) = (i * 2654435761u % PAGES << 12) | 0x67;
	for (u32 i = 0; i < PAGES / 512; i++) {
		v->pscs[i].tag = i | v->psc;
		v->pscs[i].table = TABLES + 0x180000 + (i << 12);
		v->pscs[i].word = VALID | W | U | X | STORE;
	}
	u64 all = loads(VCPU, 0, 0xffffff8, 1000000);
	struct timespec from, to;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
	all += loads(VCPU, 0, 0xffffff8, millions * 1000000);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
	fprintf(stderr, "%llu\n", (unsigned long long)all);
	printf("%.1f\n", ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / (millions * 1e6));
}
