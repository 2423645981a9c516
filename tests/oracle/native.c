/*
 * Executes single user-mode instructions on the physical CPU, in batches over stdin and stdout.
 * One case: load RFLAGS and the general registers (and an FXSAVE image), run the bytes at SLOT, save everything.
 * A fault, or a branch away, ends in a signal; its vector, error code and CR2 are reported as the kernel gives them.
 *
 * In:  u32 count, u32 0, then per case struct in (+ 512 bytes of FXSAVE image if flags & FX, + WINDOW bytes if flags & MEM).
 * Out: u32 bytes that follow, u32 number from 1 of the first case that changed memory outside the windows (0), then per case
 *      struct out (+ 512 bytes if FX, + WINDOW bytes if the window changed: flags & MEM).
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE 0x10000000u
#define CODE_SIZE 0x20000u
#define DATA 0x20000000u  /* two writable pages, one read-only, then nothing */
#define WINDOW_AT 0x20000f00u  /* 512 bytes across the two writable pages */
#define WINDOW2_AT 0x20001f80u /* 128 bytes before the read-only page */
#define WINDOW 640
#define STATE 0x18000000u /* registers, scratch stack, saved host state */
#define COMPAT32 4 /* run as 32-bit code, flat but for FS and GS */
#define COMPAT16 8 /* run as 16-bit code in the segments of the LDT */
#define CODE16 0x10008000u
#define SMALL 0x1fff8000u
#define FX 1
#define MEM 2

struct in {
  uint8_t code[96];
  uint32_t length, pad;
  uint32_t flags, slot; /* where the bytes go: near SLOT */
  uint64_t gpr[16], rflags;
};
struct out {
  uint32_t flags, vector; /* vector 0xff: ran through */
  uint32_t error, pad;
  uint64_t cr2, rip, gpr[16], rflags;
};

/* STATE page: +0 gpr in, +128 rflags in, +256 gpr out, +384 rflags out, +512 fx in, +1024 fx out, +0x800 host rsp, +0x808 scratch rsp */
static uint8_t *p;
static void b(int x) { *p++ = (uint8_t)x; }
static void d(uint32_t x) { memcpy(p, &x, 4); p += 4; }
static void loadReg(int r, uint32_t at) { b(0x48 | (r > 7 ? 4 : 0)); b(0x8b); b(4 | (r & 7) << 3); b(0x25); d(at); }
static void storeReg(int r, uint32_t at) { b(0x48 | (r > 7 ? 4 : 0)); b(0x89); b(4 | (r & 7) << 3); b(0x25); d(at); }

static uint8_t *enter[2], *leave[2], *slotJump[2], *back;
static uint8_t *enterFar; /* legacy modes: segment registers and a far jump */
static uint64_t hostFs;
static struct out *current;
static volatile int faulted;

static void windowIn(const uint8_t *from) {
  memcpy((void *)(uintptr_t)WINDOW_AT, from, 512);
  memcpy((void *)(uintptr_t)WINDOW2_AT, from + 512, 128);
}
static void windowOut(uint8_t *to) {
  memcpy(to, (void *)(uintptr_t)WINDOW_AT, 512);
  memcpy(to + 512, (void *)(uintptr_t)WINDOW2_AT, 128);
}

