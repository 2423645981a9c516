/**
 * KVM_SEV_SEND_* and KVM_SEV_RECEIVE_* (arch/x86/kvm/svm/sev.c, 6.12 and 7.3 alike): a SEV guest goes to another platform
 * page by page, under keys that the two firmwares agree on. KVM has no commands for VMSAs (ids 10 and 14 are in the uapi
 * enumeration only), so vCPUs of SEV-ES cannot follow. Struct offsets: uapi asm/kvm.h.
 */
import { FIRMWARE_STATUS as FW, GUEST_STATE, SEV_POLICY, SEV_SIZE } from '../generated/psp.ts'
import type { Place } from './mapping.ts'
import { badFd, blob, fault, firmware, issues, pin, refuse, type SevCall, start, type Struct, struct } from './sev-commands.ts'
import type { SevInfo } from './sev-vm.ts'

const PAGE = 4096
/** KMALLOC_MAX_SIZE: headers and packets above it end in -ENOMEM. */
const KMALLOC_MAX = 4 << 20

/** sev_send_start: policy@0 pdh@8/16 plat_certs@24/32 amd_certs@40/48 session@56/64. */
export function sendStart(call: SevCall): number {
  const where = 'sev_send_start'
  const { memory } = call.kernel
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = struct(call, 72)
  if (data === null) return fault(call)
  const { view } = data
  const length = view.getUint32(64, true)
  if (length === 0) return querySession(call, info, data)
  const address = (at: number): bigint => view.getBigUint64(at, true)
  if (address(8) === 0n || view.getUint32(16, true) === 0 || address(56) === 0n || length > SEV_SIZE.BLOB_MAX)
    return refuse(call, 'EINVAL', 'no PDH certificate, no session buffer, or one above 16 KiB', where)
  const blobs: Uint8Array<ArrayBuffer>[] = []
  for (const at of [8, 24, 40]) {
    const bytes = blob(call, address(at), view.getUint32(at + 8, true), where)
    if (typeof bytes === 'number') return bytes
    blobs.push(bytes)
  }
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  const [pdh, chain, roots] = blobs as [Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>]
  const { status, session } = info.guest.sendStart(pdh, chain, roots, length)
  const result = firmware(call, status, where)
  if (session !== null) {
    // The kernel hands out its whole buffer.
    const out = new Uint8Array(length)
    out.set(session)
    if (!memory.copyOut(address(56), out)) return call.kernel.badPointer(call.name, 'the session buffer is not in a mapping')
  }
  // policy and session_len come back as the firmware left them in its command buffer, which began zeroed.
  view.setUint32(0, session === null ? 0 : info.guest.policy, true)
  if (session !== null || status === FW.INVALID_LEN) view.setUint32(64, SEV_SIZE.SESSION, true)
  return memory.copyOut(call.data, data.bytes) ? result : fault(call)
}

/** __sev_send_start_query_session_length: the firmware refuses an empty command buffer and says what it wants. */
function querySession(call: SevCall, info: SevInfo, data: Struct): number {
  const where = '__sev_send_start_query_session_length'
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  const { guest } = info
  let status: number = FW.INVALID_LEN
  if (guest.state !== GUEST_STATE.RUNNING) status = FW.INVALID_GUEST_STATE
  else if ((guest.policy & SEV_POLICY.NOSEND) !== 0) status = FW.POLICY_FAILURE
  data.view.setUint32(64, status === FW.INVALID_LEN ? SEV_SIZE.SESSION : 0, true)
  const result = firmware(call, status, where)
  return call.kernel.memory.copyOut(call.data, data.bytes) ? result : fault(call)
}

/** Guest memory of a packet: inside one page. */
function piece(call: SevCall, address: bigint): Place | number {
  const start = address & ~BigInt(PAGE - 1)
  const page = pin(call, start, PAGE, 'sev_pin_page')
  return typeof page === 'number' ? page : { mapping: page.mapping, offset: page.offset + Number(address - start) }
}

function crossesPage(address: bigint, length: number): boolean {
  return length > PAGE || length + Number(address & BigInt(PAGE - 1)) > PAGE
}

