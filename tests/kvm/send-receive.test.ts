/** KVM_SEV_SEND_* and KVM_SEV_RECEIVE_*: every refusal, in the kernel's order of checks (arch/x86/kvm/svm/sev.c), then the firmware's. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  ERRNO,
  FIRMWARE_STATUS as FW,
  GUEST_STATE,
  type Kvm,
  type Mapping,
  openKvm,
  SEV_POLICY,
  sevRootCertificates,
  type SEV_COMMAND,
  type Vm,
  type VmType,
} from 'cloister'
import { ALGORITHM, encodeCertificate, USAGE } from '../../host/firmware/psp/certificate.ts'
import { keyPair } from '../../host/crypto/p384.ts'

type Fields = Readonly<Record<string, bigint | number>>
type Errno = keyof typeof ERRNO | 0

/** Struct bytes from fields named by size and offset: `u64@8`. */
function struct(size: number, fields: Fields): Uint8Array {
  const view = new DataView(new ArrayBuffer(size))
  for (const [name, value] of Object.entries(fields)) {
    const [kind, at] = name.split('@') as [string, string]
    if (kind === 'u64') view.setBigUint64(Number(at), BigInt(value), true)
    else view.setUint32(Number(at), Number(value), true)
  }
  return new Uint8Array(view.buffer)
}

interface World {
  kvm: Kvm
  vm: Vm
  /** Guest memory. */
  memory: Mapping
  /** Buffers of the VMM: PDH at 0, chain at 0x1000, roots at 0x3000, session at 0x5000, header at 0x6000, packet at 0x7000. */
  buffers: Mapping
}

async function world(type: VmType = 'sev', policy = 0, state: 'init' | 'running' | 'sending' | 'receiving' = 'running'): Promise<World> {
  const kvm = await openKvm({ memory: 128 << 20 })
  const vm = kvm.createVm(type)
  if (type !== 'default') vm.sevInit()
  const memory = kvm.mmap(-1, 0x4000)
  const buffers = kvm.mmap(-1, 0x10000)
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0x4000, userspaceAddr: memory.address })
  const { pdh, chain } = kvm.sevCertificates()
  buffers.write(0, pdh)
  buffers.write(0x1000, chain)
  buffers.write(0x3000, sevRootCertificates())
  if (state === 'init' || type === 'default') return { kvm, vm, memory, buffers }
  if (state === 'receiving') {
    const source = await world('sev', policy)
    buffers.write(0, source.kvm.sevCertificates().pdh)
    const session = source.vm.sendStart({ pdh, chain })
    buffers.write(0x5000, session)
    const packet = source.vm.sendUpdateData(source.memory.address, 4096)
    buffers.write(0x6000, packet.header)
    buffers.write(0x7000, packet.data)
    vm.receiveStart({ policy, pdh: source.kvm.sevCertificates().pdh, session })
    return { kvm, vm, memory, buffers }
  }
  vm.launchStart({ policy })
  memory.write(0, new Uint8Array(0x4000).fill(0x5a))
  vm.launchUpdateData(memory.address, 0x4000)
  vm.launchFinish()
  if (state === 'sending') vm.sendStart({ pdh, chain })
  return { kvm, vm, memory, buffers }
}

const sendStartFields = ({ buffers }: World): Fields => ({
  'u64@8': buffers.address,
  'u32@16': 2084,
  'u64@24': buffers.address + 0x1000n,
  'u32@32': 6252,
  'u64@40': buffers.address + 0x3000n,
  'u32@48': 4168,
  'u64@56': buffers.address + 0x5000n,
  'u32@64': 128,
})
const packetFields = ({ buffers, memory }: World): Fields => ({
  'u64@0': buffers.address + 0x6000n,
  'u32@8': 52,
  'u64@16': memory.address,
  'u32@24': 4096,
  'u64@32': buffers.address + 0x7000n,
  'u32@40': 4096,
})
const receiveStartFields = ({ buffers }: World): Fields => ({
  'u64@8': buffers.address,
  'u32@16': 2084,
  'u64@24': buffers.address + 0x5000n,
  'u32@32': 128,
})

