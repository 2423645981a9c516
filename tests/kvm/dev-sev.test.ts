/** /dev/sev: every command of SEV_ISSUE_CMD in the order of checks of drivers/crypto/ccp/sev-dev.c, then the platform's states. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { ERRNO, FIRMWARE_STATUS as FW, type Kvm, type Mapping, openKvm, SEV_ISSUE, SEV_ISSUE_CMD, sevRootCertificates } from 'cloister'
import {
  ALGORITHM,
  certificateKey,
  encodeCertificate,
  signCertificate,
  USAGE,
  verifyCertificate,
} from '../../host/firmware/psp/certificate.ts'
import { keyPair } from '../../host/crypto/p384.ts'

const CERTIFICATE = 2084
const O_RDONLY = 0
/** What `error` holds before a call: kept when the firmware is not asked. */
const UNTOUCHED = 0xbad

class Device {
  readonly kvm: Kvm
  readonly memory: Mapping
  readonly #fds: readonly [number, number]

  constructor(kvm: Kvm) {
    this.kvm = kvm
    this.memory = kvm.mmap(-1, 0x10000)
    this.#fds = [kvm.open('/dev/sev', O_RDONLY), kvm.open('/dev/sev')]
  }

  static async open(seed = 0n): Promise<Device> {
    return new Device(await openKvm({ memory: 64 << 20, seed }))
  }

