/** SEV and SEV-ES launches through KVM_MEMORY_ENCRYPT_OP: digests, measurement, secrets, states, register access before and after. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  createLaunchSession,
  ERRNO,
  FIRMWARE_STATUS as FW,
  GUEST_STATE,
  type Kvm,
  KvmError,
  launchMeasurement,
  openKvm,
  packSecret,
  REQUEST,
  SEV_COMMAND,
  SEV_ISSUE,
  type Vcpu,
  type Vm,
  type VmType,
} from 'cloister'
import { needs, ovmfPath } from '../support/needs.ts'
import { measureVector, ovmf, sessionVector } from '../vectors/sev.ts'
import { kdf, sessionKeys, wrapSession } from '../../host/firmware/psp/session.ts'

const MILAN = 0xa00f11n
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
const open = (options: Parameters<typeof openKvm>[0] = {}): Promise<Kvm> => openKvm({ memory: 512 << 20, ...options })

/** A VM with `bytes` mapped to end at 4 GiB and `cpus` vCPUs in QEMU's initial state. */
function prepare(kvm: Kvm, type: VmType, bytes: Uint8Array, cpus = 1): { vm: Vm; vcpus: Vcpu[]; address: bigint; length: number } {
  const vm = kvm.createVm(type)
  if (type !== 'default') vm.sevInit()
  vm.createIrqchip()
  const length = Math.ceil(bytes.length / 4096) * 4096
  const memory = kvm.mmap(-1, length)
  memory.write(0, bytes)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: (1n << 32n) - BigInt(length), memorySize: length, userspaceAddr: memory.address })
  const vcpus = Array.from({ length: cpus }, (_, id) => {
    const vcpu = vm.createVcpu(id)
    vcpu.setCpuid2(kvm.supportedCpuid())
    const regs = vcpu.getRegs()
    const ap = id > 0
    vcpu.setRegs({ ...regs, rdx: MILAN, rip: ap ? BigInt(ovmf.resetEip & 0xffff) : 0xfff0n })
    if (ap) {
      const sregs = vcpu.getSregs()
      vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: BigInt(ovmf.resetEip & 0xffff0000) } })
    }
    return vcpu
  })
  return { vm, vcpus, address: memory.address, length }
}

function launch(vm: Vm, address: bigint, length: number, policy: number): string {
  vm.launchStart({ policy })
  vm.launchUpdateData(address, length)
  if (policy & 4) vm.launchUpdateVmsa()
  vm.launchMeasure()
  vm.launchFinish()
  return vm.launchDigest() ?? ''
}

const image = (): Uint8Array => new Uint8Array(readFileSync(ovmfPath() as string))

needs(test, 'ovmf', 'launch digests of OVMF equal the vectors', async () => {
  const bytes = image()
  const rows = [
    ['sev', 1, 1, ovmf.sev],
    ['sev-legacy', 1, 1, ovmf.sev],
    ...([1, 2, 4] as const).flatMap(
      (n) =>
        [
          ['sev-es', n, 5, ovmf.sevEs[n]],
          ['sev-es-legacy', n, 5, ovmf.sevEsLegacy[n]],
        ] as const,
    ),
  ] as const
  for (const [type, cpus, policy, want] of rows) {
    const kvm = await open()
    const { vm, address, length } = prepare(kvm, type, bytes, cpus)
    const digest = launch(vm, address, length, policy)
    assert.is(digest.slice(0, want.length), want, `${type} ${cpus}`)
    assert.equal(kvm.kernel.internalErrors, [])
  }
})

test('a changed SET_REGS changes both digests, a changed SET_XSAVE that of INIT2 only', async () => {
  const bytes = new Uint8Array(4096).fill(0x90)
  const digest = async (type: VmType, change: (vcpu: Vcpu) => void): Promise<string> => {
    const { vm, vcpus, address, length } = prepare(await open(), type, bytes)
    for (const vcpu of vcpus) change(vcpu)
    return launch(vm, address, length, 5)
  }
  const fpu = (vcpu: Vcpu): void => {
    const xsave = vcpu.get('KVM_GET_XSAVE')
    xsave[0] = 0x7e
    new DataView(xsave.buffer).setBigUint64(512, 3n, true)
    vcpu.set('KVM_SET_XSAVE', xsave)
  }
  for (const type of ['sev-es', 'sev-es-legacy'] as const) {
    const plain = await digest(type, () => {})
    assert.is(await digest(type, () => {}), plain)
    assert.is.not(await digest(type, (vcpu) => vcpu.setRegs({ ...vcpu.getRegs(), rbx: 1n })), plain)
    const changed = await digest(type, fpu)
    if (type === 'sev-es') assert.is.not(changed, plain)
    else assert.is(changed, plain)
  }
})