/** sev_send_update_data: hdr@0/8 guest@16/24 trans@32/40. */
export function sendUpdateData(call: SevCall): number {
  const where = 'sev_send_update_data'
  const { memory } = call.kernel
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = struct(call, 48)
  if (data === null) return fault(call)
  const { view } = data
  const [header, headerLength] = [view.getBigUint64(0, true), view.getUint32(8, true)]
  const [address, length] = [view.getBigUint64(16, true), view.getUint32(24, true)]
  const [trans, transLength] = [view.getBigUint64(32, true), view.getUint32(40, true)]
  if (transLength === 0 || headerLength === 0) {
    // __sev_send_update_data_query_lengths: no guest memory is named, so only the header has a length.
    const query = '__sev_send_update_data_query_lengths'
    if (!issues(call, info.fd) || info.guest === null) return badFd(call, query)
    const sending = info.guest.state === GUEST_STATE.SENDING
    view.setUint32(8, sending ? SEV_SIZE.PACKET_HEADER : 0, true)
    view.setUint32(40, 0, true)
    const result = firmware(call, sending ? FW.INVALID_LEN : FW.INVALID_GUEST_STATE, query)
    return memory.copyOut(call.data, data.bytes) ? result : fault(call)
  }
  if (trans === 0n || address === 0n || length === 0 || header === 0n) return refuse(call, 'EINVAL', 'a zero address or length', where)
  if (crossesPage(address, length)) return refuse(call, 'EINVAL', 'the guest memory crosses a page', where)
  const place = piece(call, address)
  if (typeof place === 'number') return place
  if (headerLength > KMALLOC_MAX || transLength > KMALLOC_MAX)
    return refuse(call, 'ENOMEM', 'a header or packet buffer above what kmalloc gives', where)
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  const { status, packet } = info.guest.sendUpdateData(
    { backing: place.mapping.backing, offset: place.offset },
    length,
    headerLength,
    transLength,
  )
  const result = firmware(call, status, where)
  if (packet === null) return result
  const buffers: (readonly [bigint, number, Uint8Array])[] = [
    [trans, transLength, packet.data],
    [header, headerLength, packet.header],
  ]
  for (const [to, size, bytes] of buffers) {
    const out = new Uint8Array(size)
    out.set(bytes)
    if (!memory.copyOut(to, out)) return call.kernel.badPointer(call.name, 'a header or packet buffer is not in a mapping')
  }
  return result
}

/** sev_receive_start: handle@0 policy@4 pdh@8/16 session@24/32. */
export function receiveStart(call: SevCall): number {
  const where = 'sev_receive_start'
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = struct(call, 40)
  if (data === null) return fault(call)
  const { view } = data
  const [pdhAddress, pdhLength] = [view.getBigUint64(8, true), view.getUint32(16, true)]
  const [sessionAddress, sessionLength] = [view.getBigUint64(24, true), view.getUint32(32, true)]
  if (pdhAddress === 0n || pdhLength === 0 || sessionAddress === 0n || sessionLength === 0)
    return refuse(call, 'EINVAL', 'a zero address or length', where)
  const pdh = blob(call, pdhAddress, pdhLength, where)
  if (typeof pdh === 'number') return pdh
  const session = blob(call, sessionAddress, sessionLength, where)
  if (typeof session === 'number') return session
  return start(call, info, data, where, (guest) => guest.receiveStart(pdh, session))
}

/** sev_receive_update_data: hdr@0/8 guest@16/24 trans@32/40. */
export function receiveUpdateData(call: SevCall): number {
  const where = 'sev_receive_update_data'
  const info = call.vm.sev
  // Alone among its kind.
  if (info === null) return refuse(call, 'EINVAL', 'not a SEV guest', where)
  const data = struct(call, 48)
  if (data === null) return fault(call)
  const { view } = data
  const [header, headerLength] = [view.getBigUint64(0, true), view.getUint32(8, true)]
  const [address, length] = [view.getBigUint64(16, true), view.getUint32(24, true)]
  const [trans, transLength] = [view.getBigUint64(32, true), view.getUint32(40, true)]
  if (header === 0n || headerLength === 0 || address === 0n || length === 0 || trans === 0n || transLength === 0)
    return refuse(call, 'EINVAL', 'a zero address or length', where)
  if (crossesPage(address, length)) return refuse(call, 'EINVAL', 'the guest memory crosses a page', where)
  const headerBytes = blob(call, header, headerLength, where)
  if (typeof headerBytes === 'number') return headerBytes
  const packet = blob(call, trans, transLength, where)
  if (typeof packet === 'number') return packet
  const place = piece(call, address)
  if (typeof place === 'number') return place
  if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
  const memory = { backing: place.mapping.backing, offset: place.offset }
  return firmware(call, info.guest.receiveUpdateData(headerBytes, packet, memory, length), where)
}
