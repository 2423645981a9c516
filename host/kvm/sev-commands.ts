/**
 * KVM_MEMORY_ENCRYPT_OP for SEV and SEV-ES (arch/x86/kvm/svm/sev.c sev_mem_enc_ioctl and the functions
 * it calls), in the kernel's order of checks. The firmware's part is host/firmware/psp.
 */
import type { Guest } from '../firmware/psp/guest.ts'
import { GUEST_STATE, SEV_POLICY, SEV_SIZE, FIRMWARE_STATUS as FW, SEV_FEATURE } from '../generated/psp.ts'
import { SEV_COMMAND, VM_TYPE } from '../generated/kvm-abi.ts'
import { CPU_DR7 } from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import type { ErrnoName, Kernel } from './kernel.ts'
import type { Place } from './mapping.ts'
import { sevDebug } from './sev-debug.ts'
import { receiveStart, receiveUpdateData, sendStart, sendUpdateData } from './sev-migrate.ts'
import { snpCommand } from './sev-snp.ts'
import { activateSev, allocateAsid, SevInfo, sealVcpu, vmsaImage } from './sev-vm.ts'
import { SevFd } from './sev.ts'
import type { VmFd } from './vm.ts'

const SEV_C = 'arch/x86/kvm/svm/sev.c'
const GHCB_VERSION_MAX = 2
/** DR7 without its always-set bit must be 0 (sev_es_sync_vmsa). */
const DR7_FIXED = 0x400n

/** One command in flight: its VM, the data pointer, and where the firmware's status goes. */
export interface SevCall {
  readonly vm: VmFd
  readonly kernel: Kernel
  readonly name: string
  readonly id: number
  readonly data: bigint
  readonly sevFd: number
  /** Firmware status written back into kvm_sev_cmd.error. */
  error: number
}

export function refuse(call: SevCall, code: ErrnoName, reason: string, where: string): number {
  return call.kernel.refuse(code, call.name, reason, `${SEV_C} ${where}`)
}

/** A firmware status: 0, or -EIO with the code for the caller. */
export function firmware(call: SevCall, status: number, where: string): number {
  call.error = status
  if (status === FW.SUCCESS) return 0
  const name = Object.entries(FW).find(([, code]) => code === status)?.[0] ?? 'unknown'
  return refuse(call, 'EIO', `firmware status ${name} (0x${status.toString(16)})`, where)
}

/** sev_issue_cmd: the file descriptor must be /dev/sev. */
export function issues(call: SevCall, fd: number): boolean {
  return call.kernel.file(fd) instanceof SevFd
}

export function badFd(call: SevCall, where: string): number {
  const why = call.vm.sev?.moved
    ? 'KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM does not carry the sev_fd of LAUNCH_START to the destination'
    : 'the stored sev_fd is not an open /dev/sev (it is 0 before LAUNCH_START)'
  return refuse(call, 'EBADF', why, where)
}

/** psp_copy_user_blob. */
export function blob(call: SevCall, address: bigint, length: number, where: string): Uint8Array<ArrayBuffer> | number {
  if (address === 0n || length === 0) return refuse(call, 'EINVAL', 'a blob without address or length', where)
  if (length > SEV_SIZE.BLOB_MAX) return refuse(call, 'EINVAL', `a blob of ${length} bytes (at most ${SEV_SIZE.BLOB_MAX})`, where)
  return call.kernel.memory.copyIn(address, length) ?? call.kernel.badPointer(call.name, 'a blob address is not in a mapping')
}

/** sev_pin_memory: memory that the firmware works on. */
export function pin(call: SevCall, address: bigint, length: number, where: string): Place | number {
  if (length === 0 || address + BigInt(length) > 1n << 64n) return refuse(call, 'EINVAL', 'length 0 or a wrapping range', where)
  const place = call.kernel.memory.find(address, length)
  if (place === null || place.mapping.backing === 0) {
    return refuse(call, 'ENOMEM', 'the range cannot be pinned: not (wholly) inside an anonymous mapping', `${where} (sev_pin_memory)`)
  }
  return place
}

