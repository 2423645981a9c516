/*
 * Plays calls on the real /dev/kvm: reads one command a line, answers one line each (tests/kvm/oracle/script.ts writes both
 * sides). No knowledge of any request: bytes in, errno and bytes out.
 *
 *   n TYPE                                   a fresh VM, scratch and memory zeroed
 *   c FD REQUEST LENGTH BASE SCALAR P R      ioctl: FD s (system), v (VM) or a vCPU's index; LENGTH -1: SCALAR is the argument;
 *                                            BASE: the bytes begin as what that request gave last on this file descriptor;
 *                                            P patches OFFSET:HEX, R pointers OFFSETkVALUE with k = S scratch, M memory
 *                                            (u64 address + VALUE) or E (u32 descriptor of eventfd number VALUE)
 *   w AREA OFFSET HEX / r AREA OFFSET LENGTH area S scratch, M memory or the kvm_run of a vCPU by index
 *   e NUMBER / E NUMBER                      reads (or -EAGAIN) / signals an eventfd
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

enum { AREA = 0x10000, VCPUS = 4, EVENTS = 8, KEPT = 256, MOST = 0x4000 };

static int sys_fd, vm_fd = -1, vcpu_fd[VCPUS], vcpus, event_fd[EVENTS];
static unsigned char *scratch, *memory, *run[VCPUS];
static size_t run_size;
static struct { int fd; unsigned request; unsigned char bytes[MOST]; } kept[KEPT];
static int kept_count;

static void tick(int signal) { (void)signal; }

static int nibble(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

static int unhex(const char *hex, unsigned char *to) {
  int n = 0;
  for (; hex[0] && hex[1] && hex[0] != '\n' && hex[0] != ' '; hex += 2) to[n++] = nibble(hex[0]) << 4 | nibble(hex[1]);
  return n;
}

static void hex(const unsigned char *from, int n) {
  putchar(' ');
  for (int i = 0; i < n; i++) printf("%02x", from[i]);
}

static int event(int i) {
  if (event_fd[i] < 0) event_fd[i] = eventfd(0, EFD_NONBLOCK);
  return event_fd[i];
}

static void fresh(int type) {
  for (int i = 0; i < vcpus; i++) { munmap(run[i], run_size); close(vcpu_fd[i]); }
  vcpus = 0;
  kept_count = 0;
  if (vm_fd >= 0) close(vm_fd);
  for (int i = 0; i < EVENTS; i++) { if (event_fd[i] >= 0) close(event_fd[i]); event_fd[i] = -1; }
  memset(scratch, 0, AREA);
  memset(memory, 0, AREA);
  vm_fd = ioctl(sys_fd, KVM_CREATE_VM, type);
  printf("%d\n", vm_fd < 0 ? -errno : 0);
}

static unsigned char *area(const char *name) {
  if (name[0] == 'S') return scratch;
  if (name[0] == 'M') return memory;
  int i = atoi(name);
  return i < vcpus ? run[i] : scratch;
}

static void call(void) {
  static unsigned char bytes[MOST];
  const char *target = strtok(NULL, " ");
  unsigned request = strtoul(strtok(NULL, " "), NULL, 16);
  int length = atoi(strtok(NULL, " "));
  unsigned base = strtoul(strtok(NULL, " "), NULL, 16);
  unsigned long scalar = strtoul(strtok(NULL, " "), NULL, 16);
  int patches = atoi(strtok(NULL, " ")), pointers = atoi(strtok(NULL, " "));
  int i = target[0] - '0';
  int fd = target[0] == 's' ? sys_fd : target[0] == 'v' ? vm_fd : i >= 0 && i < vcpus ? vcpu_fd[i] : -1;
  memset(bytes, 0, sizeof bytes);
  if (base)
    for (int k = kept_count - 1; k >= 0; k--)
      if (kept[k].fd == fd && kept[k].request == base) { memcpy(bytes, kept[k].bytes, MOST); break; }
  while (patches--) {
    char *p = strtok(NULL, " ");
    int at = atoi(p);
    unhex(strchr(p, ':') + 1, bytes + at);
  }
  while (pointers--) {
    char *p = strtok(NULL, " \n");
    char *end;
    int at = strtol(p, &end, 10);
    unsigned long value = strtoul(end + 1, NULL, 10);
    if (*end == 'E') *(uint32_t *)(bytes + at) = event(value);
    else *(uint64_t *)(bytes + at) = (uint64_t)(uintptr_t)(*end == 'M' ? memory : scratch) + value;
  }
  /* A guest that never exits is stopped as by a signal. */
  struct itimerval soon = {{0, 0}, {0, request == KVM_RUN ? 100000 : 0}}, off = {{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &soon, NULL);
  long result = ioctl(fd, request, length < 0 ? (void *)scalar : (void *)bytes);
  if (result < 0) result = -errno;
  setitimer(ITIMER_REAL, &off, NULL);
  if (request == KVM_CREATE_VCPU && result >= 0) {
    if (vcpus < VCPUS) {
      run[vcpus] = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, result, 0);
      vcpu_fd[vcpus++] = result;
    } else close(result);
    result = 0;
  } else if (result >= 0 && (request == KVM_GET_STATS_FD || request == 0xc040aed4u /* KVM_CREATE_GUEST_MEMFD */)) {
    close(result);
    result = 0;
  }
  printf("%ld", result);
  if (length >= 0) {
    hex(bytes, length);
    if (result >= 0) {
      int k = 0;
      while (k < kept_count && (kept[k].fd != fd || kept[k].request != request)) k++;
      if (k == kept_count && kept_count < KEPT) kept_count++;
      if (k == KEPT) exit(2);
      kept[k].fd = fd;
      kept[k].request = request;
      memcpy(kept[k].bytes, bytes, MOST);
    }
  }
  putchar('\n');
}

int main(void) {
  static char line[4 * MOST];
  sys_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (sys_fd < 0) return 1;
  run_size = ioctl(sys_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
  scratch = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < EVENTS; i++) event_fd[i] = -1;
  struct sigaction action = {.sa_handler = tick};
  sigaction(SIGALRM, &action, NULL);
  while (fgets(line, sizeof line, stdin)) {
    char *kind = strtok(line, " ");
    if (*kind == 'n') fresh(atoi(strtok(NULL, " ")));
    else if (*kind == 'c') call();
    else if (*kind == 'w') {
      unsigned char *to = area(strtok(NULL, " "));
      int at = atoi(strtok(NULL, " "));
      unhex(strtok(NULL, " "), to + at);
      puts("0");
    } else if (*kind == 'r') {
      unsigned char *from = area(strtok(NULL, " "));
      int at = atoi(strtok(NULL, " "));
      printf("0");
      hex(from + at, atoi(strtok(NULL, " ")));
      putchar('\n');
    } else {
      uint64_t value = 1;
      int fd = event(atoi(strtok(NULL, " ")));
      long n = *kind == 'e' ? read(fd, &value, 8) : write(fd, &value, 8);
      printf("%ld\n", n < 0 ? (long)-errno : *kind == 'e' ? (long)value : 0);
      /* irqfd_wakeup hands what cannot be injected at once to a work queue: it is done before the next call. */
      if (*kind == 'E') usleep(5000);
    }
    fflush(stdout);
  }
  return 0;
}
