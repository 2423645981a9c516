/**
 * The same two calls on three VM types: KVM_GET_REGS and a look into memory, before and after the launch seals the
 * guest. `node build/examples/02-refused.js`
 */
import { type Kvm, KvmError, openKvm, type VmType } from 'cloister'

function read(what: () => unknown): string {
  try {
    return String(what())
  } catch (error) {
    if (error instanceof KvmError) return `${error.code} (${error.reason}; ${error.source})`
    throw error
  }
}

function look(kvm: Kvm, type: VmType): void {
  const vm = kvm.createVm(type)
  const memory = kvm.mmap(-1, 0x10000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x10000, userspaceAddr: memory.address })
  if (type !== 'default') vm.sevInit()
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid2(kvm.supportedCpuid())
  memory.write(0x1000, new TextEncoder().encode('a secret of the guest'))
  const show = (when: string) => {
    const text = new TextDecoder('latin1').decode(memory.read(0x1000, 21))
    process.stdout.write(`${type.padEnd(8)} ${when}: memory ${JSON.stringify(text)}, rip ${read(() => vcpu.getRegs().rip)}\n`)
  }
  show('before')
  if (type !== 'default') {
    vm.launchStart({ policy: type === 'sev-es' ? 5 : 1 })
    vm.launchUpdateData(memory.address, 0x10000)
    if (type === 'sev-es') vm.launchUpdateVmsa()
    vm.launchMeasure()
    vm.launchFinish()
  }
  show('after ')
}

using kvm = await openKvm({ host: 'amd' })
for (const type of ['default', 'sev', 'sev-es'] as const) look(kvm, type)
