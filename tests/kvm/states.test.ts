/** The launch state machines of TDX and SNP: order, errnos, and what is named as missing behind them. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, type Kvm, openKvm, REQUEST, TDX_COMMAND } from 'cloister'

const open = (host: 'amd' | 'intel'): Promise<Kvm> => openKvm({ host, memory: 256 << 20 })

function tdx(
  kvm: Kvm,
  fd: number,
  id: number,
  data: Uint8Array,
  flags = 0,
  hwError = 0n,
): { errno: number; data: Uint8Array; hwError: bigint } {
  const memory = kvm.mmap(-1, 0x4000)
  memory.write(0, data)
  const cmd = new Uint8Array(24)
  const view = new DataView(cmd.buffer)
  view.setUint32(0, id, true)
  view.setUint32(4, flags, true)
  view.setBigUint64(8, memory.address, true)
  view.setBigUint64(16, hwError, true)
  const errno = kvm.ioctl(fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, cmd)
  return { errno, data: memory.read(0, data.length), hwError: view.getBigUint64(16, true) }
}

/** struct kvm_tdx_init_vm with the entry that every TD needs. */
function initVm(change: (view: DataView) => void = () => {}): Uint8Array {
  const bytes = new Uint8Array(264 + 2 * 40)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, 1n << 28n, true)
  view.setBigUint64(8, 7n, true)
  view.setUint32(256, 1, true)
  view.setUint32(264, 0x80000008, true)
  view.setUint32(264 + 12, 48 << 16, true)
  change(view)
  return bytes
}

