/** Valid states to start from, reached by the real transitions, with the model brought along. */
import type { RawMachine } from '../raw-machine.ts'
import type { Judge } from './judge.ts'

export const SETUPS = [
  '',
  'init',
  'init vcpu',
  'init irqchip slot vcpu cpuid',
  'init slot vcpu cpuid',
  'init slot vcpu cpuid seal',
] as const

/** The set-up's steps, and what the model knows of them. */
export function bring(machine: RawMachine, judge: Judge, setup: string): void {
  const { vm } = judge
  for (const step of setup.split(' ').filter(Boolean) as ('init' | 'irqchip' | 'vcpu' | 'slot' | 'cpuid' | 'seal')[]) {
    if (step === 'vcpu') {
      judge.call('KVM_CREATE_VCPU', null, machine.vcpus.length)
      continue
    }
    if (machine.type === 'tdx' && step === 'irqchip') continue
    machine.do(step)
    if (step === 'init') {
      vm.init = true
      if (machine.type === 'tdx') {
        vm.chip = 'split'
        vm.td = 'initialized'
      }
    } else if (step === 'irqchip') vm.chip = 'full'
    else if (step === 'slot') vm.slots.set(0, { gpa: 0n, size: 0x10000n, flags: 0, address: machine.memory.address, gmem: -1, offset: 0n })
    else if (step === 'cpuid') for (const vcpu of vm.order) vcpu.cpuid = cpuidOf(machine)
    else if (step === 'seal') {
      vm.launch = machine.type === 'default' || machine.type === 'snp' || machine.type === 'tdx' ? 0 : 3
      if (machine.type === 'tdx') vm.td = 'runnable'
      for (const vcpu of vm.order) {
        vcpu.tdReady = true
        vcpu.mpState = null
        if (vm.protectedState || vm.sevEs) {
          vcpu.sealed = true
          vcpu.confidential = machine.type !== 'snp'
        }
      }
      if (machine.type === 'snp') {
        vm.snp = 'finished'
        vm.slots.set(3, { gpa: 0x100000n, size: 0x10000n, flags: 4, address: machine.memory.address, gmem: machine.guestMemfd, offset: 0n })
        vm.gmems.set(machine.guestMemfd, { size: 0x10000n, flags: 0n, bound: new Set([3]) })
        for (let frame = 0x100n; frame < 0x110n; frame++) vm.privateFrames.add(frame)
        vm.snpPages.add(0x100000n)
      }
    }
  }
}

function cpuidOf(machine: RawMachine): Uint8Array {
  const bytes = new Uint8Array(8 + 256 * 40)
  new DataView(bytes.buffer).setUint32(0, 256, true)
  machine.ioctl('KVM_GET_SUPPORTED_CPUID', bytes, machine.system)
  const count = new DataView(bytes.buffer).getUint32(0, true)
  return bytes.slice(8, 8 + count * 40)
}
