/* Runs instructions natively with the whole x87, SSE and general-register state loaded before and stored after each.
   stdin: records { u8 length, u8 code[15], u64 gpr[4] (rax rcx rdx rbx), u64 rflags, u8 fx[512], u8 memory[1024] };
   stdout: records { u64 vector (0xff none), u64 gpr[4], u64 rflags, u8 fx[512], u8 memory[1024] }.
   The memory block is at 0x37fe00 (across a page boundary); rsi and rdi hold its address. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <ucontext.h>
#include <unistd.h>

struct in { uint8_t n, code[15]; uint64_t gpr[4], flags; uint8_t fx[512], mem[1024]; };
struct out { uint64_t vector, gpr[4], flags; uint8_t fx[512], mem[1024]; };
static struct { uint64_t rsp, gpr[4], flags; uint64_t pad[2]; uint8_t fx[512]; } __attribute__((aligned(64))) *io;
static uint8_t *code, *mem;
static sigjmp_buf back;
static struct out o;

static void handler(int sig, siginfo_t *info, void *context) {
  ucontext_t *u = context;
  greg_t *g = u->uc_mcontext.gregs;
  o.vector = g[REG_TRAPNO];
  o.gpr[0] = g[REG_RAX]; o.gpr[1] = g[REG_RCX]; o.gpr[2] = g[REG_RDX]; o.gpr[3] = g[REG_RBX];
  o.flags = g[REG_EFL];
  memcpy(o.fx, u->uc_mcontext.fpregs, 512);
  __asm__ volatile("fninit");
  siglongjmp(back, 1);
}
static uint8_t *put(uint8_t *p, const void *b, int n) { memcpy(p, b, n); return p + n; }

int main(void) {
  /* A case that spins must not outlive the test. */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  code = mmap((void *)0x30000000, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  mem = mmap((void *)0x37f000, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  mem += 0xe00;
  io = mmap((void *)0x28000000, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  stack_t alt = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };
  sigaltstack(&alt, 0);
  struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
  sigaction(SIGFPE, &sa, 0); sigaction(SIGILL, &sa, 0); sigaction(SIGSEGV, &sa, 0); sigaction(SIGBUS, &sa, 0);
  struct in c;
  while (fread(&c, sizeof c, 1, stdin) == 1) {
    memset(&o, 0, sizeof o);
    memcpy(io->gpr, c.gpr, 32); io->flags = c.flags; memcpy(io->fx, c.fx, 512); memcpy(mem, c.mem, 1024);
    uint8_t *p = code;
    /* push rbx rbp rsi; mov [0x28000000], rsp; fxrstor64 [0x28000040] */
    p = put(p, "\x53\x55\x56\x48\x89\x24\x25\x00\x00\x00\x28", 11);
    p = put(p, "\x48\x0f\xae\x0c\x25\x40\x00\x00\x28", 9);
    /* push qword [0x28000028]; popfq; mov rax,rcx,rdx,rbx from 08..20; mov esi, 0x20000000 */
    p = put(p, "\xff\x34\x25\x28\x00\x00\x28\x9d", 8);
    p = put(p, "\x48\x8b\x04\x25\x08\x00\x00\x28\x48\x8b\x0c\x25\x10\x00\x00\x28\x48\x8b\x14\x25\x18\x00\x00\x28\x48\x8b\x1c\x25\x20\x00\x00\x28", 32);
    p = put(p, "\xbe\x00\xfe\x37\x00\xbf\x00\xfe\x37\x00", 10);
    p = put(p, c.code, c.n);
    /* store them back: mov [..], r; pushfq; pop [0x28000028]; fxsave64; mov rsp,[...]; pop rsi rbp rbx; ret */
    p = put(p, "\x48\x89\x04\x25\x08\x00\x00\x28\x48\x89\x0c\x25\x10\x00\x00\x28\x48\x89\x14\x25\x18\x00\x00\x28\x48\x89\x1c\x25\x20\x00\x00\x28", 32);
    p = put(p, "\x9c\x8f\x04\x25\x28\x00\x00\x28", 8);
    p = put(p, "\x48\x0f\xae\x04\x25\x40\x00\x00\x28", 9);
    p = put(p, "\x48\x8b\x24\x25\x00\x00\x00\x28\x5e\x5d\x5b\xdb\xe3\xc3", 14);
    if (!sigsetjmp(back, 0)) {
      __asm__ volatile("call *%0" : : "r"(code) : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
      o.vector = 0xff;
      memcpy(o.gpr, io->gpr, 32); o.flags = io->flags; memcpy(o.fx, io->fx, 512);
    }
    memcpy(o.mem, mem, 1024);
    fwrite(&o, sizeof o, 1, stdout);
  }
  return 0;
}
