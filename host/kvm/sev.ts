/** The /dev/sev file descriptor: platform commands (drivers/crypto/ccp/sev-dev.c sev_ioctl). */
import { SEV_ISSUE, SEV_ISSUE_CMD } from '../generated/kvm-abi.ts'
import { FIRMWARE_STATUS as FW, SEV_API, SEV_SIZE } from '../generated/psp.ts'
import { viewOf } from './dispatch.ts'
import type { FileDescriptor, IoctlArgument, Kernel } from './kernel.ts'
import { VmFd } from './vm.ts'

const SEV_DEV = 'drivers/crypto/ccp/sev-dev.c'
/** struct sev_issue_cmd is packed: cmd u32, data u64, error u32. */
const ISSUE_SIZE = 16
/** SNP ABI of the modelled firmware, and its TCB: boot loader 4, SNP 22, microcode 211. */
const SNP_API = { MAJOR: 1, MINOR: 55 } as const
const TCB = 0xd316000000000004n

export class SevFd implements FileDescriptor {
  readonly kind = 'sev'
  readonly kernel: Kernel

  constructor(kernel: Kernel) {
    this.kernel = kernel
  }

  ioctl(request: number, argument: IoctlArgument): number {
    const { kernel } = this
    if (request >>> 0 !== SEV_ISSUE_CMD)
      return kernel.refuse('EINVAL', `0x${request.toString(16)}`, 'only SEV_ISSUE_CMD is known', `${SEV_DEV} sev_ioctl`)
    const bytes =
      argument instanceof Uint8Array ? (argument.length >= ISSUE_SIZE ? argument : null) : kernel.memory.copyIn(argument ?? 0, ISSUE_SIZE)
    if (bytes === null) return kernel.badPointer('SEV_ISSUE_CMD')
    const view = viewOf(bytes)
    const command = view.getUint32(0, true)
    if (command > SEV_ISSUE.SNP_VLEK_LOAD) return kernel.refuse('EINVAL', 'SEV_ISSUE_CMD', `no command ${command}`, `${SEV_DEV} sev_ioctl`)
    const name = Object.entries(SEV_ISSUE).find(([, id]) => id === command)?.[0] ?? 'SEV_ISSUE_CMD'
    const answer = this.#issue(command, name, view.getBigUint64(4, true))
    view.setUint32(12, answer.status, true)
    if (!(argument instanceof Uint8Array) && !kernel.memory.copyOut(argument ?? 0, bytes)) return kernel.badPointer('SEV_ISSUE_CMD')
    if (answer.errno !== 0) return answer.errno
    return answer.status === FW.SUCCESS
      ? 0
      : kernel.refuse('EIO', name, `firmware status 0x${answer.status.toString(16)}`, `${SEV_DEV} __sev_do_cmd_locked`)
  }

  close(): void {
    // The platform outlives its file descriptors.
  }

