/** A VM for one benchmark: a raw image in long mode, by the typed KVM wrappers. */
import { type Kvm, type Mapping, openKvm, type Vcpu, type Vm, type VmType } from 'cloister'

const TABLES = 0x1000

export interface BenchGuest {
  kvm: Kvm
  vm: Vm
  vcpu: Vcpu
  memory: Mapping
  close(): void
}

/** `image` at 1 MiB, entered there; 1 GiB identity-mapped by 2 MiB pages, private where the type is encrypted. */
export async function startGuest(image: Uint8Array, options: { type?: VmType; memory?: number } = {}): Promise<BenchGuest> {
  const { type = 'default', memory: size = 16 * 1024 * 1024 } = options
  const encrypted = type !== 'default'
  const kvm = await openKvm({ host: 'amd' })
  const vm = kvm.createVm(type)
  const memory = kvm.mmap(-1, size)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: size, userspaceAddr: memory.address })
  if (encrypted) vm.sevInit()
  const vcpu = vm.createVcpu(0)
  const cpuid = kvm.supportedCpuid()
  vcpu.setCpuid2(cpuid)
  const mark = encrypted ? 1n << 51n : 0n
  const tables = new DataView(new ArrayBuffer(0x3000))
  tables.setBigUint64(0, BigInt(TABLES + 0x1003) | mark, true)
  tables.setBigUint64(0x1000, BigInt(TABLES + 0x2003) | mark, true)
  for (let i = 0; i < 512; i++) tables.setBigUint64(0x2000 + i * 8, BigInt(i * 0x200000 + 0x83) | mark, true)
  memory.write(TABLES, new Uint8Array(tables.buffer))
  memory.write(0x100000, image)
  const sregs = vcpu.getSregs()
  const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 }
  const data = { ...flat, selector: 16, type: 3, db: 1, l: 0 }
  vcpu.setSregs({
    ...sregs,
    cs: { ...sregs.cs, ...flat, selector: 8, type: 11, db: 0, l: 1 },
    ds: { ...sregs.ds, ...data },
    es: { ...sregs.es, ...data },
    ss: { ...sregs.ss, ...data },
    cr0: 0x80000011n,
    cr3: BigInt(TABLES),
    cr4: 0x20n,
    efer: 0x500n,
  })
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x100000n, rsp: 0x100000n, rflags: 2n })
  if (encrypted) {
    vm.launchStart({ policy: type.startsWith('sev-es') ? 4 : 0 })
    vm.launchUpdateData(memory.address + BigInt(TABLES), 0x3000)
    vm.launchUpdateData(memory.address + 0x100000n, Math.ceil(image.length / 4096) * 4096)
    if (type.startsWith('sev-es')) vm.launchUpdateVmsa()
    vm.launchMeasure()
    vm.launchFinish()
  }
  return { kvm, vm, vcpu, memory, close: () => kvm[Symbol.dispose]() }
}
