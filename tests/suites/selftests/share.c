/*
 * Preloaded into the Node process of server.ts: WebAssembly memories live in a memfd named cloister-wasm, so that the
 * client can map the same pages. V8 reserves a memory with its guard regions by one PROT_NONE mapping of more than
 * 8 GiB and makes parts of it accessible as it grows.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	if (fd == -1 && protection == PROT_NONE && length >= 8ULL << 30) {
		int memory = (int)syscall(SYS_memfd_create, "cloister-wasm", MFD_CLOEXEC);

		if (memory >= 0 && ftruncate(memory, (off_t)length) == 0)
			return (void *)syscall(SYS_mmap, address, length, protection, MAP_SHARED | MAP_NORESERVE, memory, 0L);
	}
	return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return mmap(address, length, protection, flags, fd, offset);
}
