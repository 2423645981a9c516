/** KVM_SEV_SNP_LAUNCH_START, _UPDATE, _FINISH: order of checks (arch/x86/kvm/svm/sev.c snp_launch_*), launch digest, ID block. */
import { createPrivateKey, sign as nodeSign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  ERRNO,
  FIRMWARE_STATUS as FW,
  type Kvm,
  type KvmOptions,
  type Mapping,
  openKvm,
  REQUEST,
  type SEV_COMMAND,
  type Vm,
} from 'cloister'
import { fromBytes, keyPair, toBytes, type KeyPair } from '../../host/crypto/p384.ts'
import { sha384 } from '../../host/crypto/sha384.ts'
import { needs, ovmfPath } from '../support/needs.ts'
import { ovmf } from '../vectors/sev.ts'

const PAGE = 4096
const POLICY = 0x30000n
const NORMAL = 1
const ZERO = 3
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')

interface World {
  kvm: Kvm
  vm: Vm
  /** VMM memory to launch from. */
  source: Mapping
}

/** An SNP VM with guest_memfd slots at these places, all private. */
async function world(regions: readonly (readonly [number, number])[], cpus = 1, options: KvmOptions = {}): Promise<World> {
  const kvm = await openKvm({ memory: 256 << 20, ...options })
  const vm = kvm.createVm('snp')
  vm.sevInit()
  regions.forEach(([gpa, size], slot) => {
    const gmem = new Uint8Array(64)
    new DataView(gmem.buffer).setBigUint64(0, BigInt(size), true)
    const fd = vm.ioctl('KVM_CREATE_GUEST_MEMFD', gmem)
    const region = new Uint8Array(160)
    const view = new DataView(region.buffer)
    view.setUint32(0, slot, true)
    view.setUint32(4, 4, true)
    view.setBigUint64(8, BigInt(gpa), true)
    view.setBigUint64(16, BigInt(size), true)
    view.setBigUint64(24, kvm.mmap(-1, size).address, true)
    view.setUint32(40, fd, true)
    vm.ioctl('KVM_SET_USER_MEMORY_REGION2', region)
    const attributes = new Uint8Array(32)
    new DataView(attributes.buffer).setBigUint64(0, BigInt(gpa), true)
    new DataView(attributes.buffer).setBigUint64(8, BigInt(size), true)
    new DataView(attributes.buffer).setBigUint64(16, 8n, true)
    vm.ioctl('KVM_SET_MEMORY_ATTRIBUTES', attributes)
  })
  for (let id = 0; id < cpus; id++) vm.createVcpu(id).setCpuid2(kvm.supportedCpuid())
  return { kvm, vm, source: kvm.mmap(-1, 2 << 20) }
}

const start = (policy: bigint, flags = 0): Uint8Array => {
  const bytes = new Uint8Array(64)
  new DataView(bytes.buffer).setBigUint64(0, policy, true)
  new DataView(bytes.buffer).setUint16(24, flags, true)
  return bytes
}

function update(gpa: number, address: bigint, length: number, type: number, flags = 0): Uint8Array {
  const bytes = new Uint8Array(64)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, BigInt(gpa) >> 12n, true)
  view.setBigUint64(8, address, true)
  view.setBigUint64(16, BigInt(length), true)
  view.setUint8(24, type)
  view.setUint16(26, flags, true)
  return bytes
}

function finish(options: { block?: bigint; auth?: bigint; enabled?: number; author?: number; flags?: number } = {}): Uint8Array {
  const bytes = new Uint8Array(88)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(0, options.block ?? 0n, true)
  view.setBigUint64(8, options.auth ?? 0n, true)
  view.setUint8(16, options.enabled ?? 0)
  view.setUint8(17, options.author ?? 0)
  view.setUint16(54, options.flags ?? 0, true)
  return bytes
}

function expects(
  w: World,
  command: keyof typeof SEV_COMMAND,
  data: Uint8Array | null,
  errno: keyof typeof ERRNO | 0,
  fw: number,
  where: string,
): Uint8Array {
  const result = w.vm.memoryEncrypt(command, data)
  assert.is(result.errno, errno === 0 ? 0 : -ERRNO[errno], `${where}: ${JSON.stringify(w.kvm.lastRefusal())}`)
  assert.is(result.fwError, fw, where)
  return result.data
}