test('session and measurement vectors', () => {
  const zero = new Uint8Array(16)
  const keys = sessionKeys(zero, zero)
  assert.is(hex(keys.master), sessionVector.master)
  assert.is(hex(keys.kek), sessionVector.kek)
  assert.is(hex(keys.kik), sessionVector.kik)
  assert.is(hex(kdf(zero, zero, 'sev-master-secret')), sessionVector.master)
  const session = wrapSession(zero, 0, { tek: zero, tik: zero }, zero, zero)
  assert.is(hex(session.subarray(16, 48)), sessionVector.wrapped)
  assert.is(hex(session.subarray(64, 96)), sessionVector.wrapMac)
  assert.is(hex(session.subarray(96, 128)), sessionVector.policyMac)
  const { tik, mnonce, api, policy, digest, measure } = measureVector
  assert.is(hex(launchMeasurement(Buffer.from(tik, 'hex'), policy, Buffer.from(digest, 'hex'), Buffer.from(mnonce, 'hex'), api)), measure)
})

function pdhCertificate(kvm: Kvm): Uint8Array {
  const pdh = kvm.mmap(-1, 0x4000)
  const data = new Uint8Array(24)
  const view = new DataView(data.buffer)
  view.setBigUint64(0, pdh.address, true)
  view.setUint32(8, 2084, true)
  view.setBigUint64(12, pdh.address + 0x1000n, true)
  view.setUint32(20, 3 * 2084, true)
  assert.is(kvm.sevIssue(SEV_ISSUE.SEV_PDH_CERT_EXPORT, data).errno, 0)
  return pdh.read(0, 2084)
}

