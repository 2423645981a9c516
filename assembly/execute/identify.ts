/**
 * Identification, time and MSR instructions: CPUID, RDTSC, RDPMC, MONITOR, RDMSR, WRMSR (SDM vol 2; APM vol 3). For SEV-ES
 * guests those that KVM intercepts become #VC after their own exception checks (APM vol 2, 15.9; facts: sev.md 1.9).
 */
import { raise, vmmCommunication } from '../cpu/exceptions'
import { F_1_ECX, F_7_ECX, F_80000001_ECX, F_80000001_EDX, F_80000008_EBX, feature, featureOrBare } from '../cpu/features'
import { code64, protectedMode, sevEs } from '../cpu/mode'
import { msrPassThrough, msrRead } from '../cpu/msr'
import {
  CPU_CR4,
  CPU_MISC_ENABLE,
  CPU_MSR_VALUE,
  CPU_TSC_AUX,
  EXC_UD,
  EXITS_MWAIT,
  OP_RM,
  QUIRK_MISC_ENABLE_NO_MWAIT,
  QUIRK_MWAIT_NEVER_UD_FAULTS,
} from '../generated/layout'
import { CR4_PCE, CR4_TSD } from '../generated/registers'
import { pendRetry } from './vmgexit'
import { pollTsc } from '../kvm/pio'
import { exitsDisabled, quirk } from '../kvm/state'
import { guestMsrRead, guestMsrWrite, MSR_GP, MSR_LEFT } from '../kvm/msr-exit'
import { tscNow } from '../kvm/time'
import { cpuidAnswer, cpuidEax, cpuidEbx, cpuidEcx, cpuidEdx } from '../kvm/cpuid'
import { instructionRip, writeRegister } from './operands'
import { cpl, done, getPair, gp, putPair } from './common'

const RAX: usize = 0
const RCX: usize = 8
const RDX: usize = 16
const RBX: usize = 24
// Identification and time.

export function cpuid(s: usize, op: usize): u32 {
  if (sevEs(s)) return vmmCommunication(s, 0x72)
  // CPUID faulting (MISC_FEATURES_ENABLES bit 0).
  if (cpl(s) != 0 && msrRead(s, 0x140, true) && (load<u64>(s, CPU_MSR_VALUE) & 1) != 0) return gp(s)
  cpuidAnswer(s, load<u32>(s, RAX), load<u32>(s, RCX))
  store<u64>(s, <u64>cpuidEax(s), RAX)
  store<u64>(s, <u64>cpuidEbx(s), RBX)
  store<u64>(s, <u64>cpuidEcx(s), RCX)
  store<u64>(s, <u64>cpuidEdx(s), RDX)
  return 0
}

export function rdtsc(s: usize, op: usize): u32 {
  if ((load<u64>(s, CPU_CR4) & CR4_TSD) != 0 && cpl(s) != 0) return gp(s)
  pollTsc(s, instructionRip(s, op))
  putPair(s, tscNow(s))
  return done(s)
}

export function rdtscp(s: usize, op: usize): u32 {
  if (!featureOrBare(s, F_80000001_EDX, 27)) return raise(s, EXC_UD)
  if ((load<u64>(s, CPU_CR4) & CR4_TSD) != 0 && cpl(s) != 0) return gp(s)
  pollTsc(s, instructionRip(s, op))
  putPair(s, tscNow(s))
  store<u64>(s, load<u64>(s, CPU_TSC_AUX) & 0xffffffff, RCX)
  return done(s)
}

export function rdpid(s: usize, op: usize): u32 {
  if (!feature(s, F_7_ECX, 22)) return raise(s, EXC_UD)
  writeRegister(s + <usize>load<u8>(op, OP_RM), code64(s) ? 8 : 4, load<u64>(s, CPU_TSC_AUX) & 0xffffffff)
  return 0
}

/** No PMU is offered: every counter is out of range. */
export function rdpmc(s: usize, op: usize): u32 {
  if (cpl(s) != 0 && (load<u64>(s, CPU_CR4) & CR4_PCE) == 0 && protectedMode(s)) return gp(s)
  return sevEs(s) ? vmmCommunication(s, 0x6f) : gp(s)
}

export function rdpru(s: usize, op: usize): u32 {
  if (!feature(s, F_80000008_EBX, 4)) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8e) : raise(s, EXC_UD)
}

/** kvm_emulate_monitor_mwait: a no-op, by default whether or not the guest has the feature. */
function monitorMwait(s: usize, extensions: u32): u32 {
  if (exitsDisabled(s, EXITS_MWAIT)) return (load<u32>(s, RCX) & ~extensions) != 0 ? gp(s) : 0 // not intercepted
  if (quirk(s, QUIRK_MWAIT_NEVER_UD_FAULTS)) return 0
  const enabled = quirk(s, QUIRK_MISC_ENABLE_NO_MWAIT) ? feature(s, F_1_ECX, 3) : (load<u64>(s, CPU_MISC_ENABLE) & (1 << 18)) != 0
  return enabled ? 0 : raise(s, EXC_UD)
}

export function monitor(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8a) : monitorMwait(s, 0)
}

/** ECX bit 0: interrupts end it even while masked. */
export function mwait(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8b) : monitorMwait(s, 1)
}

export function monitorx(s: usize, op: usize): u32 {
  if (!feature(s, F_80000001_ECX, 29)) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8a) : 0
}

export function mwaitx(s: usize, op: usize): u32 {
  if (!feature(s, F_80000001_ECX, 29)) return raise(s, EXC_UD)
  return sevEs(s) ? vmmCommunication(s, 0x8b) : 0
}

// MSRs.

export function rdmsr(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  const index = load<u32>(s, RCX)
  if (sevEs(s) && !msrPassThrough(index)) return vmmCommunication(s, 0x7c)
  const result = guestMsrRead(s, index)
  if (result == MSR_GP) return gp(s)
  if (result == MSR_LEFT) return pendRetry(s, op)
  putPair(s, load<u64>(s, CPU_MSR_VALUE))
  return done(s)
}

export function wrmsr(s: usize, op: usize): u32 {
  if (cpl(s) != 0) return gp(s)
  const index = load<u32>(s, RCX)
  if (sevEs(s) && !msrPassThrough(index)) return vmmCommunication(s, 0x7c)
  const result = guestMsrWrite(s, index, getPair(s))
  return result == MSR_GP ? gp(s) : result == MSR_LEFT ? pendRetry(s, op) : done(s)
}