const LOW: readonly (readonly [number, number])[] = [[0x100000, 16 * PAGE]]

needs(test, 'ovmf', 'launch digests of OVMF equal the vectors, step by step', async () => {
  const image = new Uint8Array(readFileSync(ovmfPath() as string))
  for (const cpus of [0, 1, 2, 4] as const) {
    const w = await world(
      [
        [0x800000, 0x20000],
        [Number(ovmf.base), image.length],
      ],
      cpus,
    )
    const { vm, source } = w
    for (const vcpu of vm.vcpus) {
      const ap = vcpu.id > 0
      vcpu.setRegs({ ...vcpu.getRegs(), rdx: 0xa00f11n, rip: ap ? BigInt(ovmf.resetEip & 0xffff) : 0xfff0n })
      const sregs = vcpu.getSregs()
      if (ap) vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: BigInt(ovmf.resetEip & 0xffff0000) } })
    }
    expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY), 0, 0, 'start')
    assert.is(vm.launchDigest(), '00'.repeat(48))
    source.write(0, image)
    expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(Number(ovmf.base), source.address, image.length, NORMAL), 0, 0, 'image')
    assert.is(vm.launchDigest(), ovmf.snp.image)
    for (const [gpa, size, type, digest] of ovmf.snp.sections) {
      expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(gpa, type === ZERO ? 0n : source.address, size, type), 0, 0, `section ${gpa}`)
      assert.is(vm.launchDigest(), digest)
    }
    expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish(), 0, 0, 'finish')
    assert.is(vm.launchDigest(), ovmf.snp.vcpus[cpus], `${cpus} vCPUs`)
  }
})

test('LAUNCH_START: flags, policy, a second context, descriptors, firmware; 6.12 and 7.3', async () => {
  const w = await world(LOW)
  assert.is(w.kvm.createVm('sev').memoryEncrypt('KVM_SEV_SNP_LAUNCH_START', start(POLICY)).errno, -ERRNO.ENOTTY)
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', null, 'EFAULT', 0, 'no struct')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY, 1), 'EINVAL', 0, 'flags')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY | (1n << 18n)), 'EINVAL', 0, 'MIGRATE_MA')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY | (1n << 26n)), 'EINVAL', 0, 'unknown bit')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(0x10000n), 'EINVAL', 0, 'bit 17 clear')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY | 0xffffn), 'EIO', FW.POLICY_FAILURE, 'newer ABI')
  // A refused context is gone.
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x100000, 0n, PAGE, ZERO), 'EINVAL', 0, 'no context')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(0x20000n), 0, 0, 'without SMT')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY), 'EINVAL', 0, 'again')
  const cmd = new Uint8Array(24)
  new DataView(cmd.buffer).setUint32(0, 100, true)
  const other = await world(LOW)
  new DataView(cmd.buffer).setBigUint64(8, other.source.address, true)
  other.source.write(0, start(POLICY))
  new DataView(cmd.buffer).setInt32(20, other.vm.fd, true)
  assert.is(other.kvm.ioctl(other.vm.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, cmd), -ERRNO.ENOTTY, 'not /dev/sev: the errno is hidden')
  const old = await world(LOW, 1, { linux: '6.12' })
  expects(old, 'KVM_SEV_SNP_LAUNCH_START', start(0x20000n), 'EINVAL', 0, '6.12 wants SMT')
  expects(old, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY | (1n << 20n)), 'EINVAL', 0, '6.12: SINGLE_SOCKET')
  expects(old, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY | (1n << 21n)), 'EINVAL', 0, '6.12 does not know bit 21')
  expects(old, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY | (1n << 19n)), 0, 0, 'DEBUG')
})

test('legacy commands are -EPERM for an SNP guest', async () => {
  const w = await world(LOW)
  for (const name of ['SEND_START', 'RECEIVE_UPDATE_DATA', 'LAUNCH_START', 'DBG_DECRYPT', 'INIT2'] as const)
    expects(w, `KVM_SEV_${name}`, null, 'EPERM', 0, name)
  assert.is(w.vm.memoryEncrypt(99).errno, -ERRNO.EPERM)
  assert.is(w.vm.memoryEncrypt(104).errno, -ERRNO.EINVAL)
})

