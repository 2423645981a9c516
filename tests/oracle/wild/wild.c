/*
 * Executes one user-mode instruction per case on the physical CPU by single-stepping it (TF), or several up to an INT3: any bytes, any
 * prefixes, faults, branches, segments of an LDT, x87 and SSE state. Batches over stdin and stdout; one signal per case, whose frame is the result
 * of the case and is rewritten into the state of the next.
 *
 * In:  u32 cases, u32 descriptors, struct user_desc each, 8192 bytes for the two writable data pages, then struct in per case.
 * Out: struct out per case, each followed by the data bytes from `first` to before `last`, padded to a multiple of 8.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <immintrin.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE 0x10000000u
#define CODE_SIZE 0x20000u
#define DATA 0x20000000u /* two writable pages, one read-only, then nothing */

struct in {
  uint8_t code[96];
  uint32_t slot; /* linear address of the bytes */
  uint16_t segment[6]; /* ES CS SS DS FS GS */
  uint32_t length, free; /* bytes of code; without TF: to the INT3 behind them */
  uint64_t unused;
  uint64_t rip, gpr[16], rflags, base[2]; /* FS GS, where the selector is null */
  uint8_t fx[416];
};
struct out {
  uint32_t vector, error;
  uint64_t cr2, rip, gpr[16], rflags, base[2];
  uint16_t segment[6];
  uint16_t first, last; /* changed data */
  uint8_t fx[416];
};

static const int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
static struct in *cases;
static uint32_t count, next;
static uint8_t *reply, *to, *data, clean[0x2000];
static volatile int inside;
static uint64_t hostFs, hostGs;
static uint16_t hostDs;

static void copy(void *a, const void *b, uint64_t n) { __asm__ volatile("rep movsb" : "+D"(a), "+S"(b), "+c"(n) : : "memory"); }
static void putCode(const struct in *c, int set) {
  for (uint32_t i = 0; i < c->length && c->slot + i < CODE + CODE_SIZE; i++) *(volatile uint8_t *)(uintptr_t)(c->slot + i) = set ? c->code[i] : 0xcc;
}
static void writeAll(const uint8_t *from, const uint8_t *end) {
  while (from < end) {
    ssize_t n = write(1, from, (size_t)(end - from));
    if (n <= 0) _exit(72);
    from += n;
  }
}
static void readAll(void *into, size_t n) {
  uint8_t *p = into;
  while (n > 0) {
    ssize_t k = read(0, p, n);
    if (k <= 0) _exit(0);
    p += k;
    n -= (size_t)k;
  }
}

static void take(ucontext_t *u, const struct in *c) {
  greg_t *g = u->uc_mcontext.gregs;
  struct out *o = (struct out *)to;
  o->vector = (uint32_t)g[REG_TRAPNO];
  o->error = (uint32_t)g[REG_ERR];
  o->cr2 = (uint64_t)g[REG_CR2];
  o->rip = (uint64_t)g[REG_RIP];
  for (int i = 0; i < 16; i++) o->gpr[i] = (uint64_t)g[order[i]];
  o->rflags = (uint64_t)g[REG_EFL];
  o->segment[1] = (uint16_t)g[REG_CSGSFS];
  o->segment[2] = (uint16_t)((uint64_t)g[REG_CSGSFS] >> 48);
  copy(o->fx, u->uc_mcontext.fpregs, 416);
  uint32_t first = 0, last = 0x2000;
  const uint64_t *a = (const uint64_t *)data, *b = (const uint64_t *)clean;
  while (first < 0x2000 && a[first / 8] == b[first / 8]) first += 8;
  if (first == 0x2000) last = first;
  else while (a[last / 8 - 1] == b[last / 8 - 1]) last -= 8;
  o->first = (uint16_t)first;
  o->last = (uint16_t)last;
  to += sizeof *o;
  copy(to, data + first, last - first);
  copy(data + first, clean + first, last - first);
  to += last - first;
  putCode(c, 0);
}

static void set(ucontext_t *u, const struct in *c) {
  greg_t *g = u->uc_mcontext.gregs;
  uint8_t *fp = (uint8_t *)u->uc_mcontext.fpregs;
  putCode(c, 1);
  for (int i = 0; i < 16; i++) g[order[i]] = (greg_t)c->gpr[i];
  g[REG_RIP] = (greg_t)c->rip;
  g[REG_EFL] = (greg_t)(c->rflags | (c->free ? 0 : 0x100));
  g[REG_CSGSFS] = (greg_t)(c->segment[1] | (uint64_t)c->segment[2] << 48);
  copy(fp, c->fx, 416);
  *(uint64_t *)(fp + 512) |= 3; /* XSTATE_BV: x87 and SSE */
  const uint16_t *s = c->segment;
  __asm__ volatile("mov %0, %%ds; mov %1, %%es; mov %2, %%fs; mov %3, %%gs" : : "r"((uint32_t)s[3]), "r"((uint32_t)s[0]), "r"((uint32_t)s[4]), "r"((uint32_t)s[5]));
  if (!(s[4] & ~3)) __asm__ volatile("wrfsbase %0" : : "r"(c->base[0]));
  if (!(s[5] & ~3)) __asm__ volatile("wrgsbase %0" : : "r"(c->base[1]));
}

