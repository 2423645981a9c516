/*
 * Preloaded into a KVM client (a test program nobody here wrote): /dev/kvm, /dev/sev and the parameters of the kvm
 * modules are answered by server.ts. Guest memory, kvm_run pages and rings are the same physical pages in both
 * processes. The server reads and writes every other memory of the client by /proc/PID/mem, so this file knows almost
 * nothing of the structs behind pointers. Descriptors have the same numbers on both sides.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "protocol.h"

#define FILES 4096
#define PAGE 4096UL
#define RUN_SLICE 100000

/* Request codes that this side has to know (include/uapi/linux/kvm.h). */
#define KVM_CREATE_VM 0xae01
#define KVM_CREATE_VCPU 0xae41
#define KVM_GET_STATS_FD 0xaece
#define KVM_CREATE_GUEST_MEMFD 0xc040aed4
#define KVM_CREATE_DEVICE 0xc00caee0
#define KVM_SET_USER_MEMORY_REGION 0x4020ae46
#define KVM_SET_USER_MEMORY_REGION2 0x40a0ae49
#define KVM_RUN 0xae80
#define KVM_SET_SIGNAL_MASK 0x4004ae8b
#define KVM_EXIT_INTR 10

enum kind { NONE, SERVED, GMEM, VCPU, EVENT };

struct file {
	unsigned char kind;
	unsigned char masked;
	volatile uint32_t *run;
	sigset_t mask;
};

/* Shared mappings of files: aliases of slots and of guest_memfd. */
struct shared {
	char *address;
	size_t length;
	dev_t device;
	ino_t inode;
	uint64_t offset;
};

/* Client memory that lives in the shared memory. */
struct claim {
	char *address;
	size_t length;
	dev_t device;
	ino_t inode; /* 0: anonymous */
	uint64_t offset;
	uint32_t segments;
	struct segment *segment;
};

static struct file files[FILES];
static struct shared *shareds;
static size_t shared_count;
static struct claim *claims;
static size_t claim_count;
static int to_server = -1, from_server = -1, memory = -1, empty = -1;
static volatile int on;

static uint32_t next_ticket, serving;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static __thread int depth, cancel, cancel_type;

static void die(const char *what)
{
	dprintf(2, "shim: %s: %s\n", what, strerror(errno));
	_exit(99);
}

/* First come, first served: a thread that runs a vCPU in slices must not starve the others. */
static void enter(sigset_t *old)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, old);
	if (depth++)
		return;
	/* A thread that is cancelled must not keep the turn. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &cancel_type);
	pthread_mutex_lock(&mutex);
	for (uint32_t mine = next_ticket++; serving != mine;)
		pthread_cond_wait(&turn, &mutex);
	pthread_mutex_unlock(&mutex);
}

static void leave(const sigset_t *old)
{
	if (--depth == 0) {
		pthread_mutex_lock(&mutex);
		serving++;
		pthread_cond_broadcast(&turn);
		pthread_mutex_unlock(&mutex);
		pthread_setcancelstate(cancel, NULL);
		pthread_testcancel();
		pthread_setcanceltype(cancel_type, NULL);
	}
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

static void transfer(int fd, void *bytes, size_t n, int out)
{
	for (size_t done = 0; done < n;) {
		long r = syscall(out ? SYS_write : SYS_read, fd, (char *)bytes + done, n - done);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			die("the server is gone");
		done += (size_t)r;
	}
}

/* The caller holds the turn. Segments are malloc'ed. */
static int64_t ask(struct request request, uint32_t *value, struct segment **segments, uint32_t *count)
{
	struct answer answer;
	struct segment *list = NULL;

	request.pid = (uint32_t)getpid();
	transfer(to_server, &request, sizeof(request), 1);
	transfer(from_server, &answer, sizeof(answer), 0);
	if (answer.segments) {
		list = malloc(answer.segments * sizeof(*list));
		transfer(from_server, list, answer.segments * sizeof(*list), 0);
	}
	if (value)
		*value = answer.value;
	if (segments) {
		*segments = list;
		*count = answer.segments;
	} else {
		free(list);
	}
	return answer.result;
}

static int64_t ask_alone(struct request request)
{
	sigset_t old;
	int64_t result;

	enter(&old);
	result = ask(request, NULL, NULL, NULL);
	leave(&old);
	return result;
}

static long finish(int64_t result)
{
	if (result < 0) {
		errno = (int)-result;
		return -1;
	}
	return (long)result;
}