test('LAUNCH_UPDATE: order of checks, partial progress, page types', async () => {
  const w = await world(LOW)
  const { source } = w
  const at = source.address
  const unmapped = 0x1000n
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x100000, at, PAGE, NORMAL), 'EINVAL', 0, 'before LAUNCH_START')
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY), 0, 0, 'start')
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', null, 'EFAULT', 0, 'no struct')
  const refused: readonly (readonly [string, Uint8Array])[] = [
    ['no length', update(0x100000, at, 0, NORMAL)],
    ['not in pages', update(0x100000, at, 100, NORMAL)],
    ['flags', update(0x100000, at, PAGE, NORMAL, 1)],
    ['type 0', update(0x100000, at, PAGE, 0)],
    ['type 2 is KVM’s own', update(0x100000, at, PAGE, 2)],
    ['type 7', update(0x100000, at, PAGE, 7)],
    ['no address', update(0x100000, 0n, PAGE, NORMAL)],
    ['unaligned address', update(0x100000, at + 16n, PAGE, NORMAL)],
    ['no slot', update(0x200000, at, PAGE, NORMAL)],
    ['no slot, though ZERO', update(0x200000, 0n, PAGE, ZERO)],
  ]
  for (const [where, data] of refused) expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', data, 'EINVAL', 0, where)
  // From here on everything is -EIO.
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x100000, unmapped, PAGE, NORMAL), 'EIO', 0, 'source not mapped')
  const attributes = new Uint8Array(32)
  new DataView(attributes.buffer).setBigUint64(0, 0x108000n, true)
  new DataView(attributes.buffer).setBigUint64(8, 0x1000n, true)
  w.vm.ioctl('KVM_SET_MEMORY_ATTRIBUTES', attributes)
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x108000, at, PAGE, NORMAL), 'EIO', 0, 'not private')
  const before = w.vm.launchDigest()
  // 8 pages go, the ninth does not: success, with the rest to do.
  let view = new DataView(expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x100000, at, 10 * PAGE, NORMAL), 0, 0, 'partial').buffer)
  assert.equal(
    [0, 8, 16].map((o) => view.getBigUint64(o, true)),
    [0x108n, at + BigInt(8 * PAGE), BigInt(2 * PAGE)],
  )
  assert.is.not(w.vm.launchDigest(), before)
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x107000, at, PAGE, NORMAL), 'EIO', 0, 'assigned already')
  // The end of the slot ends the call; ZERO leaves uaddr alone.
  view = new DataView(expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x10e000, 0x123n, 4 * PAGE, ZERO), 0, 0, 'end of slot').buffer)
  assert.equal(
    [0, 8, 16].map((o) => view.getBigUint64(o, true)),
    [0x110n, 0x123n, BigInt(2 * PAGE)],
  )
  for (const type of [4, 5, 6])
    expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x109000 + (type - 4) * PAGE, at, PAGE, type), 0, 0, `type ${type}`)
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish(), 0, 0, 'finish')
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x10d000, at, PAGE, NORMAL), 'EIO', FW.INVALID_GUEST_STATE, 'finished')
})

test('a CPUID page that the firmware refuses comes back corrected', async () => {
  const w = await world(LOW, 0)
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY), 0, 0, 'start')
  const page = new Uint8Array(PAGE)
  const view = new DataView(page.buffer)
  view.setUint32(0, 2, true)
  // Leaf 1 with TSC_DEADLINE and SSE3, leaf 7 with SPEC_CTRL, TSC_ADJUST and FSGSBASE.
  view.setUint32(16, 1, true)
  view.setUint32(16 + 32, 0x0100_0001, true)
  view.setUint32(64, 7, true)
  view.setUint32(64 + 28, 3, true)
  view.setUint32(64 + 36, 0x0400_0010, true)
  w.source.write(0, page)
  const command = update(0x100000, w.source.address, PAGE, 6)
  const digest = w.vm.launchDigest()
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', command, 'EIO', FW.INVALID_PARAM, 'refused')
  assert.is(w.vm.launchDigest(), digest, 'nothing was measured')
  const back = new DataView(w.source.read(0, PAGE).buffer)
  assert.equal(
    [16 + 32, 64 + 28, 64 + 36].map((at) => back.getUint32(at, true)),
    [1, 1, 0x10],
  )
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', command, 0, 0, 'the corrected page')
  view.setUint32(0, 65, true)
  w.source.write(0, page)
  expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x101000, w.source.address, PAGE, 6), 'EIO', FW.INVALID_PARAM, '65 entries')
})

