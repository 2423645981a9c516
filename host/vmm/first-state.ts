/** What a vCPU starts with: its CPUID, firmware's MSRs, and the registers of reset, of a directly entered guest, or of a SEV-ES AP. */
import type { Kvm, Vcpu, Vm } from '../index.ts'
import { cpuidFor, firmwareMsrs, parseCpu } from './cpu-types.ts'
import type { EntryState, Segment } from './loaders/flat.ts'
import type { Firmware } from './loaders/ovmf.ts'
import { type Checked, isSevEs } from './options.ts'

/** Registers as they were after reset. */
export interface ResetState {
  readonly regs: ReturnType<Vcpu['getRegs']>
  readonly sregs: ReturnType<Vcpu['getSregs']>
}

/** Makes vCPU `id`; `entry` is where vCPU 0 enters a guest without firmware. */
export function createVcpu(
  { kvm, vm, options, firmware }: { kvm: Kvm; vm: Vm; options: Checked; firmware: Firmware | null },
  id: number,
  entry: EntryState | null,
): { vcpu: Vcpu; reset: ResetState } {
  const { smp, vcpuType, cpu, type, kernel } = options
  const vcpu = vm.createVcpu(id)
  // The leaf of encrypted memory is for guests that have it, as in QEMU.
  const supported = kvm.supportedCpuid().filter((e) => e.function !== 0x8000001f || type !== 'default')
  const { entries, signature } = cpuidFor(supported, id, smp, vcpuType, parseCpu(cpu))
  vcpu.setCpuid2(entries)
  vcpu.setMsrs(firmwareMsrs(entries, entry !== null && kernel !== undefined))
  const regs = vcpu.getRegs()
  const reset = { regs: { ...regs }, sregs: vcpu.getSregs() }
  regs.rdx = BigInt(signature)
  const sregs = vcpu.getSregs()
  if (entry && id === 0) {
    regs.rip = BigInt(entry.rip)
    regs.rsp = BigInt(entry.rsp)
    regs.rax = BigInt(entry.rax ?? 0)
    regs.rbx = BigInt(entry.rbx ?? 0)
    regs.rsi = BigInt(entry.rsi ?? 0)
    sregs.cs = segment(entry.code)
    for (const name of ['ds', 'es', 'fs', 'gs', 'ss'] as const) sregs[name] = segment(entry.data)
    if (entry.gdt) sregs.gdt = { base: BigInt(entry.gdt.base), limit: entry.gdt.limit }
    sregs.cr0 = BigInt(entry.cr0)
    sregs.cr3 = BigInt(entry.cr3)
    sregs.cr4 = BigInt(entry.cr4)
    sregs.efer = BigInt(entry.efer)
  }
  const apReset = firmware?.apReset
  if (id > 0 && isSevEs(type) && apReset !== null && apReset !== undefined) {
    // Requirement B3: the AP's first CS:IP comes from the firmware's SEV-ES reset block.
    regs.rip = BigInt(apReset & 0xffff)
    sregs.cs = { ...sregs.cs, base: BigInt((apReset & 0xffff0000) >>> 0) }
  }
  vcpu.setSregs(sregs)
  vcpu.setRegs(regs)
  return { vcpu, reset }
}

function segment(from: Segment): ReturnType<Vcpu['getSregs']>['cs'] {
  return { ...from, base: BigInt(from.base), present: 1, dpl: 0, avl: 0, unusable: 0 }
}