  #issue(command: number, name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const { psp, memory } = kernel
    const copied = (ok: boolean): { errno: number; status: number } => ({ errno: ok ? 0 : kernel.badPointer(name), status: FW.SUCCESS })
    switch (command) {
      case SEV_ISSUE.SEV_FACTORY_RESET:
      case SEV_ISSUE.SEV_PEK_GEN:
        return { errno: 0, status: psp.generatePek() }
      case SEV_ISSUE.SEV_PDH_GEN:
        return { errno: 0, status: psp.generatePdh() }
      case SEV_ISSUE.SEV_PLATFORM_STATUS:
        return copied(memory.copyOut(data, psp.status()))
      case SEV_ISSUE.SEV_PDH_CERT_EXPORT:
        return this.#exportPdh(name, data)
      case SEV_ISSUE.SEV_GET_ID2:
        return this.#chipId(name, data)
      case SEV_ISSUE.SEV_PEK_CSR:
        return this.#csr(name, data)
      case SEV_ISSUE.SEV_PEK_CERT_IMPORT:
        return this.#importPek(name, data)
      case SEV_ISSUE.SNP_PLATFORM_STATUS:
        return copied(memory.copyOut(data, this.#snpStatus()))
      case SEV_ISSUE.SNP_COMMIT:
        return { errno: 0, status: FW.SUCCESS }
      case SEV_ISSUE.SNP_SET_CONFIG:
        return this.#snpConfig(name, data)
      case SEV_ISSUE.SNP_VLEK_LOAD:
        return this.#loadVlek(name, data)
      default:
        return { errno: kernel.unimplemented(name, name), status: FW.SUCCESS }
    }
  }

  /** pdh address u64, length u32, chain address u64, length u32 (packed). Zero lengths ask for the sizes. */
  #exportPdh(name: string, data: bigint): { errno: number; status: number } {
    const { memory, psp, refuse } = { memory: this.kernel.memory, psp: this.kernel.psp, refuse: this.kernel }
    const input = memory.copyIn(data, 24)
    if (input === null) return { errno: refuse.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    const [pdhAddress, pdhLength, chainAddress, chainLength] = [
      view.getBigUint64(0, true),
      view.getUint32(8, true),
      view.getBigUint64(12, true),
      view.getUint32(20, true),
    ]
    const query = pdhAddress === 0n || pdhLength === 0 || chainAddress === 0n || chainLength === 0
    const chainSize = 3 * SEV_SIZE.CERTIFICATE
    if (!query && (pdhLength > SEV_SIZE.BLOB_MAX || chainLength > SEV_SIZE.BLOB_MAX)) {
      return {
        errno: refuse.refuse('EFAULT', name, `a buffer above ${SEV_SIZE.BLOB_MAX} bytes`, `${SEV_DEV} sev_ioctl_do_pdh_export`),
        status: FW.SUCCESS,
      }
    }
    view.setUint32(8, SEV_SIZE.CERTIFICATE, true)
    view.setUint32(20, chainSize, true)
    if (!memory.copyOut(data, input)) return { errno: refuse.badPointer(name), status: FW.SUCCESS }
    if (query || pdhLength < SEV_SIZE.CERTIFICATE || chainLength < chainSize) return { errno: 0, status: FW.INVALID_LEN }
    const { pdh, chain } = psp.certificates()
    const ok = memory.copyOut(pdhAddress, pdh) && memory.copyOut(chainAddress, chain)
    return { errno: ok ? 0 : refuse.badPointer(name), status: FW.SUCCESS }
  }

  /** address u64, length u32 (packed): the PEK without signatures. */
  #csr(name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const input = kernel.memory.copyIn(data, 12)
    if (input === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    const [address, length] = [view.getBigUint64(0, true), view.getUint32(8, true)]
    if (address !== 0n && length > SEV_SIZE.BLOB_MAX)
      return { errno: kernel.refuse('EFAULT', name, `a buffer of ${length} bytes`, `${SEV_DEV} sev_ioctl_do_pek_csr`), status: FW.SUCCESS }
    const csr = kernel.psp.csr()
    view.setUint32(8, csr.length, true)
    if (!kernel.memory.copyOut(data, input)) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    if (address === 0n || length < csr.length) return { errno: 0, status: FW.INVALID_LEN }
    return { errno: kernel.memory.copyOut(address, csr) ? 0 : kernel.badPointer(name), status: FW.SUCCESS }
  }

  /** PEK address u64, length u32, OCA address u64, length u32 (packed). */
  #importPek(name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const input = kernel.memory.copyIn(data, 24)
    if (input === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    for (const at of [0, 12]) {
      const [address, length] = [view.getBigUint64(at, true), view.getUint32(at + 8, true)]
      if (address === 0n || length === 0 || length > SEV_SIZE.BLOB_MAX)
        return {
          errno: kernel.refuse('EINVAL', name, 'a certificate without address or length', `${SEV_DEV} psp_copy_user_blob`),
          status: FW.SUCCESS,
        }
      if (kernel.memory.copyIn(address, length) === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    }
    if (kernel.psp.guests.size > 0) return { errno: 0, status: FW.INVALID_PLATFORM_STATE }
    return { errno: kernel.unimplemented(name, 'ownership of the platform by another OCA'), status: FW.SUCCESS }
  }

  /** struct sev_user_data_snp_status: version, state, RMP flag, build, masks, guests, TCB versions. */
  #snpStatus(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(32)
    const view = viewOf(bytes)
    const guests = this.kernel.files.filter((file) => file instanceof VmFd && file.sev !== null && file.sev.snp !== null)
    view.setUint8(0, SNP_API.MAJOR)
    view.setUint8(1, SNP_API.MINOR)
    // SNP_INIT was done when the driver loaded.
    view.setUint8(2, 1)
    view.setUint8(3, 1)
    view.setUint32(4, SEV_API.BUILD, true)
    view.setUint32(8, this.kernel.psp.snpConfig.maskChipId ? 1 : 0, true)
    view.setUint32(12, guests.length, true)
    view.setBigUint64(16, TCB, true)
    view.setBigUint64(24, this.kernel.psp.snpConfig.reportedTcb || TCB, true)
    return bytes
  }

  /** struct sev_user_data_snp_config: reported_tcb u64, mask_chip_id, mask_chip_key bits, reserved. */
  #snpConfig(name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const input = kernel.memory.copyIn(data, 64)
    if (input === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    const [tcb, flags] = [view.getBigUint64(0, true), view.getUint32(8, true)]
    if ((flags & ~3) !== 0 || input.subarray(12).some((b) => b !== 0)) return { errno: 0, status: FW.INVALID_PARAM }
    // A reported TCB is never above the committed one, part by part.
    for (let at = 0n; at < 64n; at += 8n) if (((tcb >> at) & 0xffn) > ((TCB >> at) & 0xffn)) return { errno: 0, status: FW.INVALID_PARAM }
    kernel.psp.snpConfig = { reportedTcb: tcb, maskChipId: (flags & 1) !== 0 }
    return { errno: 0, status: FW.SUCCESS }
  }

  /** struct sev_user_data_snp_vlek_load: length u32, version u8, reserved, address u64 of 432 wrapped bytes. */
  #loadVlek(name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const source = `${SEV_DEV} sev_ioctl_do_snp_vlek_load`
    const input = kernel.memory.copyIn(data, 16)
    if (input === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    if (view.getUint32(0, true) !== 16 || view.getUint8(4) !== 0)
      return { errno: kernel.refuse('EINVAL', name, 'len must be 16 and vlek_wrapped_version 0', source), status: FW.SUCCESS }
    if (kernel.memory.copyIn(view.getBigUint64(8, true), 432) === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    return { errno: kernel.unimplemented(name, 'unwrapping of a VLEK'), status: FW.SUCCESS }
  }

  /** address u64, length u32 (packed). */
  #chipId(name: string, data: bigint): { errno: number; status: number } {
    const { kernel } = this
    const input = kernel.memory.copyIn(data, 12)
    if (input === null) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    const view = viewOf(input)
    const id = kernel.psp.chipId()
    const [address, length] = [view.getBigUint64(0, true), view.getUint32(8, true)]
    view.setUint32(8, id.length, true)
    if (!kernel.memory.copyOut(data, input)) return { errno: kernel.badPointer(name), status: FW.SUCCESS }
    if (address === 0n || length < id.length) return { errno: 0, status: FW.INVALID_LEN }
    return { errno: kernel.memory.copyOut(address, id) ? 0 : kernel.badPointer(name), status: FW.SUCCESS }
  }
}