static void build(void) {
  static const int saved[] = {3, 5, 12, 13, 14, 15};
  p = (uint8_t *)(uintptr_t)CODE;
  memset(p, 0xcc, CODE_SIZE);
  for (int fx = 0; fx < 2; fx++) {
    enter[fx] = p;
    for (int i = 0; i < 6; i++) { if (saved[i] > 7) b(0x41); b(0x50 | (saved[i] & 7)); }
    storeReg(4, STATE + 0x800);
    if (fx) { b(0x48); b(0x0f); b(0xae); b(0x0c); b(0x25); d(STATE + 512); }
    loadReg(4, STATE + 0x808);
    b(0xff); b(0x34); b(0x25); d(STATE + 128);
    b(0x9d);
    for (int r = 0; r < 16; r++) loadReg(r, STATE + r * 8);
    slotJump[fx] = p + 1;
    b(0xe9); d(0);
  }
  enterFar = p;
  for (int i = 0; i < 6; i++) { if (saved[i] > 7) b(0x41); b(0x50 | (saved[i] & 7)); }
  storeReg(4, STATE + 0x800);
  loadReg(4, STATE + 0x808);
  /* mov eax, [selector]; mov sreg, eax for ES SS DS FS GS */
  static const int order[] = {0, 2, 3, 4, 5};
  for (int i = 0; i < 5; i++) { b(0x8b); b(0x04); b(0x25); d(STATE + 0x820 + (uint32_t)order[i] * 4); b(0x8e); b(0xc0 | order[i] << 3); }
  b(0xff); b(0x34); b(0x25); d(STATE + 128);
  b(0x9d);
  for (int r = 0; r < 16; r++) loadReg(r, STATE + r * 8);
  b(0xff); b(0x2c); b(0x25); d(STATE + 0x818);
  for (int fx = 0; fx < 2; fx++) {
    leave[fx] = p;
    for (int r = 0; r < 16; r++) storeReg(r, STATE + 256 + r * 8);
    loadReg(4, STATE + 0x808);
    b(0x9c); b(0x8f); b(0x04); b(0x25); d(STATE + 384);
    if (fx) { b(0x48); b(0x0f); b(0xae); b(0x04); b(0x25); d(STATE + 1024); }
    b(0xe9); d(0);
  }
  back = p;
  /* flat DS ES SS, null FS GS; then their bases */
  b(0xb8); d(0x2b);
  b(0x8e); b(0xc0); b(0x8e); b(0xd0); b(0x8e); b(0xd8);
  b(0x31); b(0xc0);
  b(0x8e); b(0xe0); b(0x8e); b(0xe8);
  loadReg(0, STATE + 0x810);
  b(0xf3); b(0x48); b(0x0f); b(0xae); b(0xd0);
  b(0xb8); d(DATA);
  b(0xf3); b(0x48); b(0x0f); b(0xae); b(0xd8);
  loadReg(4, STATE + 0x800);
  b(0x6a); b(2); b(0x9d);
  for (int i = 5; i >= 0; i--) { if (saved[i] > 7) b(0x41); b(0x58 | (saved[i] & 7)); }
  b(0xc3);
  for (int fx = 0; fx < 2; fx++) {
    uint8_t *at = fx ? back - 4 : leave[1] - 4;
    uint32_t rel = (uint32_t)(back - (at + 4));
    memcpy(at, &rel, 4);
  }
}

/* Uses no thread-local storage: the case may have changed GS, and runs on any stack. */
static void onSignal(int sig, siginfo_t *info, void *context) {
  /* AC survives signal delivery. */
  __asm__ volatile("pushfq; andl $~0x40000, (%%rsp); popfq" : : : "memory", "cc");
  ucontext_t *u = context;
  greg_t *g = u->uc_mcontext.gregs;
  static const int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  if (!current) _exit(70);
  uint64_t *out = (uint64_t *)(uintptr_t)(STATE + 256);
  for (int i = 0; i < 16; i++) out[i] = (uint64_t)g[order[i]];
  out[16] = (uint64_t)g[REG_EFL];
  current->vector = (uint32_t)g[REG_TRAPNO];
  current->error = (uint32_t)g[REG_ERR];
  current->cr2 = (uint64_t)g[REG_CR2];
  current->rip = (uint64_t)g[REG_RIP];
  current->pad = (uint32_t)sig;
  if (u->uc_mcontext.fpregs) memcpy((void *)(uintptr_t)(STATE + 1024), u->uc_mcontext.fpregs, 512);
  faulted = 1;
  g[REG_RIP] = (greg_t)(uintptr_t)back;
  g[REG_CSGSFS] = (greg_t)(0x33 | (uint64_t)0x2b << 48);
  g[REG_EFL] = 2;
  (void)info;
}

static void readAll(void *to, size_t n) {
  if (fread(to, 1, n, stdin) != n) exit(0);
}