/** `errno` and firmware status of a command; the status field starts as 0xbad. */
function expects(
  w: World,
  command: keyof typeof SEV_COMMAND,
  data: Uint8Array | null,
  errno: Errno,
  fw: number | null,
  where: string,
): Uint8Array {
  const result = w.vm.memoryEncrypt(command, data)
  assert.is(result.errno, errno === 0 ? 0 : -ERRNO[errno], `${where}: ${JSON.stringify(w.kvm.lastRefusal())}`)
  if (fw !== null) assert.is(result.fwError, fw, where)
  return result.data
}

/** Each row spoils one field of a call whose later fields are spoilt already: the first check wins. */
function ladder(
  w: World,
  command: keyof typeof SEV_COMMAND,
  size: number,
  good: Fields,
  rows: readonly (readonly [string, Fields, Errno])[],
): void {
  let fields = { ...good }
  for (const [where, change, errno] of rows.toReversed()) {
    fields = { ...fields, ...change }
    expects(w, command, struct(size, fields), errno, 0, `${command}: ${where}`)
  }
}

const UNMAPPED = 0x1000n

test('not a SEV guest: ENOTTY, but EINVAL for RECEIVE_UPDATE_DATA', async () => {
  const w = await world('default')
  for (const name of ['SEND_START', 'SEND_UPDATE_DATA', 'SEND_FINISH', 'SEND_CANCEL', 'RECEIVE_START', 'RECEIVE_FINISH'] as const)
    expects(w, `KVM_SEV_${name}`, null, 'ENOTTY', 0, name)
  expects(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', null, 'EINVAL', 0, 'RECEIVE_UPDATE_DATA')
})

test('ids of the uapi enumeration that KVM has no case for', async () => {
  const w = await world()
  for (const id of [10, 14, 19, 23, 99, 104]) assert.is(w.vm.memoryEncrypt(id, new Uint8Array(48)).errno, -ERRNO.EINVAL, String(id))
})

test('a bad struct pointer, and no /dev/sev before LAUNCH_START', async () => {
  const w = await world('sev', 0, 'init')
  for (const name of ['SEND_START', 'SEND_UPDATE_DATA', 'RECEIVE_START', 'RECEIVE_UPDATE_DATA'] as const)
    expects(w, `KVM_SEV_${name}`, null, 'EFAULT', 0, name)
  expects(w, 'KVM_SEV_SEND_START', struct(72, {}), 'EBADF', 0, 'length query')
  expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), 'EBADF', 0, 'start')
  expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, {}), 'EBADF', 0, 'lengths query')
  expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, packetFields(w)), 'EBADF', 0, 'update')
  expects(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', struct(48, packetFields(w)), 'EBADF', 0, 'receive')
  for (const name of ['SEND_FINISH', 'SEND_CANCEL', 'RECEIVE_FINISH'] as const) expects(w, `KVM_SEV_${name}`, null, 'EBADF', 0, name)
})

test('SEND_START: the kernel looks at lengths, then certificates in order, then asks the firmware', async () => {
  const w = await world()
  ladder(w, 'KVM_SEV_SEND_START', 72, sendStartFields(w), [
    ['no PDH address', { 'u64@8': 0 }, 'EINVAL'],
    ['no PDH length', { 'u32@16': 0, 'u64@8': w.buffers.address }, 'EINVAL'],
    ['no session buffer', { 'u64@56': 0 }, 'EINVAL'],
    ['session above 16 KiB', { 'u32@64': 0x4001 }, 'EINVAL'],
  ])
  ladder(w, 'KVM_SEV_SEND_START', 72, sendStartFields(w), [
    ['PDH too long', { 'u32@16': 0x4001 }, 'EINVAL'],
    ['PDH not mapped', { 'u64@8': UNMAPPED }, 'EFAULT'],
    ['no chain', { 'u64@24': 0 }, 'EINVAL'],
    ['chain not mapped', { 'u64@24': UNMAPPED }, 'EFAULT'],
    ['no AMD certificates', { 'u32@48': 0 }, 'EINVAL'],
  ])
  const data = expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), 0, 0, 'good')
  assert.is(new DataView(data.buffer).getUint32(64, true), 128)
  assert.is(w.vm.guestStatus().state, GUEST_STATE.SENDING)
  // The session came, and again is the wrong state.
  assert.ok(w.buffers.read(0x5000, 128).some((b) => b !== 0))
  expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), 'EIO', FW.INVALID_GUEST_STATE, 'again')
})