  /** Issues a command with `data` at the start of the buffer (null: no pointer). [errno, error] */
  issue(command: number, data: Uint8Array | bigint | null = null, writable = true): [number, number] {
    const arg = new Uint8Array(16)
    const view = new DataView(arg.buffer)
    view.setUint32(0, command, true)
    if (typeof data === 'bigint') view.setBigUint64(4, data, true)
    else if (data !== null) {
      this.memory.write(0, data)
      view.setBigUint64(4, this.memory.address, true)
    }
    view.setUint32(12, UNTOUCHED, true)
    const errno = this.kvm.ioctl(this.#fds[writable ? 1 : 0], SEV_ISSUE_CMD, arg)
    return [errno, view.getUint32(12, true)]
  }

  /** Packed struct of address u64 and length u32 pairs; `at` is an offset into the buffer, null a zero address. */
  pairs(...pairs: readonly (readonly [number | null | bigint, number])[]): Uint8Array {
    const bytes = new Uint8Array(pairs.length * 12)
    const view = new DataView(bytes.buffer)
    pairs.forEach(([at, length], i) => {
      view.setBigUint64(i * 12, at === null ? 0n : typeof at === 'bigint' ? at : this.memory.address + BigInt(at), true)
      view.setUint32(i * 12 + 8, length, true)
    })
    return bytes
  }

  /** The i-th length of the struct in the buffer. */
  length(i = 0): number {
    return new DataView(this.memory.read(i * 12 + 8, 4).buffer).getUint32(0, true)
  }

  status(): { state: number; owner: number; es: number; guests: number } {
    assert.equal(this.issue(SEV_ISSUE.SEV_PLATFORM_STATUS, new Uint8Array(12)), [0, 0])
    const view = new DataView(this.memory.read(0, 12).buffer)
    const flags = view.getUint32(3, true)
    return { state: view.getUint8(2), owner: flags & 1, es: (flags >> 8) & 1, guests: view.getUint32(8, true) }
  }

  snpStatus(): DataView {
    assert.equal(this.issue(SEV_ISSUE.SNP_PLATFORM_STATUS, new Uint8Array(32)), [0, 0])
    return new DataView(this.memory.read(0, 32).buffer)
  }

  /** A launched guest keeps the platform WORKING. */
  guest(): { close(): void } {
    const vm = this.kvm.createVm('sev')
    vm.sevInit()
    vm.launchStart({ policy: 0 })
    return { close: () => vm[Symbol.dispose]() }
  }
}

const E = (name: keyof typeof ERRNO, error: number = UNTOUCHED): [number, number] => [-ERRNO[name], error]
const REFUSED = (status: number): [number, number] => [-ERRNO.EIO, status]
const OK: [number, number] = [0, 0]
const UNMAPPED = 0x1000n

test('the ioctl itself', async () => {
  const d = await Device.open()
  assert.is(d.kvm.ioctl(d.kvm.open('/dev/sev'), 0xae00, 0), -ERRNO.EINVAL)
  assert.is(d.kvm.ioctl(d.kvm.open('/dev/sev'), SEV_ISSUE_CMD, UNMAPPED), -ERRNO.EFAULT)
  assert.is(d.kvm.ioctl(d.kvm.open('/dev/sev'), SEV_ISSUE_CMD, new Uint8Array(15)), -ERRNO.EFAULT)
  // SEV_MAX passes the first check and has no case; neither is answered.
  for (const id of [13, 14, 0xffffffff]) assert.equal(d.issue(id), E('EINVAL'), String(id))
  const intel = await openKvm({ host: 'intel', memory: 64 << 20 })
  assert.is(intel.open('/dev/sev'), -ERRNO.ENOENT)
})

test('what a read-only descriptor may do', async () => {
  const d = await Device.open()
  const { SEV_FACTORY_RESET, SEV_PEK_GEN, SEV_PEK_CSR, SEV_PDH_GEN, SEV_PEK_CERT_IMPORT, SNP_SET_CONFIG, SNP_VLEK_LOAD } = SEV_ISSUE
  // The permission comes before the pointer, but for SNP after a null pointer.
  for (const id of [SEV_FACTORY_RESET, SEV_PEK_GEN, SEV_PEK_CSR, SEV_PDH_GEN, SEV_PEK_CERT_IMPORT])
    assert.equal(d.issue(id, UNMAPPED, false), E('EPERM'), String(id))
  for (const id of [SNP_SET_CONFIG, SNP_VLEK_LOAD]) {
    assert.equal(d.issue(id, UNMAPPED, false), E('EPERM'), String(id))
    assert.equal(d.issue(id, null, false), E('EINVAL'), String(id))
  }
  assert.equal(d.issue(SEV_ISSUE.SEV_PLATFORM_STATUS, new Uint8Array(12), false), OK)
  assert.equal(d.issue(SEV_ISSUE.SEV_PDH_CERT_EXPORT, d.pairs([0x1000, CERTIFICATE], [0x2000, 3 * CERTIFICATE]), false), OK)
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID, new Uint8Array(128), false), OK)
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID2, d.pairs([0x1000, 64]), false), OK)
  assert.equal(d.issue(SEV_ISSUE.SNP_PLATFORM_STATUS, new Uint8Array(32), false), OK)
  assert.equal(d.issue(SEV_ISSUE.SNP_COMMIT, null, false), OK)
})

test('PLATFORM_STATUS: states and flags', async () => {
  const d = await Device.open()
  assert.equal(d.status(), { state: 1, owner: 0, es: 1, guests: 0 })
  const guest = d.guest()
  assert.equal(d.status(), { state: 2, owner: 0, es: 1, guests: 1 })
  guest.close()
  assert.equal(d.status(), { state: 1, owner: 0, es: 1, guests: 0 })
  assert.equal(d.issue(SEV_ISSUE.SEV_PLATFORM_STATUS, UNMAPPED), E('EFAULT', 0))
})

