/** KVM_INTERNAL_ERROR_EMULATION: an instruction that neither this engine nor KVM's emulator can do. Owns no state. */
import {
  KVM_EXIT_INTERNAL_ERROR,
  KVM_INTERNAL_EMULATION,
  RUN_EMULATION_BYTES,
  RUN_EMULATION_FLAGS,
  RUN_EMULATION_SIZE,
  RUN_EXIT_REASON,
  RUN_INTERNAL_DATA,
  RUN_INTERNAL_NDATA,
  RUN_INTERNAL_SUBERROR,
} from '../generated/kvm'
import { CPU_RIP, CPU_RIP_MASK, CPU_SEGMENTS, SEG_BASE, SEG_CS } from '../generated/layout'
import { probe } from '../memory/access'
import { gpaRead } from '../memory/physical'
import { runOf, vmOf } from './state'

/** Up to 15 bytes at RIP as the host reads them; how many there are. */
function instructionBytes(s: usize, to: usize): u32 {
  const mask = load<u64>(s, CPU_RIP_MASK)
  const base = mask == ~(<u64>0) ? 0 : load<u64>(s + CPU_SEGMENTS + ((<usize>SEG_CS) << 4), SEG_BASE)
  for (let n: u32 = 0; n < 15; n++) {
    const va = base + ((load<u64>(s, CPU_RIP) + <u64>n) & mask)
    const gpa = probe(s, base == 0 ? va : va & 0xffffffff)
    if (gpa == ~(<u64>0) || !gpaRead(vmOf(s), gpa, to + <usize>n, 1)) return n
  }
  return 15
}

/** prepare_emulation_failure_exit: the engine met an instruction it does not know. Where and what stays in CPU_STOP_*. */
export function exitEmulation(s: usize): void {
  const run = runOf(s)
  store<u32>(run, KVM_INTERNAL_EMULATION, RUN_INTERNAL_SUBERROR)
  store<u32>(run, 8, RUN_INTERNAL_NDATA)
  memory.fill(run + RUN_INTERNAL_DATA, 0, 128)
  store<u64>(run, 1, RUN_EMULATION_FLAGS) // KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
  memory.fill(run + RUN_EMULATION_BYTES, 0x90, 15)
  store<u8>(run, <u8>instructionBytes(s, run + RUN_EMULATION_BYTES), RUN_EMULATION_SIZE)
  store<u32>(run, KVM_EXIT_INTERNAL_ERROR, RUN_EXIT_REASON)
}