test('SEND_START: the length query, and a session buffer that is too small or not there', async () => {
  const w = await world()
  let data = expects(w, 'KVM_SEV_SEND_START', struct(72, {}), 'EIO', FW.INVALID_LEN, 'query')
  assert.is(new DataView(data.buffer).getUint32(64, true), 128)
  data = expects(w, 'KVM_SEV_SEND_START', struct(72, { ...sendStartFields(w), 'u32@64': 64 }), 'EIO', FW.INVALID_LEN, 'short')
  assert.is(new DataView(data.buffer).getUint32(64, true), 128)
  expects(w, 'KVM_SEV_SEND_START', struct(72, { ...sendStartFields(w), 'u64@56': UNMAPPED }), 'EFAULT', 0, 'unmapped session')
  // The firmware has begun all the same.
  assert.is(w.vm.guestStatus().state, GUEST_STATE.SENDING)
  expects(w, 'KVM_SEV_SEND_START', struct(72, {}), 'EIO', FW.INVALID_GUEST_STATE, 'query while sending')
})

test('SEND_START: certificates and policy', async () => {
  const pdhBad = encodeCertificate({ x: 5n, y: 7n }, USAGE.PDH, ALGORITHM.ECDH_SHA256)
  const another = encodeCertificate(keyPair(new Uint8Array(56).fill(9)).point, USAGE.PDH, ALGORITHM.ECDH_SHA256)
  const cases: readonly (readonly [string, number, (w: World) => void, number])[] = [
    ['off the curve', 0, (w) => w.buffers.write(0, pdhBad), FW.INVALID_CERTIFICATE],
    ['not a PDH', 0, (w) => w.buffers.write(0, w.buffers.read(0x1000, 2084)), FW.INVALID_CERTIFICATE],
    ['any chain will do', 0, (w) => w.buffers.write(0x1000, new Uint8Array(6252)), FW.SUCCESS],
    ['NOSEND', SEV_POLICY.NOSEND, () => undefined, FW.POLICY_FAILURE],
    ['SEV: a good chain', SEV_POLICY.SEV, () => undefined, FW.SUCCESS],
    ['SEV: a PDH of somebody else', SEV_POLICY.SEV, (w) => w.buffers.write(0, another), FW.BAD_SIGNATURE],
    ['SEV: roots of somebody else', SEV_POLICY.SEV, (w) => w.buffers.write(0x3000 + 2084 + 0x14, Uint8Array.of(1)), FW.BAD_SIGNATURE],
    ['SEV: no chain', SEV_POLICY.SEV, (w) => w.buffers.write(0x1000, new Uint8Array(6252)), FW.INVALID_CERTIFICATE],
    ['DOMAIN: ours', SEV_POLICY.DOMAIN, () => undefined, FW.SUCCESS],
    ['newer firmware wanted', (1 << 16) | (55 << 24), () => undefined, FW.SUCCESS],
  ]
  for (const [where, policy, change, status] of cases) {
    const w = await world('sev', policy >>> 0)
    change(w)
    expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), status === FW.SUCCESS ? 0 : 'EIO', status, where)
  }
  // DOMAIN: another platform has another OCA.
  const [w, other] = [await world('sev', SEV_POLICY.DOMAIN), await openKvm({ memory: 128 << 20, seed: 99n })]
  const { pdh, chain } = other.sevCertificates()
  w.buffers.write(0, pdh)
  w.buffers.write(0x1000, chain)
  expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), 'EIO', FW.POLICY_FAILURE, 'DOMAIN: theirs')
  // NOSEND answers the query too.
  const nosend = await world('sev', SEV_POLICY.NOSEND)
  expects(nosend, 'KVM_SEV_SEND_START', struct(72, {}), 'EIO', FW.POLICY_FAILURE, 'query')
})