test('FACTORY_RESET: busy with guests, else SHUTDOWN and new keys; the platform is uninitialised until somebody needs it', async () => {
  const d = await Device.open()
  const before = d.kvm.sevCertificates()
  const guest = d.guest()
  assert.equal(d.issue(SEV_ISSUE.SEV_FACTORY_RESET), E('EBUSY', 0))
  guest.close()
  assert.equal(d.issue(SEV_ISSUE.SEV_FACTORY_RESET), OK)
  assert.equal(d.status(), { state: 0, owner: 0, es: 0, guests: 0 })
  assert.equal(d.issue(SEV_ISSUE.SEV_FACTORY_RESET), OK, 'again')
  // SNP was not shut down with it.
  assert.is(d.snpStatus().getUint8(2), 1)
  // A read-only descriptor may not initialise the platform for an export; a length query of it neither.
  assert.equal(d.issue(SEV_ISSUE.SEV_PDH_CERT_EXPORT, d.pairs([null, 0], [null, 0]), false), E('EPERM'))
  const after = d.kvm.sevCertificates()
  assert.is.not(Buffer.compare(before.pdh, after.pdh), 0)
  assert.is.not(Buffer.compare(before.chain.subarray(0, 2 * CERTIFICATE), after.chain.subarray(0, 2 * CERTIFICATE)), 0)
  // The CEK is fused.
  assert.is(Buffer.compare(before.chain.subarray(2 * CERTIFICATE), after.chain.subarray(2 * CERTIFICATE)), 0)
  // The export initialised and shut down both halves of the firmware.
  assert.is(d.status().state, 0)
  assert.is(d.snpStatus().getUint8(2), 0)
  assert.equal(d.issue(SEV_ISSUE.SNP_SET_CONFIG, new Uint8Array(64)), E('ENODEV'))
  assert.equal(d.issue(SEV_ISSUE.SNP_VLEK_LOAD, new Uint8Array(16)), E('ENODEV'))
  // The init command of a SEV guest brings both back.
  const vm = d.kvm.createVm('sev')
  vm.sevInit()
  assert.equal(d.status(), { state: 1, owner: 0, es: 1, guests: 0 })
  assert.is(d.snpStatus().getUint8(2), 1)
  // A reset between init and LAUNCH_START takes the platform away from the guest.
  assert.equal(d.issue(SEV_ISSUE.SEV_FACTORY_RESET), OK)
  const start = vm.memoryEncrypt('KVM_SEV_LAUNCH_START', new Uint8Array(40))
  assert.equal([start.errno, start.fwError], REFUSED(FW.INVALID_PLATFORM_STATE))
})

test('PEK_GEN and PDH_GEN', async () => {
  const d = await Device.open()
  const first = d.kvm.sevCertificates()
  assert.equal(d.issue(SEV_ISSUE.SEV_PDH_GEN), OK)
  const second = d.kvm.sevCertificates()
  assert.is.not(Buffer.compare(first.pdh, second.pdh), 0)
  assert.is(Buffer.compare(first.chain, second.chain), 0, 'the PEK stays')
  assert.equal(d.issue(SEV_ISSUE.SEV_PEK_GEN), OK)
  const third = d.kvm.sevCertificates()
  assert.is.not(Buffer.compare(second.pdh, third.pdh), 0)
  assert.is.not(Buffer.compare(second.chain, third.chain), 0)
  const guest = d.guest()
  assert.equal(d.issue(SEV_ISSUE.SEV_PEK_GEN), REFUSED(FW.INVALID_PLATFORM_STATE))
  assert.equal(d.issue(SEV_ISSUE.SEV_PDH_GEN), OK)
  guest.close()
  // In UNINIT the driver initialises for the length of the command.
  assert.equal(d.issue(SEV_ISSUE.SEV_FACTORY_RESET), OK)
  assert.equal(d.issue(SEV_ISSUE.SEV_PEK_GEN), OK)
  assert.is(d.status().state, 0)
})