/* No thread-local storage: FS and GS are the case's. */
static void handler(int sig, siginfo_t *info, void *context) {
  __asm__ volatile("pushfq; andl $~0x244000, (%%rsp); popfq; cld" : : : "memory", "cc");
  uint16_t ds, es, fs, gs;
  uint64_t fsBase, gsBase;
  __asm__ volatile("mov %%ds, %0; mov %%es, %1; mov %%fs, %2; mov %%gs, %3" : "=r"(ds), "=r"(es), "=r"(fs), "=r"(gs));
  __asm__ volatile("rdfsbase %0; rdgsbase %1" : "=r"(fsBase), "=r"(gsBase));
  ucontext_t *u = context;
  (void)info;
  static uint32_t seen;
  if (sig == SIGALRM) {
    int progress = next != seen;
    seen = next;
    if (progress || inside || next >= count) return;
  }
  if (inside && sig != SIGUSR1) _exit(75);
  inside = 1;
  if (sig != SIGUSR1) {
    struct out *o = (struct out *)to;
    take(u, cases + next);
    if (sig == SIGALRM) o->vector = 999; /* this machine loops in its kernel */
    o->segment[0] = es;
    o->segment[3] = ds;
    o->segment[4] = fs;
    o->segment[5] = gs;
    o->base[0] = fsBase;
    o->base[1] = gsBase;
    next++;
  }
  if (next == count) {
    /* back into main, as it was */
    extern ucontext_t home;
    __asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %1, %%gs" : : "r"((uint32_t)hostDs), "r"(0));
    __asm__ volatile("wrfsbase %0; wrgsbase %1" : : "r"(hostFs), "r"(hostGs));
    copy(u->uc_mcontext.gregs, home.uc_mcontext.gregs, sizeof(gregset_t));
    uint8_t *fp = (uint8_t *)u->uc_mcontext.fpregs;
    for (int i = 0; i < 416; i++) fp[i] = 0;
    *(uint16_t *)fp = 0x37f;
    *(uint32_t *)(fp + 24) = 0x1f80;
    *(uint64_t *)(fp + 512) |= 3;
    inside = 0;
    return;
  }
  set(u, cases + next);
  inside = 0;
}

ucontext_t home;
/* The frame that USR1 interrupts is where the batch comes back to. */
static void first(int sig, siginfo_t *info, void *context) {
  copy(&home, context, sizeof home);
  handler(sig, info, context);
}

int main(void) {
  /* A case that spins must not outlive the test. */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  /* The limit of segment 7b is the CPU's number. */
  cpu_set_t cpu;
  CPU_ZERO(&cpu);
  CPU_SET(0, &cpu);
  sched_setaffinity(0, sizeof cpu, &cpu);
  int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  memset(mmap((void *)(uintptr_t)CODE, CODE_SIZE, 7, fixed, -1, 0), 0xcc, CODE_SIZE);
  data = mmap((void *)(uintptr_t)DATA, 0x3000, 3, fixed, -1, 0);
  for (uint32_t i = 0x2000; i < 0x3000; i++) data[i] = (uint8_t)(i * 167 + (i >> 8) * 13 + 5);
  mprotect(data + 0x2000, 0x1000, 1);
  __asm__ volatile("rdfsbase %0; rdgsbase %1; mov %%ds, %2" : "=r"(hostFs), "=r"(hostGs), "=r"(hostDs));
  stack_t stack = {.ss_sp = malloc(1 << 18), .ss_size = 1 << 18};
  memset(stack.ss_sp, 0, 1 << 18);
  sigaltstack(&stack, 0);
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
  static const int signals[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS, SIGTRAP, SIGALRM};
  for (int i = 0; i < 6; i++) sigaction(signals[i], &action, 0);
  action.sa_sigaction = first;
  sigaction(SIGUSR1, &action, 0);
  for (;;) {
    uint32_t header[2];
    readAll(header, 8);
    for (uint32_t i = 0; i < header[1]; i++) {
      struct user_desc d;
      readAll(&d, sizeof d);
      if (syscall(SYS_modify_ldt, 0x11, &d, sizeof d) != 0) return 73;
    }
    readAll(clean, 0x2000);
    copy(data, clean, 0x2000);
    count = header[0];
    next = 0;
    cases = malloc(count * sizeof(struct in));
    reply = to = malloc(count * (sizeof(struct out) + 0x2000));
    if (!cases || !reply) return 71;
    readAll(cases, count * sizeof(struct in));
    struct itimerval on = {{1, 0}, {1, 0}}, off = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &on, 0);
    raise(SIGUSR1);
    setitimer(ITIMER_REAL, &off, 0);
    uint64_t total = (uint64_t)(to - reply);
    writeAll((uint8_t *)&total, (uint8_t *)&total + 8);
    writeAll(reply, to);
    free(cases);
    free(reply);
  }
}