test("the guest owner's flow: session, measurement, secret", async () => {
  const kvm = await open()
  const { vm, address, length } = prepare(kvm, 'sev', new Uint8Array(8192).fill(0xf4))
  const policy = 0
  const owner = createLaunchSession(pdhCertificate(kvm), policy)
  vm.launchStart({ policy, dhCert: owner.dhCert, session: owner.session })
  assert.equal(vm.guestStatus(), { handle: 1, policy, state: GUEST_STATE.LAUNCH_UPDATE })
  vm.launchUpdateData(address, 4096)
  const blob = vm.launchMeasure()
  const want = launchMeasurement(owner.tik, policy, Buffer.from(vm.launchDigest() ?? '', 'hex'), blob.subarray(32))
  assert.is(hex(blob.subarray(0, 32)), hex(want))
  const secret = packSecret(owner, blob, new TextEncoder().encode('the secret of the owner, 32 byte'))
  const bad = { header: Uint8Array.from(secret.header), secret: secret.ciphertext, address, length: 32 }
  bad.header[30] = (bad.header[30] as number) ^ 1
  assert.throws(
    () => vm.launchSecret(bad),
    (e: unknown) => e instanceof KvmError && e.code === 'EIO' && e.reason.includes('BAD_MEASUREMENT'),
  )
  vm.launchSecret({ header: secret.header, address, length: 32, secret: secret.ciphertext })
  vm.launchFinish()
  assert.is(vm.guestStatus().state, GUEST_STATE.RUNNING)
  // The host sees ciphertext; DBG_DECRYPT shows the plaintext, the policy allows it.
  const memory = kvm.mmap(-1, 4096)
  const debug = new Uint8Array(24)
  const view = new DataView(debug.buffer)
  view.setBigUint64(0, address + 3n, true)
  view.setBigUint64(8, memory.address + 5n, true)
  view.setUint32(16, 20, true)
  assert.is(vm.memoryEncrypt('KVM_SEV_DBG_DECRYPT', debug).errno, 0)
  assert.is(new TextDecoder().decode(memory.read(5, 20)), ' secret of the owner')
  const report = new Uint8Array(32)
  new DataView(report.buffer).setBigUint64(16, memory.address, true)
  assert.is(vm.memoryEncrypt('KVM_SEV_GET_ATTESTATION_REPORT', report).fwError, FW.INVALID_LEN)
  new DataView(report.buffer).setUint32(24, 208, true)
  assert.is(vm.memoryEncrypt('KVM_SEV_GET_ATTESTATION_REPORT', report).errno, 0)
  assert.is(hex(memory.read(0x10, 32)), vm.launchDigest())
  assert.is(length, 8192)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('a session for another policy or platform is refused by the firmware', async () => {
  const kvm = await open()
  const session = createLaunchSession(pdhCertificate(kvm), 1)
  const { vm } = prepare(kvm, 'sev', new Uint8Array(4096))
  assert.throws(() => vm.launchStart({ policy: 0, ...session }), /BAD_MEASUREMENT/)
  const other = await open({ seed: 7 })
  const theirs = prepare(other, 'sev', new Uint8Array(4096)).vm
  assert.throws(() => theirs.launchStart({ policy: 1, ...session }), /BAD_MEASUREMENT/)
  vm.launchStart({ policy: 1, ...session })
})

test('firmware states and statuses', async () => {
  const kvm = await open()
  const { vm, address } = prepare(kvm, 'sev-es', new Uint8Array(4096))
  // Before LAUNCH_START the stored fd is 0.
  assert.is(vm.memoryEncrypt('KVM_SEV_LAUNCH_FINISH').errno, -ERRNO.EBADF)
  assert.is(vm.memoryEncrypt('KVM_SEV_GUEST_STATUS', new Uint8Array(12)).errno, -ERRNO.EBADF)
  // Policy and init command that disagree: ACTIVATE refuses the ASID.
  const start = new Uint8Array(40)
  new DataView(start.buffer).setUint32(4, 1, true)
  const disagree = vm.memoryEncrypt('KVM_SEV_LAUNCH_START', start)
  assert.is(disagree.errno, -ERRNO.EIO)
  assert.is(disagree.fwError, FW.INVALID_ASID)
  vm.launchStart({ policy: 5 })
  const data = new Uint8Array(16)
  const view = new DataView(data.buffer)
  const update = (at: bigint, n: number): { errno: number; fwError: number } => {
    view.setBigUint64(0, at, true)
    view.setUint32(8, n, true)
    return vm.memoryEncrypt('KVM_SEV_LAUNCH_UPDATE_DATA', data)
  }
  assert.is(update(address, 0).errno, -ERRNO.EINVAL)
  assert.is(update(1n << 46n, 16).errno, -ERRNO.ENOMEM)
  assert.is(update(address, 8).fwError, FW.INVALID_LEN)
  assert.is(update(address + 8n, 16).fwError, FW.INVALID_ADDRESS)
  assert.is(update(address, 16).errno, 0)
  // LAUNCH_MEASURE with length 0 asks for the length.
  const query = new Uint8Array(16)
  const asked = vm.memoryEncrypt('KVM_SEV_LAUNCH_MEASURE', query)
  assert.is(asked.errno, -ERRNO.EIO)
  assert.is(asked.fwError, FW.INVALID_LEN)
  assert.is(new DataView(asked.data.buffer).getUint32(8, true), 48)
  vm.launchMeasure()
  assert.is(vm.guestStatus().state, GUEST_STATE.LAUNCH_SECRET)
  assert.is(update(address, 16).fwError, FW.INVALID_GUEST_STATE)
  vm.launchFinish()
  assert.is(vm.memoryEncrypt('KVM_SEV_LAUNCH_FINISH').fwError, FW.INVALID_GUEST_STATE)
  // NODBG (policy bit 0).
  const debug = new Uint8Array(24)
  new DataView(debug.buffer).setBigUint64(0, address, true)
  new DataView(debug.buffer).setBigUint64(8, address, true)
  new DataView(debug.buffer).setUint32(16, 16, true)
  assert.is(vm.memoryEncrypt('KVM_SEV_DBG_DECRYPT', debug).fwError, FW.POLICY_FAILURE)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('command dispatch and errnos', async () => {
  const kvm = await open()
  const plain = kvm.createVm('default')
  assert.is(kvm.ioctl(plain.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, 0), 0)
  assert.is(kvm.ioctl(plain.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, 0x1000), -ERRNO.EFAULT)
  assert.is(kvm.ioctl(plain.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, new Uint8Array(23)), -ERRNO.EFAULT)
  for (const name of [
    'LAUNCH_START',
    'LAUNCH_UPDATE_DATA',
    'LAUNCH_UPDATE_VMSA',
    'LAUNCH_MEASURE',
    'LAUNCH_SECRET',
    'LAUNCH_FINISH',
    'GUEST_STATUS',
    'DBG_DECRYPT',
    'GET_ATTESTATION_REPORT',
    'SEND_START',
    'RECEIVE_START',
    'SNP_LAUNCH_START',
  ] as const) {
    assert.is(plain.memoryEncrypt(`KVM_SEV_${name}`, new Uint8Array(72)).errno, -ERRNO.ENOTTY, name)
  }
  for (const id of [10, 14, 19, 22, 50, SEV_COMMAND.KVM_SEV_RECEIVE_UPDATE_DATA, SEV_COMMAND.KVM_SEV_SNP_LAUNCH_UPDATE, 104]) {
    assert.is(plain.memoryEncrypt(id, new Uint8Array(72)).errno, -ERRNO.EINVAL, String(id))
  }
  assert.is(kvm.ioctl(plain.fd, REQUEST.KVM_MEMORY_ENCRYPT_REG_REGION, new Uint8Array(16)), -ERRNO.ENOTTY)
  const sev = kvm.createVm('sev')
  assert.is(sev.memoryEncrypt('KVM_SEV_INIT').errno, -ERRNO.EINVAL)
  const init = (change: (view: DataView) => void): number => {
    const data = new Uint8Array(48)
    change(new DataView(data.buffer))
    return sev.memoryEncrypt('KVM_SEV_INIT2', data).errno
  }
  assert.is(
    init((v) => v.setBigUint64(0, 32n, true)),
    -ERRNO.EINVAL,
  )
  assert.is(
    init((v) => v.setUint32(8, 1, true)),
    -ERRNO.EINVAL,
  )
  assert.is(
    init((v) => v.setUint16(12, 1, true)),
    -ERRNO.EINVAL,
  )
  assert.is(sev.memoryEncrypt('KVM_SEV_LAUNCH_UPDATE_VMSA').errno, -ERRNO.ENOTTY)
  const early = kvm.createVm('sev')
  early.createVcpu(0)
  assert.is(early.memoryEncrypt('KVM_SEV_INIT2', new Uint8Array(48)).errno, -ERRNO.EINVAL)
  assert.is(early.vcpus[0]?.runRaw(10), -ERRNO.EINVAL)
  assert.is(kvm.lastRefusal()?.switch, 'need_init')
  assert.is(
    init(() => {}),
    0,
  )
  assert.is(
    init(() => {}),
    -ERRNO.EINVAL,
  )
  assert.is(sev.memoryEncrypt('KVM_SEV_LAUNCH_START', new Uint8Array(40)).errno, 0)
  const snp = kvm.createVm('snp')
  snp.sevInit()
  assert.is(snp.memoryEncrypt('KVM_SEV_LAUNCH_START', new Uint8Array(40)).errno, -ERRNO.EPERM)
  const start = new Uint8Array(64)
  assert.is(snp.memoryEncrypt('KVM_SEV_SNP_LAUNCH_START', start).errno, -ERRNO.EINVAL)
  new DataView(start.buffer).setBigUint64(0, 0x30000n, true)
  assert.is(snp.memoryEncrypt('KVM_SEV_SNP_LAUNCH_START', start).errno, 0)
  // A bad sev_fd.
  const bad = new Uint8Array(24)
  new DataView(bad.buffer).setUint32(0, SEV_COMMAND.KVM_SEV_LAUNCH_START, true)
  new DataView(bad.buffer).setBigUint64(8, kvm.mmap(-1, 4096).address, true)
  new DataView(bad.buffer).setInt32(20, -1, true)
  const again = kvm.createVm('sev')
  again.sevInit()
  assert.is(kvm.ioctl(again.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, bad), -ERRNO.EBADF)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('protected registers: legacy reads copies, the newer type refuses (B6)', async () => {
  for (const type of ['sev-es-legacy', 'sev-es'] as const) {
    const kvm = await open()
    const { vm, vcpus, address, length } = prepare(kvm, type, new Uint8Array(4096))
    const vcpu = vcpus[0] as Vcpu
    vcpu.setRegs({ ...vcpu.getRegs(), rax: 0x1234n, rdi: 0x77n })
    vcpu.getSregs()
    vcpu.get('KVM_GET_XCRS')
    launch(vm, address, length, 5)
    const requests = [
      ['KVM_GET_REGS', 144],
      ['KVM_SET_REGS', 144],
      ['KVM_GET_SREGS', 312],
      ['KVM_SET_SREGS', 312],
      ['KVM_GET_SREGS2', 320],
      ['KVM_GET_FPU', 416],
      ['KVM_SET_FPU', 416],
      ['KVM_GET_XSAVE', 4096],
      ['KVM_SET_XSAVE', 4096],
      ['KVM_GET_XCRS', 392],
      ['KVM_SET_XCRS', 392],
      ['KVM_GET_DEBUGREGS', 128],
      ['KVM_SET_DEBUGREGS', 128],
    ] as const
    if (type === 'sev-es') {
      for (const [name, size] of requests) {
        assert.is(kvm.ioctl(vcpu.fd, REQUEST[name], new Uint8Array(size)), -ERRNO.EINVAL, name)
        assert.ok(['guest_state_protected', 'fpstate_is_confidential'].includes(kvm.lastRefusal()?.switch ?? ''), name)
        // Copy-in comes before the policy, copy-out after it.
        assert.is(kvm.ioctl(vcpu.fd, REQUEST[name], 0x10), name.startsWith('KVM_SET') ? -ERRNO.EFAULT : -ERRNO.EINVAL, name)
      }
      assert.is(vcpu.getMsrs([0x10, 0xc0000081, 0x10]).length, 1)
      assert.is(vcpu.setMsrs([{ index: 0xc0000081, value: 1n }]), 0)
    } else {
      const regs = vcpu.getRegs()
      assert.is(regs.rax, 0x1234n)
      assert.is(regs.rip, 0xfff0n)
      vcpu.setRegs({ ...regs, r9: 9n })
      assert.is(vcpu.getRegs().r9, 9n)
      const sregs = vcpu.getSregs()
      assert.is(sregs.cr0, 0x60000010n)
      assert.is(sregs.cs.base, 0n)
      assert.is(sregs.efer, 0n)
      assert.equal(
        [...vcpu.get('KVM_GET_FPU')].filter((b) => b !== 0),
        [],
      )
      assert.equal(
        [...vcpu.get('KVM_GET_XSAVE')].filter((b) => b !== 0),
        [],
      )
      vcpu.set('KVM_SET_XSAVE', new Uint8Array(4096).fill(0xff))
      const debug = vcpu.get('KVM_GET_DEBUGREGS')
      debug[0] = 0x55
      vcpu.set('KVM_SET_DEBUGREGS', debug)
      assert.is(vcpu.get('KVM_GET_DEBUGREGS')[0], 0x55)
      assert.equal(
        vcpu.getMsrs([0x10, 0xc0000081, 0xda0]).map((m) => m.index),
        [0x10, 0xc0000081, 0xda0],
      )
      assert.is(vcpu.setMsrs([{ index: 0xc0000081, value: 1n }]), 1)
    }
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SET_GUEST_DEBUG, new Uint8Array(72)), -ERRNO.EINVAL)
    assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_SMI, 0), -ERRNO.ENOTTY)
    assert.is(vm.checkExtension('KVM_CAP_X86_SMM'), 0)
    assert.is(vm.checkExtension('KVM_CAP_SYNC_REGS'), type === 'sev-es' ? 0 : 7)
    // No read may kill the VM.
    assert.is(vcpu.getMpState(), 0)
    assert.equal(kvm.kernel.internalErrors, [])
  }
})

test('guest debug: allowed before the seal, in the way of it, refused after (E1, E2)', async () => {
  const kvm = await open()
  const { vm, vcpus, address, length } = prepare(kvm, 'sev-es', new Uint8Array(4096), 2)
  const [first, second] = vcpus as [Vcpu, Vcpu]
  second.setGuestDebug(1)
  vm.launchStart({ policy: 5 })
  vm.launchUpdateData(address, length)
  assert.throws(() => vm.launchUpdateVmsa(), /KVM_SET_GUEST_DEBUG is active on vCPU 1/)
  // The first one stays sealed.
  assert.throws(() => first.getRegs(), /EINVAL/)
  second.setGuestDebug(0)
  second.getRegs()
  assert.throws(() => vm.launchUpdateVmsa(), /protected already/)
  const another = prepare(kvm, 'sev-es', new Uint8Array(4096))
  const cpu = another.vcpus[0] as Vcpu
  another.vm.launchStart({ policy: 5 })
  const debug = cpu.get('KVM_GET_DEBUGREGS')
  new DataView(debug.buffer).setBigUint64(40, 0x402n, true)
  cpu.set('KVM_SET_DEBUGREGS', debug)
  assert.throws(() => another.vm.launchUpdateVmsa(), /DR7/)
  new DataView(debug.buffer).setBigUint64(40, 0x400n, true)
  cpu.set('KVM_SET_DEBUGREGS', debug)
  another.vm.launchUpdateVmsa()
  assert.throws(
    () => cpu.setGuestDebug(1),
    (e: unknown) => e instanceof KvmError && e.code === 'EINVAL',
  )
  assert.equal(kvm.kernel.internalErrors, [])
})

test('FPU access: rfc-2020 refuses it from time zero, upstream until the seal (E3)', async () => {
  const kvm = await open({ profile: 'rfc-2020' })
  const { vcpus } = prepare(kvm, 'sev-es-legacy', new Uint8Array(4096))
  assert.is(kvm.ioctl(vcpus[0]?.fd ?? -1, REQUEST.KVM_GET_FPU, new Uint8Array(416)), -ERRNO.EINVAL)
  const upstream = await open()
  const vcpu = prepare(upstream, 'sev-es-legacy', new Uint8Array(4096)).vcpus[0] as Vcpu
  assert.is(upstream.ioctl(vcpu.fd, REQUEST.KVM_GET_FPU, new Uint8Array(416)), 0)
})

test('synchronised registers are refused for types with protected state (A6)', async () => {
  const kvm = await open()
  for (const [type, want] of [
    ['sev-es', -ERRNO.EINVAL],
    ['sev-es-legacy', 0],
  ] as const) {
    const { vcpus } = prepare(kvm, type, new Uint8Array(4096))
    const vcpu = vcpus[0] as Vcpu
    vcpu.runView.setBigUint64(288, 1n, true)
    assert.is(vcpu.runRaw(1), want, type)
  }
  const plain = kvm.createVm('default').createVcpu(0)
  plain.runView.setBigUint64(288, 8n, true)
  assert.is(plain.runRaw(1), -ERRNO.EINVAL)
  assert.equal(kvm.kernel.internalErrors, [])
})

test('an unsealed or corrupted VMSA fails at entry', async () => {
  const kvm = await open()
  const { vm, vcpus, address, length } = prepare(kvm, 'sev-es', new Uint8Array(4096).fill(0xf4))
  const vcpu = vcpus[0] as Vcpu
  assert.is(vcpu.vmsaPage(), null)
  assert.equal(vcpu.run(), { reason: 'KVM_EXIT_FAIL_ENTRY', hardwareEntryFailureReason: 0xffffffffffffffffn, cpu: 0 })
  launch(vm, address, length, 5)
  const page = vcpu.vmsaPage()
  assert.ok(page)
  const byte = page?.read(0x178, 1) ?? new Uint8Array(1)
  page?.write(
    0x178,
    byte.map((b) => b ^ 1),
  )
  assert.is(vcpu.run({ maxInstructions: 10 }).reason, 'KVM_EXIT_FAIL_ENTRY')
  assert.equal(kvm.kernel.internalErrors, [])
})

test('encrypted memory reads as ciphertext', async () => {
  const kvm = await open()
  const { vm, address, length } = prepare(kvm, 'sev', new Uint8Array(4096).fill(0x41))
  launch(vm, address, length, 1)
  const memory = kvm.kernel.memory.copyIn(address, 4096) as Uint8Array
  assert.ok(memory.some((b) => b !== 0x41))
  assert.ok(new Set(memory).size > 100)
})

test('without memory for the VMSA, sealing is refused and the vCPU stays readable', async () => {
  using kvm = await open({ memory: 64 << 20 })
  const vm = kvm.createVm('sev-es')
  vm.sevInit()
  const vcpu = vm.createVcpu(0)
  vm.launchStart({ policy: 5 })
  const ram = kvm.mmap(-1, 128 << 20)
  assert.throws(() => {
    for (let at = 0; at < ram.length; at += 4096) ram.write(at, Uint8Array.of(1))
  }, /budget .* is spent/)
  assert.throws(
    () => vm.launchUpdateVmsa(),
    (error: KvmError) => error.code === 'ENOMEM' && /VMSA/.test(error.reason),
  )
  assert.is(vcpu.getRegs().rip, 0xfff0n)
})

test.run()