test('PDH_CERT_EXPORT: lengths, limits, and a chain that verifies up to the root', async () => {
  const d = await Device.open()
  const { SEV_PDH_CERT_EXPORT } = SEV_ISSUE
  assert.equal(d.issue(SEV_PDH_CERT_EXPORT, UNMAPPED), E('EFAULT'))
  const chain = 3 * CERTIFICATE
  const queries = [
    d.pairs([null, 0], [null, 0]),
    d.pairs([null, CERTIFICATE], [0x2000, chain]),
    d.pairs([0x1000, 0], [0x2000, chain]),
    d.pairs([0x1000, CERTIFICATE], [null, chain]),
    d.pairs([0x1000, CERTIFICATE], [0x2000, 0]),
    d.pairs([0x1000, CERTIFICATE - 1], [0x2000, chain]),
    d.pairs([0x1000, CERTIFICATE], [0x2000, chain - 1]),
    // A query is not a request for memory: no limit applies.
    d.pairs([null, 0x10000], [0x2000, chain]),
  ]
  for (const query of queries) {
    assert.equal(d.issue(SEV_PDH_CERT_EXPORT, query), REFUSED(FW.INVALID_LEN))
    assert.equal([d.length(0), d.length(1)], [CERTIFICATE, chain])
  }
  assert.equal(d.issue(SEV_PDH_CERT_EXPORT, d.pairs([0x1000, 0x4001], [0x2000, chain])), E('EFAULT'))
  assert.equal(d.issue(SEV_PDH_CERT_EXPORT, d.pairs([0x1000, CERTIFICATE], [0x2000, 0x4001])), E('EFAULT'))
  assert.equal(d.issue(SEV_PDH_CERT_EXPORT, d.pairs([UNMAPPED, CERTIFICATE], [0x2000, chain])), E('EFAULT', 0))
  assert.equal(d.issue(SEV_PDH_CERT_EXPORT, d.pairs([0x1000, CERTIFICATE], [UNMAPPED, chain])), E('EFAULT', 0))
  assert.equal(d.issue(SEV_PDH_CERT_EXPORT, d.pairs([0x1000, 0x4000], [0x5000, 0x4000])), OK)
  assert.equal([d.length(0), d.length(1)], [CERTIFICATE, chain])
  const guest = d.guest()
  assert.equal(d.issue(SEV_PDH_CERT_EXPORT, d.pairs([0x1000, CERTIFICATE], [0x5000, chain])), OK, 'with guests')
  guest.close()
  const part = (at: number): Uint8Array => d.memory.read(at, CERTIFICATE)
  const key = (at: number): NonNullable<ReturnType<typeof certificateKey>> =>
    certificateKey(part(at)) ?? assert.unreachable() ?? keyPair(new Uint8Array(56)).point
  const [pdh, pek, oca, cek] = [0x1000, 0x5000, 0x5000 + CERTIFICATE, 0x5000 + 2 * CERTIFICATE] as const
  assert.ok(verifyCertificate(part(pdh), key(pek), USAGE.PEK))
  assert.ok(verifyCertificate(part(pek), key(oca), USAGE.OCA))
  assert.ok(verifyCertificate(part(pek), key(cek), USAGE.CEK))
  assert.ok(verifyCertificate(part(oca), key(oca), USAGE.OCA))
  const ask = certificateKey(sevRootCertificates().subarray(0, CERTIFICATE))
  assert.ok(ask !== null && verifyCertificate(part(cek), ask, USAGE.ASK))
})