export interface Struct {
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly view: DataView
}

export function struct(call: SevCall, size: number): Struct | null {
  const bytes = call.kernel.memory.copyIn(call.data, size)
  return bytes === null ? null : { bytes, view: viewOf(bytes) }
}

export function fault(call: SevCall): number {
  return call.kernel.badPointer(call.name, 'kvm_sev_cmd.data is not in a mapping')
}

/** KVM_SEV_INIT, KVM_SEV_ES_INIT (sev_guest_init). */
function init(call: SevCall): number {
  const { vm } = call
  if (vm.type !== VM_TYPE.DEFAULT)
    return refuse(call, 'EINVAL', 'only an ordinary VM (type 0) takes the legacy init commands', 'sev_guest_init')
  const es = call.id === SEV_COMMAND.KVM_SEV_ES_INIT
  return guestInit(call, es, 0n, 0, 0, es ? 1 : 0)
}

/** KVM_SEV_INIT2 (sev_guest_init2). */
function init2(call: SevCall): number {
  const { vm } = call
  if (!vm.needInit) return refuse(call, 'EINVAL', 'not a SEV VM type, or initialised already', 'sev_guest_init2')
  const data = struct(call, 48)
  if (data === null) return fault(call)
  const { view } = data
  return guestInit(call, vm.type !== VM_TYPE.SEV, view.getBigUint64(0, true), view.getUint32(8, true), view.getUint16(12, true), null)
}

/** __sev_guest_init. `implied` is the GHCB version of the legacy commands. */
function guestInit(call: SevCall, es: boolean, features: bigint, flags: number, version: number, implied: number | null): number {
  const { vm, kernel } = call
  const where = '__sev_guest_init'
  if (vm.vcpus.size > 0) return refuse(call, 'EINVAL', 'vCPUs exist already', where)
  if (flags !== 0) return refuse(call, 'EINVAL', 'flags must be 0', where)
  const snp = vm.type === VM_TYPE.SNP
  const valid = (es ? SEV_FEATURE.DEBUG_SWAP : 0n) | (snp ? SEV_FEATURE.SECURE_TSC : 0n)
  if ((features & ~valid) !== 0n)
    return refuse(call, 'EINVAL', `vmsa_features 0x${features.toString(16)} are not supported for this VM type`, where)
  if (version > GHCB_VERSION_MAX || (!es && version !== 0) || (snp && version === 1)) {
    return refuse(call, 'EINVAL', `ghcb_version ${version} is not possible for this VM type`, where)
  }
  if (vm.sevActive) return refuse(call, 'EINVAL', 'SEV is active already', where)
  const asid = allocateAsid(kernel, es)
  if (asid === 0) return refuse(call, 'EBUSY', 'no ASID is free', where)
  // sev_platform_init: the firmware is initialised unless it is already.
  if (!kernel.psp.initialised) {
    kernel.psp.initialised = true
    kernel.psp.snp.initialised = true
  }
  const effective = implied ?? (version !== 0 ? version : es ? GHCB_VERSION_MAX : 0)
  activateSev(vm, new SevInfo(asid, es, features | (snp ? SEV_FEATURE.SNP_ACTIVE : 0n), effective))
  return 0
}

/** sev_launch_start. */
function launchStart(call: SevCall): number {
  const where = 'sev_launch_start'
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = struct(call, 40)
  if (data === null) return fault(call)
  const { view } = data
  const dhAddress = view.getBigUint64(8, true)
  const sessionAddress = view.getBigUint64(24, true)
  let dh: Uint8Array | null = null
  let session: Uint8Array | null = null
  if (dhAddress !== 0n) {
    const bytes = blob(call, dhAddress, view.getUint32(16, true), where)
    if (typeof bytes === 'number') return bytes
    dh = bytes
  }
  if (sessionAddress !== 0n) {
    const bytes = blob(call, sessionAddress, view.getUint32(32, true), where)
    if (typeof bytes === 'number') return bytes
    session = bytes
  }
  return start(call, info, data, where, (guest) => guest.launchStart(dh, session))
}

