/** What the scenarios share: raw calls as the selftests' kvm_util makes them, and small guests as bytes. */
import * as assert from 'uvu/assert'
import { type CAP, ERRNO, type Kvm, type Mapping, openKvm, type Vcpu, type Vm, type VmType } from 'cloister'

export const CODE = 0x1000

export interface Guest {
  kvm: Kvm
  vm: Vm
  vcpu: Vcpu
  memory: Mapping
}

/** An ordinary VM in real mode with `code` at 0x1000 and memory from 0. */
export async function realModeGuest(code: readonly number[], options: { irqchip?: boolean; bytes?: number } = {}): Promise<Guest> {
  const kvm = await openKvm({ memory: 256 << 20 })
  const vm = kvm.createVm('default')
  if (options.irqchip) vm.createIrqchip()
  const memory = kvm.mmap(-1, options.bytes ?? 0x10000)
  memory.write(CODE, Uint8Array.from(code))
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: memory.length, userspaceAddr: memory.address })
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid2(kvm.supportedCpuid())
  const sregs = vcpu.getSregs()
  vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } })
  vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(CODE), rflags: 2n, rsp: 0x8000n })
  return { kvm, vm, vcpu, memory }
}

/** `call` must give this errno, by number or as a KvmError. */
export function refuses(errno: keyof typeof ERRNO, call: () => unknown, where = ''): void {
  let result: unknown
  try {
    result = call()
  } catch (error) {
    result = (error as { errno?: number }).errno
  }
  assert.is(result, -ERRNO[errno], where)
}

/** An initialised SEV guest with memory in slot 0 and `cpus` vCPUs. */
export function sevVm(kvm: Kvm, type: VmType, cpus = 0, init = true): { vm: Vm; memory: Mapping } {
  const vm = kvm.createVm(type)
  if (init) vm.sevInit()
  const memory = kvm.mmap(-1, 0x10000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x10000, userspaceAddr: memory.address })
  for (let i = 0; i < cpus; i++) vm.createVcpu(i).setCpuid2(kvm.supportedCpuid())
  return { vm, memory }
}

export const capability = (vm: Vm, cap: keyof typeof CAP, arg: number | bigint): number => vm.enableCap(cap, [arg])