test('PEK_CSR and PEK_CERT_IMPORT: another OCA takes the platform over', async () => {
  const d = await Device.open()
  const { SEV_PEK_CSR, SEV_PEK_CERT_IMPORT } = SEV_ISSUE
  assert.equal(d.issue(SEV_PEK_CSR, UNMAPPED), E('EFAULT'))
  for (const query of [d.pairs([null, 0]), d.pairs([0x1000, 0]), d.pairs([0x1000, CERTIFICATE - 1]), d.pairs([null, 100])]) {
    assert.equal(d.issue(SEV_PEK_CSR, query), REFUSED(FW.INVALID_LEN))
    assert.is(d.length(), CERTIFICATE)
  }
  assert.equal(d.issue(SEV_PEK_CSR, d.pairs([0x1000, 0x4001])), E('EFAULT'))
  assert.equal(d.issue(SEV_PEK_CSR, d.pairs([UNMAPPED, CERTIFICATE])), E('EFAULT', 0))
  assert.equal(d.issue(SEV_PEK_CSR, d.pairs([0x1000, CERTIFICATE])), OK)
  const csr = d.memory.read(0x1000, CERTIFICATE)

  const owner = keyPair(new Uint8Array(56).fill(7))
  const oca = encodeCertificate(owner.point, USAGE.OCA, ALGORITHM.ECDSA_SHA256)
  signCertificate(oca, 0, owner, USAGE.OCA)
  const signed = csr.slice()
  signCertificate(signed, 0, owner, USAGE.OCA)
  const attempt = (pek: Uint8Array, by: Uint8Array): [number, number] => {
    d.memory.write(0x1000, pek)
    d.memory.write(0x2000, by)
    return d.issue(SEV_PEK_CERT_IMPORT, d.pairs([0x1000, CERTIFICATE], [0x2000, CERTIFICATE]))
  }
  // The kernel's checks: struct, PEK, OCA.
  assert.equal(d.issue(SEV_PEK_CERT_IMPORT, UNMAPPED), E('EFAULT'))
  assert.equal(d.issue(SEV_PEK_CERT_IMPORT, d.pairs([null, CERTIFICATE], [UNMAPPED, CERTIFICATE])), E('EINVAL'))
  assert.equal(d.issue(SEV_PEK_CERT_IMPORT, d.pairs([0x1000, 0x4001], [UNMAPPED, CERTIFICATE])), E('EINVAL'))
  assert.equal(d.issue(SEV_PEK_CERT_IMPORT, d.pairs([UNMAPPED, CERTIFICATE], [null, CERTIFICATE])), E('EFAULT'))
  assert.equal(d.issue(SEV_PEK_CERT_IMPORT, d.pairs([0x1000, CERTIFICATE], [0x2000, 0])), E('EINVAL'))
  assert.equal(d.issue(SEV_PEK_CERT_IMPORT, d.pairs([0x1000, CERTIFICATE], [UNMAPPED, CERTIFICATE])), E('EFAULT'))
  // The firmware's.
  assert.equal(d.issue(SEV_PEK_CERT_IMPORT, d.pairs([0x1000, 100], [0x2000, CERTIFICATE])), REFUSED(FW.INVALID_LEN))
  assert.equal(attempt(csr, oca), REFUSED(FW.INVALID_CERTIFICATE), 'nobody signed')
  assert.equal(attempt(oca, oca), REFUSED(FW.INVALID_CERTIFICATE), 'not a PEK')
  assert.equal(attempt(signed, signed), REFUSED(FW.INVALID_CERTIFICATE), 'not an OCA')
  const twice = signed.slice()
  signCertificate(twice, 1, owner, USAGE.OCA)
  assert.equal(attempt(twice, oca), REFUSED(FW.INVALID_CERTIFICATE), 'two signatures')
  const foreign = encodeCertificate(owner.point, USAGE.PEK, ALGORITHM.ECDSA_SHA256)
  signCertificate(foreign, 0, owner, USAGE.OCA)
  assert.equal(attempt(foreign, oca), REFUSED(FW.INVALID_CERTIFICATE), 'not our key')
  const another = keyPair(new Uint8Array(56).fill(8))
  const forged = csr.slice()
  signCertificate(forged, 0, another, USAGE.OCA)
  assert.equal(attempt(forged, oca), REFUSED(FW.BAD_SIGNATURE), 'signed by somebody else')
  const guest = d.guest()
  assert.equal(attempt(signed, oca), REFUSED(FW.INVALID_PLATFORM_STATE), 'with guests')
  assert.equal(d.issue(SEV_PEK_CSR, d.pairs([0x3000, CERTIFICATE])), REFUSED(FW.INVALID_PLATFORM_STATE))
  guest.close()

  const before = d.kvm.sevCertificates()
  assert.equal(attempt(signed, oca), OK)
  assert.is(d.status().owner, 1)
  const after = d.kvm.sevCertificates()
  assert.is.not(Buffer.compare(before.pdh, after.pdh), 0, 'a new PDH')
  assert.is(Buffer.compare(after.chain.subarray(CERTIFICATE, 2 * CERTIFICATE), oca), 0)
  const pek = after.chain.subarray(0, CERTIFICATE)
  const cek = certificateKey(after.chain.subarray(2 * CERTIFICATE))
  assert.ok(verifyCertificate(pek, owner.point, USAGE.OCA) && cek !== null && verifyCertificate(pek, cek, USAGE.CEK))
  assert.equal(attempt(signed, oca), REFUSED(FW.ALREADY_OWNED))
  // PEK_GEN gives the platform back to itself.
  assert.equal(d.issue(SEV_ISSUE.SEV_PEK_GEN), OK)
  assert.is(d.status().owner, 0)
  assert.equal(attempt(signed, oca), REFUSED(FW.INVALID_CERTIFICATE), 'the old CSR')
})