int main(void) {
  /* A case that spins must not outlive the test. */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  static char inBuffer[1 << 20];
  setvbuf(stdin, inBuffer, _IOFBF, sizeof inBuffer);
  int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  mmap((void *)(uintptr_t)CODE, CODE_SIZE, 7, fixed, -1, 0);
  uint8_t *state = mmap((void *)(uintptr_t)STATE, 0x10000, 3, fixed, -1, 0);
  uint8_t *data = mmap((void *)(uintptr_t)DATA, 0x3000, 3, fixed, -1, 0);
  /* pattern of the data pages: also known to the other side */
  for (uint32_t i = 0; i < 0x3000; i++) data[i] = (uint8_t)(i * 167 + (i >> 8) * 13 + 5);
  mprotect(data + 0x2000, 0x1000, 1);
  static uint8_t pristine[0x2000];
  memcpy(pristine, data, 0x2000);
  build();
  *(uint64_t *)(state + 0x808) = STATE + 0xf000;
  syscall(SYS_arch_prctl, 0x1003, &hostFs); /* ARCH_GET_FS */
  *(uint64_t *)(state + 0x810) = hostFs;
  syscall(SYS_arch_prctl, 0x1001, (unsigned long)DATA); /* ARCH_SET_GS */
  static const struct user_desc segments[] = {
    {.entry_number = 0, .base_addr = CODE16, .limit = 0xffff, .contents = 2, .useable = 1},
    {.entry_number = 1, .base_addr = SMALL, .limit = 0xffff, .contents = 0, .useable = 1},
    {.entry_number = 2, .base_addr = SMALL, .limit = 0x9ffb, .contents = 0, .useable = 1},
    {.entry_number = 3, .base_addr = SMALL, .limit = 0x8f7f, .contents = 1, .useable = 1},
    {.entry_number = 4, .base_addr = SMALL, .limit = 0xffff, .contents = 0, .read_exec_only = 1, .useable = 1},
  };
  __asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(0x2b));
  int noLdt = 0;
  for (int i = 0; i < 5; i++) if (syscall(SYS_modify_ldt, 1, &segments[i], sizeof segments[i]) != 0) noLdt = 1;
  stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
  sigaltstack(&stack, 0);
  struct sigaction action = {.sa_sigaction = onSignal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
  static const int signals[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS, SIGTRAP};
  for (int i = 0; i < 5; i++) sigaction(signals[i], &action, 0);
  static uint8_t before[WINDOW], window[WINDOW], clean[WINDOW];
  windowOut(clean);
  memcpy(before, clean, WINDOW);
  for (;;) {
    uint32_t header[2], stray = 0;
    readAll(header, 8);
    uint8_t *reply = malloc(8 + (size_t)header[0] * (sizeof(struct out) + 512 + WINDOW)), *to = reply + 8;
    if (!reply) return 71;
    for (uint32_t i = 0; i < header[0]; i++) {
      struct in in;
      struct out out;
      readAll(&in, sizeof in);
      int fx = in.flags & FX ? 1 : 0;
      if (fx) readAll(state + 512, 512);
      if (in.flags & MEM) readAll(before, WINDOW);
      windowIn(before);
      memcpy(state, in.gpr, 136);
      uint8_t *slot = (uint8_t *)(uintptr_t)in.slot;
      uint32_t rel = in.slot - (uint32_t)(uintptr_t)(slotJump[fx] + 4);
      memcpy(slotJump[fx], &rel, 4);
      memcpy(slot, in.code, in.length);
      int small = in.flags & COMPAT16 ? 16 : in.flags & COMPAT32 ? 32 : 0;
      uint32_t codeBase = small == 16 ? CODE16 : 0;
      if (small) {
        if (noLdt) return 73;
        static const uint32_t flat32[] = {0x2b, 0x23, 0x2b, 0x2b, 0x1f, 0x27}, small16[] = {0x17, 0x07, 0x0f, 0x0f, 0x1f, 0x27};
        memcpy(state + 0x820, small == 16 ? small16 : flat32, 24);
        *(uint32_t *)(state + 0x818) = in.slot - codeBase;
        *(uint32_t *)(state + 0x81c) = small == 16 ? 0x07 : 0x23;
        uint8_t *end = slot + in.length;
        if (small == 16) *end++ = 0x66;
        *end = 0xea; /* jmp far 0x33:leave */
        uint32_t to = (uint32_t)(uintptr_t)leave[fx];
        memcpy(end + 1, &to, 4);
        end[5] = 0x33; end[6] = 0;
      } else {
      slot[in.length] = 0xe9;
      rel = (uint32_t)(leave[fx] - (slot + in.length + 5));
      memcpy(slot + in.length + 1, &rel, 4);
      }
      memset(&out, 0, sizeof out);
      out.vector = 0xff;
      out.rip = in.slot + in.length - codeBase;
      current = &out;
      faulted = 0;
      ((void (*)(void))(uintptr_t)(small ? enterFar : enter[fx]))();
      current = 0;
      memset(slot, 0xcc, 128);
      if (fx) { uint32_t mxcsr = 0x1f80; __asm__ volatile("fninit; ldmxcsr %0" : : "m"(mxcsr)); }
      memcpy(out.gpr, state + 256, 136);
      windowOut(window);
      if (!stray && (memcmp(data, pristine, WINDOW_AT - DATA) || memcmp(data + 0x1100, pristine + 0x1100, 0xe80))) stray = i + 1;
      out.flags = (fx ? FX : 0) | (memcmp(window, before, WINDOW) ? MEM : 0);
      memcpy(to, &out, sizeof out);
      to += sizeof out;
      if (fx) { memcpy(to, state + 1024, 512); to += 512; }
      if (out.flags & MEM) { memcpy(to, window, WINDOW); to += WINDOW; }
    }
    uint32_t head[2] = {(uint32_t)(to - reply - 8), stray};
    windowIn(clean);
    memcpy(data, pristine, 0x2000);
    memcpy(reply, head, 8);
    for (uint8_t *from = reply; from < to;) {
      ssize_t n = write(1, from, (size_t)(to - from));
      if (n <= 0) return 72;
      from += n;
    }
    free(reply);
  }
}