test('TDX: INIT_VM checks in order, then vCPUs, then FINALIZE', async () => {
  const kvm = await open('intel')
  const vm = kvm.createVm('tdx')
  const caps = new Uint8Array(2056 + 40 * 40)
  assert.is(tdx(kvm, vm.fd, TDX_COMMAND.KVM_TDX_CAPABILITIES, caps).errno, -ERRNO.E2BIG)
  new DataView(caps.buffer).setUint32(2048, 40, true)
  assert.is(tdx(kvm, vm.fd, TDX_COMMAND.KVM_TDX_CAPABILITIES, caps, 1).errno, -ERRNO.EINVAL)
  const answer = tdx(kvm, vm.fd, TDX_COMMAND.KVM_TDX_CAPABILITIES, caps)
  assert.is(answer.errno, 0)
  const view = new DataView(answer.data.buffer)
  assert.is(view.getBigUint64(0, true), 1n << 28n)
  const entries = view.getUint32(2048, true)
  assert.ok(entries > 10)
  for (let i = 0; i < entries; i++) {
    if (view.getUint32(2056 + i * 40, true) !== 7 || view.getUint32(2060 + i * 40, true) !== 0) continue
    assert.is(view.getUint32(2056 + i * 40 + 16, true) & 0x810, 0, 'TSX')
    assert.is(view.getUint32(2056 + i * 40 + 20, true) & 0x20, 0, 'WAITPKG')
  }
  const init = (bytes: Uint8Array, flags = 0, hw = 0n) => tdx(kvm, vm.fd, TDX_COMMAND.KVM_TDX_INIT_VM, bytes, flags, hw)
  for (const [why, change] of [
    ['DEBUG', (v: DataView) => v.setBigUint64(0, 1n, true)],
    ['XFAM', (v: DataView) => v.setBigUint64(8, 1n << 40n, true)],
    ['reserved', (v: DataView) => v.setUint8(200, 1)],
    ['padding', (v: DataView) => v.setUint32(260, 1, true)],
    ['no width', (v: DataView) => v.setUint32(276, 47 << 16, true)],
    ['no entry', (v: DataView) => v.setUint32(256, 0, true)],
    [
      'not configurable',
      (v: DataView) => {
        v.setUint32(256, 2, true)
        v.setUint32(304, 0x40000000, true)
      },
    ],
  ] as const) {
    assert.is(init(initVm(change)).errno, -ERRNO.EINVAL, why)
  }
  assert.is(init(initVm((v) => v.setUint32(256, 300, true))).errno, -ERRNO.E2BIG)
  assert.is(init(initVm(), 1).errno, -ERRNO.EINVAL)
  assert.is(init(initVm(), 0, 1n).errno, -ERRNO.EINVAL)
  const bad = init(initVm((v) => v.setBigUint64(8, 4n, true)))
  assert.is(bad.errno, -ERRNO.EINVAL)
  assert.is(bad.hwError, 0xc000010000000041n)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_VCPU, 0), -ERRNO.EIO)
  assert.is(init(initVm()).errno, 0)
  assert.is(init(initVm()).errno, -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_VCPU, 0), -ERRNO.EINVAL, 'no split irqchip')
  vm.enableCap('KVM_CAP_SPLIT_IRQCHIP', [24])
  const vcpu = vm.createVcpu(0)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, new Uint8Array(144)), -ERRNO.EINVAL)
  assert.is(vcpu.runRaw(10), -ERRNO.EINVAL)
  const initVcpu = (flags = 0) => tdx(kvm, vcpu.fd, TDX_COMMAND.KVM_TDX_INIT_VCPU, new Uint8Array(8), flags).errno
  assert.is(initVcpu(), -ERRNO.EINVAL, 'no x2APIC in CPUID')
  vcpu.setCpuid2(kvm.supportedCpuid())
  assert.is(tdx(kvm, vcpu.fd, TDX_COMMAND.KVM_TDX_INIT_MEM_REGION, new Uint8Array(24)).errno, -ERRNO.EINVAL)
  assert.is(initVcpu(1), -ERRNO.EINVAL)
  assert.is(initVcpu(), 0)
  assert.is(initVcpu(), -ERRNO.EINVAL)
  for (const id of [0, 1, 4, 9]) assert.is(tdx(kvm, vcpu.fd, id, new Uint8Array(24)).errno, -ERRNO.EINVAL, `vCPU command ${id}`)
  for (const id of [2, 3, 5, 9]) assert.is(tdx(kvm, vm.fd, id, new Uint8Array(24)).errno, -ERRNO.EINVAL, `VM command ${id}`)
  assert.is(vcpu.runRaw(10), -ERRNO.EINVAL, 'not finalised')
  const onePage = new Uint8Array(64)
  onePage[9] = 0x10
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_PRE_FAULT_MEMORY, new Uint8Array(64)), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_PRE_FAULT_MEMORY, onePage), -ERRNO.EOPNOTSUPP)
  const finalize = () => tdx(kvm, vm.fd, TDX_COMMAND.KVM_TDX_FINALIZE_VM, new Uint8Array(0)).errno
  assert.is(finalize(), 0)
  assert.is(finalize(), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_PRE_FAULT_MEMORY, onePage), -ERRNO.ENOENT)
  assert.is(kvm.ioctl(vm.fd, REQUEST.KVM_CREATE_VCPU, 1), -ERRNO.EIO)
  assert.is(initVcpu(), -ERRNO.EINVAL)
  assert.is(vcpu.runRaw(10), -ERRNO.ENOSYS)
  assert.match(kvm.lastRefusal()?.reason ?? '', /TDX module/)
  const plain = kvm.createVm('default')
  assert.is(kvm.ioctl(plain.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, new Uint8Array(24)), -ERRNO.ENOTTY)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('SNP: START, UPDATE, FINISH; registers refused afterwards, the FPU not', async () => {
  const kvm = await open('amd')
  const vm = kvm.createVm('snp')
  vm.sevInit()
  const vcpu = vm.createVcpu(0)
  const start = new Uint8Array(64)
  const policy = (value: bigint) => {
    new DataView(start.buffer).setBigUint64(0, value, true)
    return vm.memoryEncrypt('KVM_SEV_SNP_LAUNCH_START', start).errno
  }
  assert.is(policy(0x10000n), -ERRNO.EINVAL)
  assert.is(policy(0x70000n), -ERRNO.EINVAL)
  assert.is(vm.memoryEncrypt('KVM_SEV_SNP_LAUNCH_UPDATE', new Uint8Array(64)).errno, -ERRNO.EINVAL)
  assert.is(policy(0x30000n), 0)
  assert.is(policy(0x30000n), -ERRNO.EINVAL)
  assert.is(vm.memoryEncrypt('KVM_SEV_LAUNCH_MEASURE', new Uint8Array(16)).errno, -ERRNO.EPERM)
  const update = new Uint8Array(64)
  const view = new DataView(update.buffer)
  view.setBigUint64(8, 0x1000n, true)
  view.setBigUint64(16, 0x1000n, true)
  for (const type of [0, 1, 2, 7]) {
    view.setUint8(24, type)
    assert.is(vm.memoryEncrypt('KVM_SEV_SNP_LAUNCH_UPDATE', update).errno, -ERRNO.EINVAL, `type ${type}`)
  }
  const finish = new Uint8Array(88)
  const finishing = () => vm.memoryEncrypt('KVM_SEV_SNP_LAUNCH_FINISH', finish).errno
  finish[54] = 1
  assert.is(finishing(), -ERRNO.EINVAL)
  finish[54] = 0
  vcpu.getRegs()
  assert.is(finishing(), 0)
  assert.is(finishing(), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, new Uint8Array(144)), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_FPU, new Uint8Array(416)), 0)
  assert.is(vcpu.runRaw(10), -ERRNO.ENOSYS)
  assert.match(kvm.lastRefusal()?.reason ?? '', /RMP/)
  assert.equal(kvm.kernel.internalErrors, [])
})

test.run()