test('a domain of two platforms under one OCA: a guest with policy DOMAIN may go', async () => {
  const owner = keyPair(new Uint8Array(56).fill(7))
  const oca = encodeCertificate(owner.point, USAGE.OCA, ALGORITHM.ECDSA_SHA256)
  signCertificate(oca, 0, owner, USAGE.OCA)
  const join = (d: Device): void => {
    assert.equal(d.issue(SEV_ISSUE.SEV_PEK_CSR, d.pairs([0x1000, CERTIFICATE])), OK)
    const pek = d.memory.read(0x1000, CERTIFICATE)
    signCertificate(pek, 0, owner, USAGE.OCA)
    d.memory.write(0x1000, pek)
    d.memory.write(0x2000, oca)
    assert.equal(d.issue(SEV_ISSUE.SEV_PEK_CERT_IMPORT, d.pairs([0x1000, CERTIFICATE], [0x2000, CERTIFICATE])), OK)
  }
  const [here, there] = [await Device.open(1n), await Device.open(2n)]
  join(here)
  const vm = here.kvm.createVm('sev')
  vm.sevInit()
  vm.launchStart({ policy: 0x30 })
  vm.launchFinish()
  assert.throws(() => vm.sendStart(there.kvm.sevCertificates()), /POLICY_FAILURE/)
  join(there)
  assert.is(vm.sendStart(there.kvm.sevCertificates()).length, 128)
})

test('GET_ID and GET_ID2', async () => {
  const d = await Device.open()
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID, UNMAPPED), E('EFAULT', 0))
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID, new Uint8Array(128)), OK)
  const id = d.memory.read(0, 64)
  assert.ok(id.some((b) => b !== 0))
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID2, UNMAPPED), E('EFAULT'))
  for (const query of [d.pairs([null, 0]), d.pairs([0x1000, 0]), d.pairs([0x1000, 63]), d.pairs([null, 64])]) {
    assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID2, query), REFUSED(FW.INVALID_LEN))
    assert.is(d.length(), 64)
  }
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID2, d.pairs([0x1000, 0x400001])), E('ENOMEM'))
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID2, d.pairs([UNMAPPED, 64])), E('EFAULT', 0))
  assert.equal(d.issue(SEV_ISSUE.SEV_GET_ID2, d.pairs([0x1000, 0x400000])), OK)
  assert.equal(d.memory.read(0x1000, 64), id)
  assert.is(d.length(), 64)
  const other = await Device.open(5n)
  other.issue(SEV_ISSUE.SEV_GET_ID, new Uint8Array(128))
  assert.is.not(Buffer.compare(other.memory.read(0, 64), id), 0)
})

