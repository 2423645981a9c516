/** RESET and INIT state of a vCPU (SDM vol 3, table 10-1; APM vol 2, 14.1.3; what KVM leaves out of it in kvm_vcpu_reset). */
import {
  CPU_APIC_BASE,
  CPU_CPL,
  CPU_CR0,
  CPU_CR2,
  CPU_CR3,
  CPU_CR4,
  CPU_CR8,
  CPU_DR,
  CPU_DR6,
  CPU_DR7,
  CPU_EFER,
  CPU_EVENT,
  CPU_EXC_FLAGS,
  CPU_FCS,
  CPU_FCW,
  CPU_FDP,
  CPU_FDS,
  CPU_FIP,
  CPU_FOP,
  CPU_FSW,
  CPU_FTAG,
  CPU_FTOP,
  CPU_GHCB,
  CPU_GPR,
  CPU_HALTED,
  CPU_ID,
  CPU_INTERRUPT_SHADOW,
  CPU_LEAVE,
  CPU_MXCSR,
  CPU_NMI_BLOCKED,
  CPU_PENDING_DB,
  CPU_RIP,
  CPU_ST,
  CPU_STEP_CANCEL,
  CPU_STOP_REASON,
  CPU_TRIPLE_FAULT,
  CPU_XCR0,
  CPU_XMM,
  CPU_XSS,
  CPU_ZERO,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_GDTR,
  SEG_IDTR,
  SEG_LDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_TR,
} from '../generated/layout'
import { CR0_CD, CR0_NW } from '../generated/registers'
import { flushBlocks } from '../decode/cache'
import { flushTlb } from '../memory/tlb'
import { updateDebug } from './debug'
import { setFlags } from './flags'
import { segment, updateMode } from './mode'
import { resetMsrs } from './msr'
import { familyModelStepping } from './features'

function put(s: usize, n: u32, selector: u32, base: u64, attrib: u32): void {
  const d = segment(s, n)
  store<u64>(d, base, SEG_BASE)
  store<u32>(d, 0xffff, SEG_LIMIT)
  store<u16>(d, <u16>selector, SEG_SELECTOR)
  store<u16>(d, <u16>attrib, SEG_ATTRIB)
}

/** Power-on state, or INIT (keeps caching bits, MSRs, x87/SSE state, XCR0, XSS and the time). */
export function resetCpu(s: usize, init: bool): void {
  memory.fill(s + CPU_GPR, 0, 128)
  store<u64>(s, 0, CPU_ZERO)
  store<u64>(s, <u64>familyModelStepping(s), CPU_GPR + 16)
  store<u64>(s, 0xfff0, CPU_RIP)
  setFlags(s, 2)
  for (let n: u32 = 0; n < 6; n++) put(s, n, 0, 0, 0x93)
  put(s, SEG_CS, 0xf000, 0xffff0000, 0x9b)
  put(s, SEG_LDTR, 0, 0, 0x82)
  put(s, SEG_TR, 0, 0, 0x8b)
  put(s, SEG_GDTR, 0, 0, 0)
  put(s, SEG_IDTR, 0, 0, 0)
  store<u64>(s, 0x10 | (init ? load<u64>(s, CPU_CR0) & (CR0_CD | CR0_NW) : CR0_CD | CR0_NW), CPU_CR0)
  store<u64>(s, 0, CPU_CR2)
  store<u64>(s, 0, CPU_CR3)
  store<u64>(s, 0, CPU_CR4)
  store<u64>(s, 0, CPU_CR8)
  store<u64>(s, 0, CPU_EFER)
  memory.fill(s + CPU_DR, 0, 32)
  store<u64>(s, 0xffff0ff0, CPU_DR6)
  store<u64>(s, 0x400, CPU_DR7)
  updateDebug(s)
  store<u32>(s, 0, CPU_CPL)
  store<u32>(s, 0, CPU_LEAVE)
  store<u32>(s, 0, CPU_EXC_FLAGS)
  store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
  store<u32>(s, 0, CPU_NMI_BLOCKED)
  store<u32>(s, 0, CPU_PENDING_DB)
  store<u32>(s, 0, CPU_STEP_CANCEL)
  store<u32>(s, 0, CPU_TRIPLE_FAULT)
  if (!init) {
    store<u32>(s, 0, CPU_EVENT)
    store<u32>(s, 0, CPU_STOP_REASON)
    store<u32>(s, 0, CPU_HALTED)
    store<u64>(s, 1, CPU_XCR0)
    store<u64>(s, 0, CPU_XSS)
    memory.fill(s + CPU_ST, 0, 128)
    memory.fill(s + CPU_XMM, 0, 512)
    store<u32>(s, 0x37f, CPU_FCW)
    store<u32>(s, 0, CPU_FSW)
    store<u32>(s, 0, CPU_FTOP)
    store<u32>(s, 0, CPU_FTAG)
    store<u32>(s, 0, CPU_FOP)
    store<u32>(s, 0x1f80, CPU_MXCSR)
    store<u64>(s, 0, CPU_FIP)
    store<u64>(s, 0, CPU_FDP)
    store<u32>(s, 0, CPU_FCS)
    store<u32>(s, 0, CPU_FDS)
    store<u64>(s, 0, CPU_GHCB)
    resetMsrs(s)
    store<u64>(s, 0xfee00800 | (load<u32>(s, CPU_ID) == 0 ? 0x100 : 0), CPU_APIC_BASE)
  }
  flushTlb(s)
  flushBlocks(s)
  updateMode(s)
}