test('SEND_UPDATE_DATA: order of checks, lengths, state', async () => {
  const early = await world()
  expects(early, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, packetFields(early)), 'EIO', FW.INVALID_GUEST_STATE, 'running')
  expects(early, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, {}), 'EIO', FW.INVALID_GUEST_STATE, 'query while running')
  const w = await world('sev', 0, 'sending')
  for (const zero of ['u32@8', 'u32@40']) {
    const data = expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, { ...packetFields(w), [zero]: 0 }), 'EIO', FW.INVALID_LEN, zero)
    assert.is(new DataView(data.buffer).getUint32(8, true), 52)
  }
  ladder(w, 'KVM_SEV_SEND_UPDATE_DATA', 48, packetFields(w), [
    ['no packet buffer', { 'u64@32': 0 }, 'EINVAL'],
    ['no guest address', { 'u64@16': 0, 'u64@32': w.buffers.address }, 'EINVAL'],
    ['no guest length', { 'u32@24': 0 }, 'EINVAL'],
    ['no header buffer', { 'u64@0': 0 }, 'EINVAL'],
  ])
  ladder(w, 'KVM_SEV_SEND_UPDATE_DATA', 48, packetFields(w), [
    ['longer than a page', { 'u32@24': 4097 }, 'EINVAL'],
    ['across a page', { 'u64@16': w.memory.address + 16n, 'u32@24': 4096 }, 'EINVAL'],
    ['not mapped', { 'u64@16': UNMAPPED }, 'ENOMEM'],
    ['a header buffer too large to allocate', { 'u32@8': 0x400001 }, 'ENOMEM'],
  ])
  const firmware: readonly (readonly [string, Fields, number])[] = [
    ['short header', { 'u32@8': 51 }, FW.INVALID_LEN],
    ['short packet', { 'u32@40': 4095 }, FW.INVALID_LEN],
    ['not in units', { 'u32@24': 24 }, FW.INVALID_LEN],
    ['not aligned', { 'u64@16': w.memory.address + 8n, 'u32@24': 16 }, FW.INVALID_ADDRESS],
  ]
  for (const [where, change, status] of firmware)
    expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, { ...packetFields(w), ...change }), 'EIO', status, where)
  expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, packetFields(w)), 0, 0, 'good')
  assert.ok(w.buffers.read(0x7000, 4096).some((b) => b !== 0x5a))
  // Never the same packet twice.
  const [first, second] = [w.vm.sendUpdateData(w.memory.address), w.vm.sendUpdateData(w.memory.address)]
  assert.is.not(Buffer.compare(first.data, second.data), 0)
  // The buffers are as long as the caller says, and have to be there.
  expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, { ...packetFields(w), 'u64@32': UNMAPPED }), 'EFAULT', 0, 'packet buffer')
  expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, { ...packetFields(w), 'u64@0': UNMAPPED }), 'EFAULT', 0, 'header buffer')
  expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, { ...packetFields(w), 'u32@40': 0x20000 }), 'EFAULT', 0, 'long packet buffer')
})