/** The end of LAUNCH_START and RECEIVE_START: a context, bound to the VM's ASID, whose handle and sev_fd KVM keeps. */
export function start(call: SevCall, info: SevInfo, data: Struct, where: string, begin: (guest: Guest) => number): number {
  const { kernel } = call
  const { psp } = kernel
  const { view } = data
  if (!issues(call, call.sevFd)) return refuse(call, 'EBADF', `sev_fd ${call.sevFd} is not /dev/sev`, where)
  if (!psp.initialised) return firmware(call, FW.INVALID_PLATFORM_STATE, where)
  // A handle names a guest to share the key with; both policies have to allow it.
  const handle = view.getUint32(0, true)
  const policy = view.getUint32(4, true)
  const shared = psp.guests.get(handle) ?? null
  if (handle !== 0 && shared === null) return firmware(call, FW.INVALID_GUEST, where)
  if (shared !== null && ((shared.policy | policy) & SEV_POLICY.NOKS) !== 0) return firmware(call, FW.POLICY_FAILURE, where)
  const guest = psp.createGuest(policy, shared)
  let status = begin(guest)
  // sev_bind_asid: ACTIVATE refuses an ASID of the other range, which is how policy and init command that disagree show.
  if (status === FW.SUCCESS) status = psp.activate(guest, info.asid)
  if (status !== FW.SUCCESS) {
    psp.decommission(guest)
    return firmware(call, status, where)
  }
  call.error = FW.SUCCESS
  view.setUint32(0, guest.handle, true)
  if (!kernel.memory.copyOut(call.data, data.bytes)) {
    psp.decommission(guest)
    return fault(call)
  }
  info.guest = guest
  info.fd = call.sevFd
  return 0
}

/** sev_launch_update_data. */
function launchUpdateData(call: SevCall): number {
  const where = 'sev_launch_update_data'
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = struct(call, 16)
  if (data === null) return fault(call)
  const length = data.view.getUint32(8, true)
  const place = pin(call, data.view.getBigUint64(0, true), length, where)
  if (typeof place === 'number') return place
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  return firmware(call, info.guest.launchUpdateData({ backing: place.mapping.backing, offset: place.offset }, length), where)
}

/** sev_launch_update_vmsa: every vCPU in order; those sealed before a failure stay sealed. */
function launchUpdateVmsa(call: SevCall): number {
  const { vm } = call
  const where = '__sev_launch_update_vmsa'
  const info = vm.sev
  if (info === null || !info.es) return refuse(call, 'ENOTTY', 'not a SEV-ES guest', 'sev_launch_update_vmsa')
  for (const vcpu of vm.vcpus.values()) {
    if (vcpu.guestDebug !== 0) return refuse(call, 'EINVAL', `KVM_SET_GUEST_DEBUG is active on vCPU ${vcpu.id}`, where)
    if (vcpu.guestStateProtected) return refuse(call, 'EINVAL', `the state of vCPU ${vcpu.id} is protected already`, where)
    if ((vcpu.cpu.getBigUint64(CPU_DR7, true) & ~DR7_FIXED) !== 0n)
      return refuse(call, 'EINVAL', `vCPU ${vcpu.id} has DR7 set`, 'sev_es_sync_vmsa')
    if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
    const result = firmware(call, info.guest.launchUpdateVmsa(vmsaImage(vcpu)), where)
    if (result < 0) return result
    if (!sealVcpu(vcpu)) return refuse(call, 'ENOMEM', 'no memory left for a VMSA', where)
  }
  return 0
}

