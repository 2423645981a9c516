/** KVM hypercalls (VMMCALL): kvm_emulate_hypercall of Linux 7.3 arch/x86/kvm/x86.c. */
import { KVM_EXIT_HYPERCALL, RUN_HYPERCALL_ARGS, RUN_HYPERCALL_FLAGS, RUN_HYPERCALL_NR, RUN_HYPERCALL_RET } from '../generated/kvm'
import {
  CPU_GPR,
  PENDING_HYPERCALL,
  VCPU_FPU,
  VKVM_GHCB_RAX,
  VKVM_PENDING,
  VKVM_PIO_COUNT,
  VKVM_PV_UNHALTED,
  VM_HYPERCALL_EXITS,
  VM_VCPU_COUNT,
  VM_VCPUS,
  VM_WALL_EPOCH,
} from '../generated/layout'
import { stopForExit } from './exits'
import { lapicDeliver } from './lapic-delivery'
import { apicId } from './lapic-state'
import { gpaWrite } from '../memory/physical'
import { masterClock, pvHas } from './pv'
import { now, tscNow } from './time'
import { isSevEs, runOf, vkvm, vmOf } from './state'

const EPERM: i64 = -1
const EOPNOTSUPP: i64 = -95
const EFAULT: i64 = -14
const EINVAL: i64 = -22
const ENOSYS: i64 = -1000

/** The answer goes to RAX: of the register file, or of the GHCB copies. */
function answer(s: usize, value: u64, wide: bool): void {
  const result = wide ? value : value & 0xffffffff
  if (isSevEs(s)) store<u64>(vkvm(s), result, VKVM_GHCB_RAX)
  else store<u64>(s, result, CPU_GPR)
}

/** kvm_pv_kick_cpu_op: also when the vCPU does not sleep yet. */
function kick(s: usize, id: u32): void {
  const vm = vmOf(s)
  for (let i: u32 = 0; i < load<u32>(vm, VM_VCPU_COUNT); i++) {
    const target: usize = load<u32>(vm + VM_VCPUS + ((<usize>i) << 2))
    if (target && apicId(target) == id) store<u32>(vkvm(target), 1, VKVM_PV_UNHALTED)
  }
}

/** kvm_pv_clock_pairing: struct kvm_clock_pairing {sec, nsec s64, tsc u64, flags, pad u32[9]}. */
function clockPairing(s: usize, gpa: u64, type: u64): i64 {
  if (type != 0 || !masterClock(vmOf(s))) return EOPNOTSUPP
  const p = s + VCPU_FPU
  const wall = load<u64>(vmOf(s), VM_WALL_EPOCH) + now(s)
  memory.fill(p, 0, 64)
  store<u64>(p, wall / 1000000000)
  store<u64>(p, wall % 1000000000, 8)
  store<u64>(p, tscNow(s), 16)
  return gpaWrite(vmOf(s), gpa, p, 64) ? 0 : EFAULT
}

/** KVM_FEATURE_PV_UNHALT, _SEND_IPI, _SCHED_YIELD. */
const PV_UNHALT: u32 = 7
const PV_SEND_IPI: u32 = 11
const PV_SCHED_YIELD: u32 = 13

/** kvm_pv_send_ipi: two words of a bitmap of APIC ids from `first`, each 64 bits wide in 64-bit mode, else 32; no id wraps round. */
function sendIpis(s: usize, low: u64, high: u64, first: u32, icr: u64, wide: bool): i64 {
  if (icr & 0xc0800) return EINVAL
  const vm = vmOf(s)
  const width: u64 = wide ? 64 : 32
  let count: i64 = 0
  for (let i: u32 = 0; i < load<u32>(vm, VM_VCPU_COUNT); i++) {
    const target: usize = load<u32>(vm + VM_VCPUS + ((<usize>i) << 2))
    if (!target) continue
    const id = apicId(target)
    if (id < first) continue
    const bit = <u64>(id - first)
    const named = bit < width ? low >> bit : bit < width * 2 ? high >> (bit - width) : 0
    if ((named & 1) == 0) continue
    const taken = lapicDeliver(vm, s, <u32>(icr >> 8) & 7, <u32>icr & 0xff, false, id, (icr & 0x8000) != 0, true, false)
    if (taken > 0) count += <i64>taken
  }
  return count
}

/** True: left for userspace. */
export function hypercall(s: usize, nr: u64, a0: u64, a1: u64, a2: u64, a3: u64, cpl: u32, wide: bool): bool {
  if (!wide) {
    nr &= 0xffffffff
    a0 &= 0xffffffff
    a1 &= 0xffffffff
    a2 &= 0xffffffff
    a3 &= 0xffffffff
  }
  let result: i64 = ENOSYS
  if (cpl != 0) {
    result = EPERM
  } else if (nr == 1) {
    result = 0
  } else if (nr == 11) {
    if (pvHas(s, PV_SCHED_YIELD)) result = 0
  } else if (nr == 5) {
    if (!pvHas(s, PV_UNHALT)) {
      answer(s, <u64>ENOSYS, wide)
      return false
    }
    kick(s, <u32>a1)
    result = 0
  } else if (nr == 9) {
    result = clockPairing(s, a0, a1)
  } else if (nr == 10) {
    if (pvHas(s, PV_SEND_IPI)) result = sendIpis(s, a0, a1, <u32>a2, a3, wide)
  } else if (nr == 12 && (load<u32>(vmOf(s), VM_HYPERCALL_EXITS) & (1 << 12)) != 0) {
    if ((a0 & 0xfff) != 0 || a1 == 0 || (a0 >> 12) + a1 <= a0 >> 12) {
      result = EINVAL
    } else {
      const run = runOf(s)
      store<u64>(run, 12, RUN_HYPERCALL_NR)
      memory.fill(run + RUN_HYPERCALL_ARGS, 0, 48)
      store<u64>(run, a0, RUN_HYPERCALL_ARGS)
      store<u64>(run + 8, a1, RUN_HYPERCALL_ARGS)
      store<u64>(run + 16, a2, RUN_HYPERCALL_ARGS)
      store<u64>(run, 0, RUN_HYPERCALL_RET)
      store<u64>(run, wide ? 1 : 0, RUN_HYPERCALL_FLAGS)
      stopForExit(s, KVM_EXIT_HYPERCALL)
      store<u32>(vkvm(s), PENDING_HYPERCALL, VKVM_PENDING)
      store<u32>(vkvm(s), wide ? 1 : 0, VKVM_PIO_COUNT)
      return true
    }
  }
  answer(s, <u64>result, wide)
  return false
}

/** complete_hypercall_exit: kvm_run.hypercall.ret to RAX. */
export function completeHypercall(s: usize): void {
  answer(s, load<u64>(runOf(s), RUN_HYPERCALL_RET), load<u32>(vkvm(s), VKVM_PIO_COUNT) != 0)
}