static long sys_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

/* Low descriptors stay free, as the client expects. */
static int high(int fd)
{
	int other = fcntl(fd, F_DUPFD_CLOEXEC, 900);

	if (other < 0)
		die("descriptors");
	syscall(SYS_close, fd);
	return other;
}

/*
 * The client's own CPUID (C-bit, vendor) has to be that of the modelled machine: the server lists where the program has
 * CPUID instructions, UD2 has the same length.
 */
static struct sigaction illegal;

static int kernel_sigaction(int signal, const struct sigaction *action, struct sigaction *old)
{
	int (*next)(int, const struct sigaction *, struct sigaction *) =
		(int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");

	return next(signal, action, old);
}

int sigaction(int signal, const struct sigaction *action, struct sigaction *old)
{
	if (signal != SIGILL)
		return kernel_sigaction(signal, action, old);
	if (old)
		*old = illegal;
	if (action)
		illegal = *action;
	return 0;
}

static void cpuid(int signal, siginfo_t *information, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	const unsigned char *at = (const unsigned char *)registers[REG_RIP];
	struct segment *answer;
	uint32_t count;
	sigset_t old;

	if (at[0] != 0x0f || at[1] != 0x0b) {
		if (!illegal.sa_sigaction)
			die("SIGILL");
		illegal.sa_sigaction(signal, information, context);
		return;
	}
	enter(&old);
	ask((struct request){ .op = OP_CPUID, .a = (uint32_t)registers[REG_RAX], .b = (uint32_t)registers[REG_RCX] }, NULL, &answer, &count);
	leave(&old);
	registers[REG_RAX] = (greg_t)(uint32_t)answer[0].at;
	registers[REG_RBX] = (greg_t)(uint32_t)answer[0].length;
	registers[REG_RCX] = (greg_t)(uint32_t)answer[1].at;
	registers[REG_RDX] = (greg_t)(uint32_t)answer[1].length;
	free(answer);
	registers[REG_RIP] += 2;
}

static void patch_cpuid(const char *list)
{
	struct sigaction action = { .sa_sigaction = cpuid, .sa_flags = SA_SIGINFO | SA_NODEFER };
	char *end;

	for (; *list; list = *end ? end + 1 : end) {
		unsigned char *at = (unsigned char *)strtoul(list, &end, 16);
		void *page = (void *)((unsigned long)at & ~(PAGE - 1));

		if (mprotect(page, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) && mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
			die("patching CPUID");
		if (at[0] != 0x0f || at[1] != 0xa2)
			die("no CPUID there");
		at[1] = 0x0b;
	}
	kernel_sigaction(SIGILL, &action, NULL);
}

__attribute__((constructor)) static void start(void)
{
	const char *directory = getenv("CLOISTER_SHIM");
	char path[4096];
	struct segment *segment;
	uint32_t server, count;
	sigset_t old;

	if (!directory)
		return;
	/* Programs that the client starts are not clients. */
	unsetenv("LD_PRELOAD");
	snprintf(path, sizeof(path), "%s/request", directory);
	to_server = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "%s/answer", directory);
	from_server = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (to_server < 0 || from_server < 0)
		die("no server");
	to_server = high(to_server);
	from_server = high(from_server);
	enter(&old);
	ask((struct request){ .op = OP_HELLO, .a = (uint64_t)getpid() }, &server, &segment, &count);
	leave(&old);
	snprintf(path, sizeof(path), "/proc/%u/fd/%u", server, (unsigned)segment->at);
	memory = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
	if (memory < 0)
		die("no shared memory");
	memory = high(memory);
	empty = high((int)syscall(SYS_memfd_create, "empty", MFD_CLOEXEC));
	if (getenv("CLOISTER_SHIM_CPUID"))
		patch_cpuid(getenv("CLOISTER_SHIM_CPUID"));
	on = 1;
}

/* A forked child (a test harness) goes on with the same kernel; the thread that forked is its only one. */
static void child(void)
{
	pthread_mutex_init(&mutex, NULL);
	pthread_cond_init(&turn, NULL);
	serving = next_ticket;
}

__attribute__((constructor)) static void forks(void)
{
	pthread_atfork(NULL, NULL, child);
}

static struct file *served(int fd)
{
	return on && fd >= 0 && fd < FILES && files[fd].kind != NONE ? &files[fd] : NULL;
}

static int placeholder(const char *name)
{
	int fd = (int)syscall(SYS_memfd_create, name, MFD_CLOEXEC);

	if (fd >= FILES) {
		syscall(SYS_close, fd);
		errno = EMFILE;
		return -1;
	}
	return fd;
}

static void install(int fd, enum kind kind)
{
	memset(&files[fd], 0, sizeof(files[fd]));
	files[fd].kind = (unsigned char)kind;
}

/* Memory. */

static void overlay(char *at, size_t length, uint64_t offset)
{
	if (sys_mmap(at, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, (off_t)offset) == -1)
		die("mapping shared memory");
}

/* Lays the part of a claim that a shared mapping of the same file shows over it. */
static void overlay_alias(const struct shared *shared, const struct claim *claim)
{
	uint64_t at = claim->offset;

	for (uint32_t i = 0; i < claim->segments; i++) {
		const struct segment *s = &claim->segment[i];
		uint64_t low = at > shared->offset ? at : shared->offset;
		uint64_t end = at + s->length;

		if (end > shared->offset + shared->length)
			end = shared->offset + shared->length;
		if (low < end)
			overlay(shared->address + (low - shared->offset), end - low, s->offset + (low - at));
		at += s->length;
	}
}

static struct shared *shared_at(const char *address)
{
	for (size_t i = 0; i < shared_count; i++)
		if (address >= shareds[i].address && address < shareds[i].address + shareds[i].length)
			return &shareds[i];
	return NULL;
}

/* Pages that are there are copied, then the client sees the shared ones. */
static void move(const struct segment *s, const unsigned char *resident)
{
	char *from = (char *)s->at;
	char *to = (char *)sys_mmap(NULL, s->length, PROT_READ | PROT_WRITE, MAP_SHARED, memory, (off_t)s->offset);

	if (to == MAP_FAILED)
		die("mapping shared memory");
	for (size_t page = 0; page < s->length; page += PAGE)
		if (resident[page / PAGE] & 1)
			memcpy(to + page, from + page, PAGE);
	syscall(SYS_munmap, to, s->length);
	overlay(from, s->length, s->offset);
}

/* Makes [address, address + length) live in the shared memory. The caller holds the turn. */
static void claim(char *address, size_t length)
{
	struct segment *segment;
	uint32_t count, unshared;
	unsigned char *resident;
	struct shared *file = shared_at(address);

	resident = malloc(length / PAGE + 1);
	if (!resident || mincore(address, length, resident) != 0) {
		free(resident);
		return; /* nothing there: Linux notices when it is used */
	}
	ask((struct request){ .op = OP_CLAIM, .a = (uint64_t)address, .b = length }, &unshared, &segment, &count);
	if (unshared) {
		claims = realloc(claims, (claim_count + 1) * sizeof(*claims));
		claims[claim_count++] = (struct claim){ .address = address, .length = length };
	}
	for (uint32_t i = 0, next; i < count; i = next) {
		struct claim *c;
		char *first = (char *)segment[i].at, *end = first;

		for (next = i; next < count && (char *)segment[next].at == end; next++)
			end += segment[next].length;
		claims = realloc(claims, (claim_count + 1) * sizeof(*claims));
		c = &claims[claim_count++];
		*c = (struct claim){ .address = first, .length = (size_t)(end - first), .segments = next - i };
		c->segment = malloc(c->segments * sizeof(*c->segment));
		memcpy(c->segment, &segment[i], c->segments * sizeof(*c->segment));
		for (uint32_t j = i; j < next; j++)
			move(&segment[j], resident + ((char *)segment[j].at - address) / PAGE);
		if (!file)
			continue;
		c->device = file->device;
		c->inode = file->inode;
		c->offset = file->offset + (uint64_t)(first - file->address);
		for (size_t j = 0; j < shared_count; j++)
			if (&shareds[j] != file && shareds[j].device == c->device && shareds[j].inode == c->inode)
				overlay_alias(&shareds[j], c);
	}
	free(segment);
	free(resident);
}

static void remember(char *address, size_t length, int fd, uint64_t offset)
{
	struct stat status;
	struct shared *s;

	if (fstat(fd, &status) != 0)
		return;
	shareds = realloc(shareds, (shared_count + 1) * sizeof(*shareds));
	s = &shareds[shared_count++];
	*s = (struct shared){ address, length, status.st_dev, status.st_ino, offset };
	for (size_t i = 0; i < claim_count; i++)
		if (claims[i].inode && claims[i].device == s->device && claims[i].inode == s->inode)
			overlay_alias(s, &claims[i]);
}

static void forget(char *address, size_t length)
{
	for (size_t i = shared_count; i-- > 0;)
		if (shareds[i].address >= address && shareds[i].address < address + length)
			shareds[i] = shareds[--shared_count];
	for (size_t i = claim_count; i-- > 0;) {
		struct claim c = claims[i];

		if (c.address + c.length <= address || c.address >= address + length)
			continue;
		ask_alone((struct request){ .op = OP_UNCLAIM, .a = (uint64_t)c.address, .b = c.length, .spare = c.inode != 0 });
		free(c.segment);
		claims[i] = claims[--claim_count];
	}
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	struct file *file = served(fd);
	char *result;

	if (file) {
		struct segment *segment;
		uint32_t count;
		sigset_t old;
		int64_t r;

		if (file->kind == SERVED || file->kind == EVENT) {
			errno = ENODEV;
			return MAP_FAILED;
		}
		/* A guest_memfd and the dirty ring (kvm_vcpu_mmap). */
		if ((file->kind == GMEM && !(flags & MAP_SHARED)) ||
		    (file->kind == VCPU && offset >= 64 * (off_t)PAGE && (!(flags & MAP_SHARED) || (protection & PROT_EXEC)))) {
			errno = EINVAL;
			return MAP_FAILED;
		}
		enter(&old);
		r = ask((struct request){ .op = OP_MMAP, .fd = fd, .a = length, .b = (uint64_t)offset }, NULL, &segment, &count);
		result = MAP_FAILED;
		if (r >= 0) {
			/* What has no pages gives SIGBUS, as behind the end of a file. */
			result = (char *)sys_mmap(address, length, protection, (flags & MAP_FIXED) | MAP_SHARED, empty, 0);
			for (uint32_t i = 0; i < count; i++)
				if (sys_mmap(result + segment[i].at, segment[i].length, protection, MAP_SHARED | MAP_FIXED, memory,
					     (off_t)segment[i].offset) == -1)
					die("mapping shared memory");
			if (file->kind == VCPU && offset == 0)
				file->run = (volatile uint32_t *)result;
			if (file->kind == GMEM)
				remember(result, length, fd, (uint64_t)offset);
		}
		free(segment);
		leave(&old);
		if (r < 0) {
			errno = (int)-r;
			return MAP_FAILED;
		}
		return result;
	}
	if (on && depth == 0 && (flags & MAP_FIXED))
		forget(address, length);
	result = (char *)sys_mmap(address, length, protection, flags, fd, offset);
	if (on && depth == 0 && fd >= 0 && result != MAP_FAILED && (flags & 3) == MAP_SHARED)
		remember(result, length, fd, (uint64_t)offset);
	return result;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return mmap(address, length, protection, flags, fd, offset);
}

int munmap(void *address, size_t length)
{
	if (on && depth == 0)
		forget(address, length);
	return (int)syscall(SYS_munmap, address, length);
}

/* Files. */

static int parameter(const char *path)
{
	char text[256];
	int64_t n = ask_alone((struct request){ .op = OP_PARAMETER, .a = (uint64_t)path, .b = (uint64_t)text, .c = sizeof(text) });
	int fd;

	if (n < 0) {
		errno = (int)-n;
		return -1;
	}
	fd = (int)syscall(SYS_memfd_create, "parameter", MFD_CLOEXEC);
	syscall(SYS_write, fd, text, (size_t)n);
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static int open_any(int directory, const char *path, int flags, mode_t mode)
{
	if (on && path && (!strcmp(path, "/dev/kvm") || !strcmp(path, "/dev/sev"))) {
		int fd = placeholder(path + 5);
		int64_t r;

		if (fd < 0)
			return fd;
		r = ask_alone((struct request){ .op = OP_OPEN, .fd = fd, .a = (uint64_t)path });
		if (r < 0) {
			syscall(SYS_close, fd);
			errno = (int)-r;
			return -1;
		}
		install(fd, SERVED);
		return fd;
	}
	if (on && path && !strncmp(path, "/sys/module/kvm", 15))
		return parameter(path);
	return (int)syscall(SYS_openat, directory, path, flags, mode);
}

#define MODE(flags, last)                                      \
	mode_t mode = 0;                                       \
	if ((flags) & (O_CREAT | __O_TMPFILE)) {               \
		va_list list;                                  \
		va_start(list, last);                          \
		mode = va_arg(list, mode_t);                   \
		va_end(list);                                  \
	}

int open(const char *path, int flags, ...)
{
	MODE(flags, flags)
	return open_any(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	MODE(flags, flags)
	return open_any(AT_FDCWD, path, flags, mode);
}

int openat(int directory, const char *path, int flags, ...)
{
	MODE(flags, flags)
	return open_any(directory, path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...)
{
	MODE(flags, flags)
	return open_any(directory, path, flags, mode);
}

int __open_2(const char *path, int flags)
{
	return open_any(AT_FDCWD, path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
	return open_any(AT_FDCWD, path, flags, 0);
}

int close(int fd)
{
	struct file *file = served(fd);

	if (fd >= 900 && (fd == to_server || fd == from_server || fd == memory || fd == empty)) {
		errno = EBADF;
		return -1;
	}
	if (file) {
		file->kind = NONE;
		ask_alone((struct request){ .op = OP_CLOSE, .fd = fd });
	}
	return (int)syscall(SYS_close, fd);
}

static int duplicated(int fd, int other)
{
	if (other >= 0 && other < FILES && served(fd)) {
		files[other] = files[fd];
		ask_alone((struct request){ .op = OP_DUP, .fd = fd, .spare = other });
	}
	return other;
}

int dup(int fd)
{
	return duplicated(fd, (int)syscall(SYS_dup, fd));
}

int eventfd(unsigned int count, int flags)
{
	int fd = (int)syscall(SYS_eventfd2, count, flags);

	if (on && fd >= 0 && fd < FILES) {
		install(fd, EVENT);
		ask_alone((struct request){ .op = OP_EVENTFD, .fd = fd });
	}
	return fd;
}

static ssize_t read_any(int fd, void *bytes, size_t n, uint64_t offset)
{
	struct file *file = served(fd);

	if (file && file->kind != EVENT)
		return finish(ask_alone((struct request){ .op = OP_READ, .fd = fd, .a = (uint64_t)bytes, .b = n, .c = offset }));
	if (file) {
		/* What the guest has added lies with the server. */
		uint64_t added = 0;

		if (ask_alone((struct request){ .op = OP_READ, .fd = fd, .a = (uint64_t)&added, .b = 8, .c = ~0UL }) > 0)
			syscall(SYS_write, fd, &added, 8UL);
	}
	return offset == ~0UL ? syscall(SYS_read, fd, bytes, n) : syscall(SYS_pread64, fd, bytes, n, offset);
}

ssize_t read(int fd, void *bytes, size_t n)
{
	return read_any(fd, bytes, n, ~0UL);
}

ssize_t pread(int fd, void *bytes, size_t n, off_t offset)
{
	return read_any(fd, bytes, n, (uint64_t)offset);
}

ssize_t pread64(int fd, void *bytes, size_t n, off_t offset)
{
	return read_any(fd, bytes, n, (uint64_t)offset);
}

ssize_t write(int fd, const void *bytes, size_t n)
{
	struct file *file = served(fd);

	if (file) {
		/* An irqfd consumes the count; without one the server refuses and the client's own counter takes it. */
		int64_t r = ask_alone((struct request){ .op = OP_WRITE, .fd = fd, .a = (uint64_t)bytes, .b = n });

		if (file->kind != EVENT || r >= 0)
			return finish(r);
	}
	return syscall(SYS_write, fd, bytes, n);
}

int eventfd_write(int fd, eventfd_t value)
{
	return write(fd, &value, sizeof(value)) == sizeof(value) ? 0 : -1;
}

int eventfd_read(int fd, eventfd_t *value)
{
	return read(fd, value, sizeof(*value)) == sizeof(*value) ? 0 : -1;
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
	if (served(fd)) {
		errno = EINVAL;
		return -1;
	}
	return syscall(SYS_pwrite64, fd, bytes, n, offset);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
	struct file *file = served(fd);
	struct segment *segment;
	uint32_t count;
	struct stat status;
	sigset_t old;
	int64_t r;

	if (!file)
		return (int)syscall(SYS_fallocate, fd, mode, offset, length);
	enter(&old);
	r = ask((struct request){ .op = OP_FALLOCATE, .fd = fd, .request = (uint32_t)mode, .a = (uint64_t)offset, .b = (uint64_t)length },
		NULL, &segment, &count);
	if (count && fstat(fd, &status) == 0) {
		for (size_t i = 0; i < shared_count; i++)
			for (uint32_t j = 0; j < count; j++) {
				struct claim c = { .offset = segment[j].at, .segments = 1, .segment = &segment[j] };

				if (shareds[i].device == status.st_dev && shareds[i].inode == status.st_ino)
					overlay_alias(&shareds[i], &c);
			}
	}
	free(segment);
	leave(&old);
	return (int)finish(r);
}

int fallocate64(int fd, int mode, off_t offset, off_t length)
{
	return fallocate(fd, mode, offset, length);
}

/* KVM_RUN in slices: between two of them other threads get the server, and signals end the run as in Linux. */
static long run(int fd, struct file *file, uint64_t argument)
{
	sigset_t old, all, pending;
	int64_t result;
	uint32_t again = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	for (;;) {
		const sigset_t *mask = file->masked ? &file->mask : &old;
		sigset_t inner;
		int kicked = 0;

		sigpending(&pending);
		for (int signal = 1; signal < 65 && !kicked; signal++)
			kicked = sigismember(&pending, signal) == 1 && sigismember(mask, signal) != 1;
		if (kicked && again) {
			result = -EINTR;
			break;
		}
		enter(&inner);
		result = ask((struct request){ .op = OP_RUN, .fd = fd, .request = (uint32_t)argument, .a = kicked ? 0 : RUN_SLICE }, &again,
			     NULL, NULL);
		leave(&inner);
		if (!again)
			break;
		if (again == 2) {
			struct timespec nap = { 0, 50000 };

			nanosleep(&nap, NULL);
		}
	}
	if (result == -EINTR && again && file->run)
		file->run[2] = KVM_EXIT_INTR;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return finish(result);
}

int ioctl(int fd, unsigned long request, ...)
{
	struct file *file = served(fd);
	uint64_t argument;
	va_list list;
	sigset_t old;
	int64_t result = 0;
	int spare = -1;
	uint32_t code = (uint32_t)request;

	va_start(list, request);
	argument = va_arg(list, uint64_t);
	va_end(list);
	if (!file || file->kind == EVENT)
		return (int)syscall(SYS_ioctl, fd, request, argument);
	if (code == KVM_RUN && file->kind == VCPU)
		return (int)run(fd, file, argument);
	if (code == KVM_SET_SIGNAL_MASK && file->kind == VCPU) {
		/* struct kvm_signal_mask: len u32, then the kernel's 8-byte set. */
		file->masked = argument != 0;
		sigemptyset(&file->mask);
		if (argument)
			memcpy(&file->mask, (char *)argument + 4, 8);
		return 0;
	}
	if (code == KVM_CREATE_VM || code == KVM_CREATE_VCPU || code == KVM_GET_STATS_FD || code == KVM_CREATE_GUEST_MEMFD ||
	    code == KVM_CREATE_DEVICE) {
		spare = placeholder("kvm");
		if (spare < 0)
			return -1;
		if (code == KVM_CREATE_GUEST_MEMFD)
			ftruncate(spare, (off_t) * (uint64_t *)argument);
	}
	enter(&old);
	if (code == KVM_SET_USER_MEMORY_REGION || code == KVM_SET_USER_MEMORY_REGION2) {
		const uint64_t *region = (const uint64_t *)argument; /* slot|flags, guest address, size, address */

		if (region && region[2] && !(region[2] % PAGE) && !(region[3] % PAGE) && region[3] + region[2] <= 1UL << 47)
			claim((char *)region[3], region[2]);
	}
	for (int tries = 0; tries < 4; tries++) {
		struct segment *wanted;
		uint32_t count, again;

		result = ask((struct request){ .op = OP_IOCTL, .fd = fd, .request = code, .spare = spare, .a = argument }, &again, &wanted,
			     &count);
		for (uint32_t i = 0; i < count; i++)
			claim((char *)wanted[i].at, wanted[i].length);
		free(wanted);
		if (!again)
			break;
	}
	leave(&old);
	if (spare >= 0) {
		if (result < 0) {
			syscall(SYS_close, spare);
		} else {
			install(spare, code == KVM_CREATE_VCPU ? VCPU : code == KVM_CREATE_GUEST_MEMFD ? GMEM : SERVED);
			if (code != KVM_CREATE_DEVICE)
				result = spare;
		}
	}
	return (int)finish(result);
}