/** sev_launch_measure and sev_get_attestation_report share the query protocol: length 0 asks for the length. */
function measured(call: SevCall, size: number, at: number, where: string, make: () => { status: number; data: Uint8Array | null }): number {
  const { kernel } = call
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = struct(call, size)
  if (data === null) return fault(call)
  const { view } = data
  const address = view.getBigUint64(at, true)
  const length = view.getUint32(at + 8, true)
  if (length !== 0 && address !== 0n && length > SEV_SIZE.BLOB_MAX)
    return refuse(call, 'EINVAL', `length ${length} (at most ${SEV_SIZE.BLOB_MAX})`, where)
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  const needed = at === 0 ? SEV_SIZE.MEASUREMENT : SEV_SIZE.ATTESTATION_REPORT
  let result: number
  let out: Uint8Array | null = null
  if (length < needed || address === 0n) {
    result = firmware(call, FW.INVALID_LEN, where)
  } else {
    const made = make()
    // The kernel hands out its whole buffer, which is as long as the caller said.
    if (made.data !== null) {
      out = new Uint8Array(length)
      out.set(made.data)
    }
    result = firmware(call, made.status, where)
  }
  if (length !== 0) {
    if (result < 0) return result
    if (out !== null && !kernel.memory.copyOut(address, out)) result = kernel.badPointer(call.name, 'the buffer is not in a mapping')
  }
  view.setUint32(at + 8, needed, true)
  return kernel.memory.copyOut(call.data, data.bytes) ? result : fault(call)
}

function launchMeasure(call: SevCall): number {
  // The state is the firmware's first check, also of a query.
  const guest = call.vm.sev?.guest
  if (guest && guest.state !== GUEST_STATE.LAUNCH_UPDATE && issues(call, call.vm.sev?.fd ?? 0)) {
    const data = struct(call, 16)
    if (data === null) return fault(call)
    // The kernel looks at the length before it asks the firmware.
    if (data.view.getBigUint64(0, true) === 0n || data.view.getUint32(8, true) <= SEV_SIZE.BLOB_MAX)
      return firmware(call, FW.INVALID_GUEST_STATE, 'sev_launch_measure')
  }
  return measured(
    call,
    16,
    0,
    'sev_launch_measure',
    () => (call.vm.sev as SevInfo).guest?.launchMeasure() ?? { status: FW.INVALID_GUEST, data: null },
  )
}

function attestationReport(call: SevCall): number {
  const nonce = call.kernel.memory.copyIn(call.data, 16) ?? new Uint8Array(16)
  return measured(call, 32, 16, 'sev_get_attestation_report', () => {
    return (call.vm.sev as SevInfo).guest?.attestation(nonce) ?? { status: FW.INVALID_GUEST, data: null }
  })
}

/** sev_launch_secret. */
function launchSecret(call: SevCall): number {
  const where = 'sev_launch_secret'
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = struct(call, 48)
  if (data === null) return fault(call)
  const { view } = data
  const guestLength = view.getUint32(24, true)
  const place = pin(call, view.getBigUint64(16, true), guestLength, where)
  if (typeof place === 'number') return place
  const ciphertext = blob(call, view.getBigUint64(32, true), view.getUint32(40, true), where)
  if (typeof ciphertext === 'number') return ciphertext
  const header = blob(call, view.getBigUint64(0, true), view.getUint32(8, true), where)
  if (typeof header === 'number') return header
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  return firmware(
    call,
    info.guest.launchSecret(header, ciphertext, { backing: place.mapping.backing, offset: place.offset }, guestLength),
    where,
  )
}

/** The commands that are a handle only. */
function finish(call: SevCall, where: string, run: (guest: Guest) => number): number {
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  return firmware(call, run(info.guest), where)
}

function guestStatus(call: SevCall): number {
  const where = 'sev_guest_status'
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  const out = new Uint8Array(12)
  const view = viewOf(out)
  view.setUint32(0, info.guest.handle, true)
  view.setUint32(4, info.guest.policy, true)
  view.setUint32(8, info.guest.state, true)
  return call.kernel.memory.copyOut(call.data, out) ? 0 : fault(call)
}

