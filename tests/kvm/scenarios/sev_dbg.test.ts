/** In the manner of selftests x86/sev_dbg_test: DBG_ENCRYPT and DBG_DECRYPT round trips at many sizes and offsets. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { openKvm, SEV_COMMAND, type VmType } from 'cloister'
import { sevVm } from './guest.ts'

function dbg(source: bigint, target: bigint, length: number): Uint8Array {
  const data = new Uint8Array(24)
  const view = new DataView(data.buffer)
  view.setBigUint64(0, source, true)
  view.setBigUint64(8, target, true)
  view.setUint32(16, length, true)
  return data
}

for (const type of ['sev', 'sev-es', 'sev-legacy', 'sev-es-legacy'] as readonly VmType[]) {
  test(`${type}: what is encrypted comes back, whatever size and offset`, async () => {
    const kvm = await openKvm({ memory: 256 << 20 })
    const { vm, memory } = sevVm(kvm, type)
    const es = type.startsWith('sev-es')
    vm.launchStart({ policy: es ? 4 : 0 })
    vm.launchUpdateData(memory.address, 0x4000)
    const plain = kvm.mmap(-1, 0x4000)
    const back = kvm.mmap(-1, 0x4000)
    const pattern = Uint8Array.from({ length: 0x4000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff)
    plain.write(0, pattern)
    for (const size of [1, 3, 15, 16, 17, 64, 255, 4095, 4096, 4097, 8192]) {
      for (const offset of [0, 1, 15, 16, 33, 4090]) {
        const target = memory.address + BigInt(offset)
        assert.is(vm.memoryEncrypt('KVM_SEV_DBG_ENCRYPT', dbg(plain.address, target, size)).errno, 0, `encrypt ${size} at ${offset}`)
        assert.is(vm.memoryEncrypt('KVM_SEV_DBG_DECRYPT', dbg(target, back.address, size)).errno, 0)
        assert.equal(back.read(0, size), pattern.slice(0, size), `${size} at ${offset}`)
        if (size >= 16) assert.not.equal(memory.read(offset, size), pattern.slice(0, size), 'the host sees ciphertext')
      }
    }
  })
}

test('refusals: NODBG is the firmware’s, fields are the kernel’s', async () => {
  const kvm = await openKvm({ memory: 256 << 20 })
  const { vm, memory } = sevVm(kvm, 'sev')
  vm.launchStart({ policy: 1 })
  vm.launchUpdateData(memory.address, 0x1000)
  const out = kvm.mmap(-1, 0x1000)
  const denied = vm.memoryEncrypt(SEV_COMMAND.KVM_SEV_DBG_DECRYPT, dbg(memory.address, out.address, 16))
  assert.is(denied.errno, -5)
  assert.is(denied.fwError, 7)
  for (const [source, target, length] of [
    [0n, out.address, 16],
    [memory.address, 0n, 16],
    [memory.address, out.address, 0],
  ] as const)
    assert.is(vm.memoryEncrypt('KVM_SEV_DBG_DECRYPT', dbg(source, target, length)).errno, -22)
})

test.run()