test('SNP_PLATFORM_STATUS, SNP_COMMIT, SNP_SET_CONFIG', async () => {
  const d = await Device.open()
  assert.equal(d.issue(SEV_ISSUE.SNP_PLATFORM_STATUS), E('EINVAL'))
  assert.equal(d.issue(SEV_ISSUE.SNP_PLATFORM_STATUS, UNMAPPED), E('EFAULT', 0))
  let status = d.snpStatus()
  const tcb = status.getBigUint64(16, true)
  assert.equal([status.getUint8(0), status.getUint8(2), status.getUint8(3) & 1, status.getUint32(8, true)], [1, 1, 1, 0])
  assert.is(status.getBigUint64(24, true), tcb)
  const config = (reported: bigint, masks: number): Uint8Array => {
    const bytes = new Uint8Array(64)
    new DataView(bytes.buffer).setBigUint64(0, reported, true)
    new DataView(bytes.buffer).setUint32(8, masks, true)
    return bytes
  }
  assert.equal(d.issue(SEV_ISSUE.SNP_SET_CONFIG, UNMAPPED), E('EFAULT'))
  assert.equal(d.issue(SEV_ISSUE.SNP_SET_CONFIG, config(tcb - 1n, 3)), OK)
  status = d.snpStatus()
  assert.equal([status.getBigUint64(24, true), status.getUint32(8, true)], [tcb - 1n, 3])
  assert.is(status.getBigUint64(16, true), tcb)
  assert.equal(d.issue(SEV_ISSUE.SNP_SET_CONFIG, config(tcb + 1n, 0)), REFUSED(FW.INVALID_PARAM), 'above the installed TCB')
  assert.equal(d.issue(SEV_ISSUE.SNP_SET_CONFIG, config(tcb, 4)), REFUSED(FW.INVALID_PARAM), 'reserved bit')
  const reserved = config(tcb, 0)
  reserved[63] = 1
  assert.equal(d.issue(SEV_ISSUE.SNP_SET_CONFIG, reserved), REFUSED(FW.INVALID_PARAM), 'reserved byte')
  assert.is(d.snpStatus().getUint32(8, true), 3, 'refused: unchanged')
  assert.equal(d.issue(SEV_ISSUE.SNP_SET_CONFIG, config(0n, 0)), OK)
  assert.is(d.snpStatus().getBigUint64(24, true), tcb, '0 means the installed one')
  assert.equal(d.issue(SEV_ISSUE.SNP_COMMIT), OK)
  const vm = d.kvm.createVm('snp')
  vm.sevInit()
  const start = new Uint8Array(64)
  new DataView(start.buffer).setBigUint64(0, 0x30000n, true)
  vm.sevCommand('KVM_SEV_SNP_LAUNCH_START', start)
  assert.is(d.snpStatus().getUint32(12, true), 1)
})

test('SNP_VLEK_LOAD: the struct, the wrapped hashstick', async () => {
  const d = await Device.open()
  const load = (address: bigint, length = 16, version = 0): [number, number] => {
    const bytes = new Uint8Array(16)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, length, true)
    view.setUint8(4, version)
    view.setBigUint64(8, address, true)
    return d.issue(SEV_ISSUE.SNP_VLEK_LOAD, bytes)
  }
  const at = d.memory.address + 0x1000n
  assert.equal(d.issue(SEV_ISSUE.SNP_VLEK_LOAD, UNMAPPED), E('EFAULT'))
  assert.equal(load(UNMAPPED, 15), E('EINVAL'))
  assert.equal(load(UNMAPPED, 16, 1), E('EINVAL'))
  assert.equal(load(0n), E('EINVAL'))
  assert.equal(load(UNMAPPED), E('EFAULT'))
  assert.equal(load(at), REFUSED(FW.BAD_MEASUREMENT), 'zeros')
  const wrapped = d.kvm.kernel.psp.snp.wrapVlek(new Uint8Array(384).fill(0x11))
  for (const byte of [0, 16, 399, 400, 431]) {
    const changed = wrapped.slice()
    changed[byte] = (changed[byte] as number) ^ 1
    d.memory.write(0x1000, changed)
    assert.equal(load(at), REFUSED(FW.BAD_MEASUREMENT), `byte ${byte}`)
  }
  const other = await Device.open(9n)
  d.memory.write(0x1000, other.kvm.kernel.psp.snp.wrapVlek(new Uint8Array(384)))
  assert.equal(load(at), REFUSED(FW.BAD_MEASUREMENT), 'for another chip')
  d.memory.write(0x1000, d.kvm.kernel.psp.snp.wrapVlek(new Uint8Array(384), 0xff16000000000004n))
  assert.equal(load(at), REFUSED(FW.INVALID_PARAM), 'for a newer TCB')
  assert.is(d.snpStatus().getUint32(8, true) & 4, 0)
  d.memory.write(0x1000, wrapped)
  assert.equal(load(at), OK)
  assert.is(d.snpStatus().getUint32(8, true) & 4, 4)
})

test.run()
