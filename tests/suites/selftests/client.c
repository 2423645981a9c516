/*
 * A client for shim.c: an ordinary VM in real mode, whose memory the client changes while a thread runs the vCPU. Prints
 * "ok" and ends with 0 if everything went as on Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)                                                                     \
	do {                                                                            \
		if (!(what)) {                                                          \
			printf("%d: %s (errno %d)\n", __LINE__, #what, errno);          \
			_exit(1);                                                       \
		}                                                                       \
	} while (0)

/* again: in al, 0x80; wait: cmp byte [0x2000], al; jne wait; inc byte [0x2001]; jmp again */
static const uint8_t code[] = { 0xe4, 0x80, 0x38, 0x06, 0x00, 0x20, 0x75, 0xfa, 0xfe, 0x06, 0x01, 0x20, 0xeb, 0xf2 };

static int vcpu;
static struct kvm_run *run;
static volatile uint8_t *memory;
static volatile int done;

static void nothing(int signal)
{
	(void)signal;
}

static void *thread(void *result)
{
	*(int *)result = ioctl(vcpu, KVM_RUN, 0) == 0 ? 0 : errno;
	done = 1;
	return NULL;
}

static int in_thread(void (*meanwhile)(pthread_t))
{
	pthread_t other;
	int result = -1;

	done = 0;
	CHECK(pthread_create(&other, NULL, thread, &result) == 0);
	usleep(20000);
	meanwhile(other);
	CHECK(pthread_join(other, NULL) == 0);
	return result;
}

static void let_go(pthread_t other)
{
	(void)other;
	memory[0x2000] = 7;
}

static void kick(pthread_t other)
{
	/* The first signal may come before KVM_RUN. */
	for (; !done; usleep(10000))
		pthread_kill(other, SIGUSR1);
}

static void guest(int kvm)
{
	struct kvm_userspace_memory_region region = { .slot = 0, .memory_size = 0x10000 };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	struct sigaction action = { .sa_handler = nothing };
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	CHECK(vm >= 0);
	memory = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy((void *)(memory + 0x1000), code, sizeof(code));
	region.userspace_addr = (uintptr_t)memory;
	CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	CHECK(vcpu >= 0);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	CHECK(run != MAP_FAILED);
	CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = sregs.cs.selector = 0;
	CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0 && ioctl(vcpu, KVM_SET_REGS, &regs) == 0);

	CHECK(ioctl(vcpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO && run->io.port == 0x80);
	*((uint8_t *)run + run->io.data_offset) = 7;
	/* The guest spins until this process writes its memory; then it has written too. */
	CHECK(in_thread(let_go) == 0 && run->exit_reason == KVM_EXIT_IO && memory[0x2001] == 1);
	*((uint8_t *)run + run->io.data_offset) = 8;
	sigaction(SIGUSR1, &action, NULL);
	CHECK(in_thread(kick) == EINTR);
	run->immediate_exit = 1;
	CHECK(ioctl(vcpu, KVM_RUN, 0) == -1 && errno == EINTR);

	CHECK(close(vcpu) == 0 && close(vm) == 0);
	CHECK(ioctl(vm, KVM_CHECK_EXTENSION, 0) == -1 && errno == EBADF);
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR);
	int status;

	CHECK(kvm >= 0 && ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
	CHECK(ioctl(kvm, KVM_GET_MSR_INDEX_LIST, (void *)8) == -1 && errno == EFAULT);
	guest(kvm);
	if (fork() == 0) {
		guest(kvm);
		_exit(0);
	}
	CHECK(wait(&status) > 0 && status == 0);
	puts("ok");
	return 0;
}