const COMMANDS: ReadonlyMap<number, (call: SevCall) => number> = new Map([
  [SEV_COMMAND.KVM_SEV_INIT, init],
  [SEV_COMMAND.KVM_SEV_ES_INIT, init],
  [SEV_COMMAND.KVM_SEV_INIT2, init2],
  [SEV_COMMAND.KVM_SEV_LAUNCH_START, launchStart],
  [SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_DATA, launchUpdateData],
  [SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_VMSA, launchUpdateVmsa],
  [SEV_COMMAND.KVM_SEV_LAUNCH_MEASURE, launchMeasure],
  [SEV_COMMAND.KVM_SEV_LAUNCH_SECRET, launchSecret],
  [SEV_COMMAND.KVM_SEV_LAUNCH_FINISH, (call: SevCall) => finish(call, 'sev_launch_finish', (guest) => guest.launchFinish())],
  [SEV_COMMAND.KVM_SEV_GUEST_STATUS, guestStatus],
  [SEV_COMMAND.KVM_SEV_DBG_DECRYPT, (call: SevCall) => sevDebug(call, true)],
  [SEV_COMMAND.KVM_SEV_DBG_ENCRYPT, (call: SevCall) => sevDebug(call, false)],
  [SEV_COMMAND.KVM_SEV_GET_ATTESTATION_REPORT, attestationReport],
  [SEV_COMMAND.KVM_SEV_SEND_START, sendStart],
  [SEV_COMMAND.KVM_SEV_SEND_UPDATE_DATA, sendUpdateData],
  [SEV_COMMAND.KVM_SEV_SEND_FINISH, (call: SevCall) => finish(call, 'sev_send_finish', (guest) => guest.sendFinish())],
  [SEV_COMMAND.KVM_SEV_SEND_CANCEL, (call: SevCall) => finish(call, 'sev_send_cancel', (guest) => guest.sendCancel())],
  [SEV_COMMAND.KVM_SEV_RECEIVE_START, receiveStart],
  [SEV_COMMAND.KVM_SEV_RECEIVE_UPDATE_DATA, receiveUpdateData],
  [SEV_COMMAND.KVM_SEV_RECEIVE_FINISH, (call: SevCall) => finish(call, 'sev_receive_finish', (guest) => guest.receiveFinish())],
  ...(['LAUNCH_START', 'LAUNCH_UPDATE', 'LAUNCH_FINISH', 'ENABLE_REQ_CERTS'] as const).map(
    (name) => [SEV_COMMAND[`KVM_SEV_SNP_${name}`], snpCommand] as const,
  ),
])

const NAMES: ReadonlyMap<number, string> = new Map(Object.entries(SEV_COMMAND).map(([name, id]) => [id, name]))

/** is_cmd_allowed_from_mirror. */
const MIRROR_COMMANDS: ReadonlySet<number> = new Set([
  SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_VMSA,
  SEV_COMMAND.KVM_SEV_GUEST_STATUS,
  SEV_COMMAND.KVM_SEV_DBG_DECRYPT,
  SEV_COMMAND.KVM_SEV_DBG_ENCRYPT,
])

/** sev_mem_enc_ioctl. `bytes` is struct kvm_sev_cmd (empty for a NULL argument). */
export function sevCommand(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  if (bytes.length === 0) return 0
  const view = viewOf(bytes)
  const id = view.getUint32(0, true)
  const call: SevCall = {
    vm,
    kernel,
    id,
    name: NAMES.get(id) ?? `KVM_MEMORY_ENCRYPT_OP id ${id}`,
    data: view.getBigUint64(8, true),
    sevFd: view.getInt32(20, true),
    error: view.getUint32(16, true),
  }
  if (vm.sev?.owner && !MIRROR_COMMANDS.has(id))
    return refuse(call, 'EINVAL', 'a mirror VM does not take this command', 'sev_mem_enc_ioctl')
  if (vm.sev?.snpActive && id < SEV_COMMAND.KVM_SEV_SNP_LAUNCH_START) {
    return refuse(call, 'EPERM', 'an SNP guest takes SNP commands only', 'sev_mem_enc_ioctl')
  }
  const command = COMMANDS.get(id)
  if (command === undefined) return refuse(call, 'EINVAL', 'no such command', 'sev_mem_enc_ioctl')
  const result = command(call)
  view.setUint32(16, call.error, true)
  return result
}