test('states of sending: finish, cancel, and what each refuses', async () => {
  const w = await world()
  for (const name of ['SEND_FINISH', 'SEND_CANCEL', 'RECEIVE_FINISH'] as const)
    expects(w, `KVM_SEV_${name}`, null, 'EIO', FW.INVALID_GUEST_STATE, `${name} while running`)
  expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), 0, 0, 'start')
  expects(w, 'KVM_SEV_LAUNCH_FINISH', null, 'EIO', FW.INVALID_GUEST_STATE, 'launch command while sending')
  expects(w, 'KVM_SEV_RECEIVE_FINISH', null, 'EIO', FW.INVALID_GUEST_STATE, 'receive command while sending')
  expects(w, 'KVM_SEV_SEND_CANCEL', null, 0, 0, 'cancel')
  assert.is(w.vm.guestStatus().state, GUEST_STATE.RUNNING)
  expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), 0, 0, 'start')
  expects(w, 'KVM_SEV_SEND_FINISH', null, 0, 0, 'finish')
  assert.is(w.vm.guestStatus().state, GUEST_STATE.SENT)
  expects(w, 'KVM_SEV_SEND_CANCEL', null, 'EIO', FW.INVALID_GUEST_STATE, 'too late')
  expects(w, 'KVM_SEV_SEND_UPDATE_DATA', struct(48, packetFields(w)), 'EIO', FW.INVALID_GUEST_STATE, 'sent')
  expects(w, 'KVM_SEV_SEND_START', struct(72, sendStartFields(w)), 'EIO', FW.INVALID_GUEST_STATE, 'sent')
})

test('RECEIVE_START: order of checks, the session', async () => {
  const w = await world('sev', 0, 'init')
  ladder(w, 'KVM_SEV_RECEIVE_START', 40, receiveStartFields(w), [
    ['no PDH', { 'u64@8': 0 }, 'EINVAL'],
    ['no session', { 'u64@24': 0 }, 'EINVAL'],
    ['no session length', { 'u32@32': 0 }, 'EINVAL'],
  ])
  ladder(w, 'KVM_SEV_RECEIVE_START', 40, receiveStartFields(w), [
    ['PDH too long', { 'u32@16': 0x4001 }, 'EINVAL'],
    ['PDH not mapped', { 'u64@8': UNMAPPED }, 'EFAULT'],
    ['session not mapped', { 'u64@24': UNMAPPED }, 'EFAULT'],
  ])
  expects(w, 'KVM_SEV_RECEIVE_START', struct(40, receiveStartFields(w)), 'EIO', FW.BAD_MEASUREMENT, 'not a session')
  expects(w, 'KVM_SEV_RECEIVE_START', struct(40, { ...receiveStartFields(w), 'u32@32': 127 }), 'EIO', FW.INVALID_LEN, 'short session')
  expects(w, 'KVM_SEV_RECEIVE_START', struct(40, { ...receiveStartFields(w), 'u32@0': 77 }), 'EIO', FW.INVALID_GUEST, 'no such handle')
  expects(w, 'KVM_SEV_RECEIVE_START', struct(40, { ...receiveStartFields(w), 'u32@4': 0xff << 16 }), 'EIO', FW.POLICY_FAILURE, 'newer API')
  assert.is(w.kvm.kernel.psp.guests.size, 0, 'no context is left behind')

  const source = await world('sev', 1)
  const { pdh, chain } = w.kvm.sevCertificates()
  w.buffers.write(0x5000, source.vm.sendStart({ pdh, chain }))
  w.buffers.write(0, source.kvm.sevCertificates().pdh)
  // The policy is bound to the session, the ASID's range to the policy.
  expects(w, 'KVM_SEV_RECEIVE_START', struct(40, { ...receiveStartFields(w), 'u32@4': 0 }), 'EIO', FW.BAD_MEASUREMENT, 'another policy')
  const es = w.kvm.createVm('sev-es')
  es.sevInit()
  const result = es.memoryEncrypt('KVM_SEV_RECEIVE_START', struct(40, { ...receiveStartFields(w), 'u32@4': 1 }))
  assert.equal([result.errno, result.fwError], [-ERRNO.EIO, FW.INVALID_ASID])
  const data = expects(w, 'KVM_SEV_RECEIVE_START', struct(40, { ...receiveStartFields(w), 'u32@4': 1 }), 0, 0, 'good')
  assert.equal(w.vm.guestStatus(), { handle: new DataView(data.buffer).getUint32(0, true), policy: 1, state: GUEST_STATE.RECEIVING })
})