test('the digest: what counts and what does not', async () => {
  const digest = async (type: number, fill: number, gpa = 0x100000): Promise<string | null> => {
    const w = await world(LOW, 0)
    expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY), 0, 0, 'start')
    // Without CPUID entries, which the firmware would look at.
    w.source.write(0, new Uint8Array(PAGE).fill(fill, 16))
    expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(gpa, w.source.address, PAGE, type), 0, 0, 'update')
    return w.vm.launchDigest()
  }
  assert.is.not(await digest(NORMAL, 1), await digest(NORMAL, 2), 'contents')
  assert.is.not(await digest(NORMAL, 1), await digest(NORMAL, 1, 0x101000), 'address')
  for (const type of [ZERO, 4, 5, 6]) assert.is(await digest(type, 1), await digest(type, 2), `type ${type}: contents do not count`)
  assert.is.not(await digest(5, 0), await digest(6, 0), 'type')
})

/** ID block and authentication page, signed by Node's ECDSA. */
function identity(digest: Uint8Array, policy: bigint, id: KeyPair, author: KeyPair): { block: Uint8Array; auth: Uint8Array } {
  const key = (pair: KeyPair): Uint8Array => {
    const bytes = new Uint8Array(1028)
    bytes[0] = 2
    bytes.set(toBytes(pair.point.x, 72, true), 4)
    bytes.set(toBytes(pair.point.y, 72, true), 76)
    return bytes
  }
  const signature = (pair: KeyPair, message: Uint8Array): Uint8Array => {
    const b64 = (value: bigint): string => Buffer.from(toBytes(value, 48, false)).toString('base64url')
    const jwk = { kty: 'EC', crv: 'P-384', x: b64(pair.point.x), y: b64(pair.point.y), d: b64(pair.secret) }
    const ieee = nodeSign('sha384', message, { key: createPrivateKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' })
    const bytes = new Uint8Array(512)
    bytes.set(toBytes(fromBytes(ieee.subarray(0, 48), false), 72, true), 0)
    bytes.set(toBytes(fromBytes(ieee.subarray(48), false), 72, true), 72)
    return bytes
  }
  const block = new Uint8Array(96)
  const view = new DataView(block.buffer)
  block.set(digest)
  block.fill(0xfa, 48, 64)
  view.setUint32(80, 1, true)
  view.setUint32(84, 3, true)
  view.setBigUint64(88, policy, true)
  const auth = new Uint8Array(PAGE)
  auth[0] = 1
  auth[4] = 1
  auth.set(signature(id, block), 0x40)
  auth.set(key(id), 0x240)
  auth.set(signature(author, key(id)), 0x680)
  auth.set(key(author), 0x880)
  return { block, auth }
}

test('LAUNCH_FINISH: order of checks, ID block and its signatures', async () => {
  const [id, author] = [keyPair(new Uint8Array(56).fill(3)), keyPair(new Uint8Array(56).fill(4))]
  /** A guest without vCPUs, so that LAUNCH_FINISH may be tried again. */
  const launched = async (): Promise<World & { digest: Uint8Array }> => {
    const w = await world(LOW, 0)
    expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish(), 'EINVAL', 0, 'no context')
    expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY), 0, 0, 'start')
    w.source.write(0, new Uint8Array(PAGE).fill(0x90))
    expects(w, 'KVM_SEV_SNP_LAUNCH_UPDATE', update(0x100000, w.source.address, PAGE, NORMAL), 0, 0, 'update')
    return { ...w, digest: new Uint8Array(Buffer.from(w.vm.launchDigest() ?? '', 'hex')) }
  }
  const w = await launched()
  const [block, auth] = [w.source.address + 0x2000n, w.source.address + 0x3000n]
  const attempt = (change: (block: Uint8Array, auth: Uint8Array) => void, status: number, where: string, enabled = 3, on = w): void => {
    const made = identity(on.digest, POLICY, id, author)
    change(made.block, made.auth)
    on.source.write(0x2000, made.block)
    on.source.write(0x3000, made.auth)
    const [b, a] = [on.source.address + 0x2000n, on.source.address + 0x3000n]
    const data = finish({ block: b, auth: a, enabled: enabled & 1, author: enabled >> 1 })
    expects(on, 'KVM_SEV_SNP_LAUNCH_FINISH', data, status === FW.SUCCESS ? 0 : 'EIO', status, where)
  }
  const flip = (bytes: Uint8Array, at: number): void => {
    bytes[at] = (bytes[at] as number) ^ 1
  }
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', null, 'EFAULT', 0, 'no struct')
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish({ flags: 1, enabled: 1 }), 'EINVAL', 0, 'flags')
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish({ enabled: 1, auth }), 'EINVAL', 0, 'no block')
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish({ enabled: 1, block: 0x1000n, auth }), 'EFAULT', 0, 'block not mapped')
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish({ enabled: 1, block }), 'EINVAL', 0, 'no authentication page')
  attempt((b) => flip(b, 80), FW.INVALID_PARAM, 'version')
  attempt((_, a) => flip(a, 0), FW.INVALID_PARAM, 'ID key algorithm')
  attempt((_, a) => flip(a, 4), FW.INVALID_PARAM, 'author key algorithm')
  attempt((_, a) => flip(a, 0x240), FW.INVALID_KEY, 'curve')
  attempt((_, a) => flip(a, 0x244), FW.INVALID_KEY, 'not on the curve')
  attempt((b) => flip(b, 50), FW.BAD_SIGNATURE, 'a changed family id')
  attempt((_, a) => flip(a, 0x40), FW.BAD_SIGNATURE, 'a changed signature')
  attempt((_, a) => flip(a, 0x680), FW.BAD_SIGNATURE, 'author signature')
  attempt(
    (b, a) => {
      const made = identity(sha384(Uint8Array.of(1)), POLICY, id, author)
      b.set(made.block)
      a.set(made.auth)
    },
    FW.BAD_MEASUREMENT,
    'another digest',
  )
  attempt(
    (b, a) => {
      const made = identity(w.digest, POLICY | (1n << 19n), id, author)
      b.set(made.block)
      a.set(made.auth)
    },
    FW.POLICY_FAILURE,
    'another policy',
  )
  // The author's signature counts only if it is announced.
  const alone = await launched()
  attempt((_, a) => flip(a, 0x680), FW.SUCCESS, 'no author key', 1, alone)
  attempt(() => undefined, FW.SUCCESS, 'good')
  assert.is(w.vm.file.preFaultAllowed, true)
  const known = w.vm.file.sev?.snp?.guest.identity
  assert.ok(known?.authorKeyDigest)
  assert.is(hex(known.idKeyDigest), hex(sha384(identity(w.digest, POLICY, id, author).auth.subarray(0x240, 0x240 + 1028))))
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish(), 'EIO', FW.INVALID_GUEST_STATE, 'finished')
})

test('LAUNCH_FINISH seals the vCPUs before it looks at the ID block: a retry is -EINVAL', async () => {
  const w = await world(LOW)
  expects(w, 'KVM_SEV_SNP_LAUNCH_START', start(POLICY), 0, 0, 'start')
  const vcpu = w.vm.vcpus[0]
  vcpu?.setGuestDebug(1)
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish(), 'EINVAL', 0, 'debugged')
  vcpu?.setGuestDebug(0)
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish({ enabled: 1 }), 'EINVAL', 0, 'no block')
  expects(w, 'KVM_SEV_SNP_LAUNCH_FINISH', finish(), 'EINVAL', 0, 'sealed already')
  assert.match(w.kvm.lastRefusal()?.reason ?? '', /protected already/)
})

test.run()
