/**
 * KVM_SEV_DBG_DECRYPT and DBG_ENCRYPT (arch/x86/kvm/svm/sev.c sev_dbg_crypt): the firmware works on
 * 16-byte units inside one page; the kernel widens and reads back what does not fit.
 */
import { FIRMWARE_STATUS as FW } from '../generated/psp.ts'
import { viewOf } from './dispatch.ts'
import { badFd, firmware, issues, pin, refuse, type SevCall } from './sev-commands.ts'

const PAGE = 4096n

export function sevDebug(call: SevCall, decrypt: boolean): number {
  const where = 'sev_dbg_crypt'
  const { kernel } = call
  const info = call.vm.sev
  if (info === null) return refuse(call, 'ENOTTY', 'not a SEV guest', where)
  const data = kernel.memory.copyIn(call.data, 24)
  if (data === null) return kernel.badPointer(call.name, 'kvm_sev_cmd.data is not in a mapping')
  const view = viewOf(data)
  let source = view.getBigUint64(0, true)
  let target = view.getBigUint64(8, true)
  let left = view.getUint32(16, true)
  if (left === 0 || source + BigInt(left) > 1n << 64n || target === 0n || source === 0n) {
    return refuse(call, 'EINVAL', 'a zero field or a wrapping range', where)
  }
  while (left > 0) {
    // Up to the nearer page end of the two.
    const room = (address: bigint): number => Number(PAGE - (address & (PAGE - 1n)))
    const n = Math.min(left, room(source), room(target))
    const from = pin(call, source, n, where)
    if (typeof from === 'number') return from
    const to = pin(call, target, n, where)
    if (typeof to === 'number') return to
    if (!issues(call, info.fd) || info.guest === null) return badFd(call, where)
    // The guest's side, widened to 16-byte units.
    const place = decrypt ? from : to
    const start = place.offset & ~15
    const units = new Uint8Array(((place.offset + n + 15) & ~15) - start)
    const memory = { backing: place.mapping.backing, offset: start }
    const inner = place.offset - start
    if (decrypt) {
      const status = info.guest.debugDecrypt(memory, units)
      if (status !== FW.SUCCESS) return firmware(call, status, where)
      if (!to.mapping.writeFrom(to.offset, units.subarray(inner, inner + n))) return kernel.badPointer(call.name)
    } else {
      const status = units.length === n ? FW.SUCCESS : info.guest.debugDecrypt(memory, units)
      if (status !== FW.SUCCESS) return firmware(call, status, where)
      if (!from.mapping.readInto(from.offset, units.subarray(inner, inner + n))) return kernel.badPointer(call.name)
      const written = info.guest.debugEncrypt(memory, units)
      if (written !== FW.SUCCESS) return firmware(call, written, where)
    }
    source += BigInt(n)
    target += BigInt(n)
    left -= n
  }
  return 0
}