test('RECEIVE_UPDATE_DATA: order of checks, tampered packets', async () => {
  const w = await world('sev', 0, 'receiving')
  ladder(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', 48, packetFields(w), [
    ['no header', { 'u64@0': 0 }, 'EINVAL'],
    ['no guest length', { 'u32@24': 0 }, 'EINVAL'],
    ['no packet length', { 'u32@40': 0 }, 'EINVAL'],
  ])
  ladder(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', 48, packetFields(w), [
    ['across a page', { 'u64@16': w.memory.address + 16n }, 'EINVAL'],
    ['header not mapped', { 'u64@0': UNMAPPED, 'u64@16': w.memory.address }, 'EFAULT'],
    ['packet above 16 KiB', { 'u32@40': 0x4001 }, 'EINVAL'],
    ['guest memory not mapped', { 'u64@16': UNMAPPED }, 'ENOMEM'],
  ])
  const firmware: readonly (readonly [string, Fields, number])[] = [
    ['short header', { 'u32@8': 51 }, FW.INVALID_LEN],
    ['lengths differ', { 'u32@40': 4080 }, FW.INVALID_LEN],
    ['not in units', { 'u32@24': 24, 'u32@40': 24 }, FW.INVALID_LEN],
    ['not aligned', { 'u64@16': w.memory.address + 8n, 'u32@24': 16, 'u32@40': 16 }, FW.INVALID_ADDRESS],
    ['cut short', { 'u32@24': 16, 'u32@40': 16 }, FW.BAD_MEASUREMENT],
  ]
  for (const [where, change, status] of firmware)
    expects(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', struct(48, { ...packetFields(w), ...change }), 'EIO', status, where)
  // Any bit of header or packet counts.
  for (const at of [0x6001, 0x6004, 0x6014, 0x7000, 0x7fff]) {
    const byte = w.buffers.read(at, 1)
    w.buffers.write(
      at,
      byte.map((b) => b ^ 0x10),
    )
    expects(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', struct(48, packetFields(w)), 'EIO', FW.BAD_MEASUREMENT, `0x${at.toString(16)} tampered with`)
    w.buffers.write(at, byte)
  }
  expects(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', struct(48, packetFields(w)), 0, 0, 'good')
  // It is there, encrypted; the policy allows to look.
  const source = w.memory.read(0, 4096)
  assert.ok(source.some((b) => b !== 0x5a))
  w.vm.sevCommand('KVM_SEV_DBG_DECRYPT', struct(24, { 'u64@0': w.memory.address, 'u64@8': w.buffers.address + 0x8000n, 'u32@16': 4096 }))
  assert.equal(w.buffers.read(0x8000, 4096), new Uint8Array(4096).fill(0x5a))
  w.vm.receiveFinish()
  assert.is(w.vm.guestStatus().state, GUEST_STATE.RUNNING)
  expects(w, 'KVM_SEV_RECEIVE_UPDATE_DATA', struct(48, packetFields(w)), 'EIO', FW.INVALID_GUEST_STATE, 'finished')
})

test('handles: a key is shared if both policies allow it', async () => {
  const w = await world()
  const { handle } = w.vm.guestStatus()
  const sibling = (policy: number): { vm: Vm; errno: number; fw: number } => {
    const vm = w.kvm.createVm('sev')
    vm.sevInit()
    const { errno, fwError } = vm.memoryEncrypt('KVM_SEV_LAUNCH_START', struct(40, { 'u32@0': handle, 'u32@4': policy }))
    return { vm, errno, fw: fwError }
  }
  assert.is(sibling(SEV_POLICY.NOKS).fw, FW.POLICY_FAILURE)
  const { vm, errno } = sibling(0)
  assert.is(errno, 0)
  // What the one guest wrote the other can read.
  vm.sevCommand('KVM_SEV_DBG_DECRYPT', struct(24, { 'u64@0': w.memory.address, 'u64@8': w.buffers.address + 0x8000n, 'u32@16': 4096 }))
  assert.equal(w.buffers.read(0x8000, 4096), new Uint8Array(4096).fill(0x5a))
})

test.run()
