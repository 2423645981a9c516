/**
 * SNP launch commands (arch/x86/kvm/svm/sev.c snp_launch_start, snp_launch_update, snp_launch_finish, snp_enable_certs) as
 * a state machine with the kernel's checks; digest and ID block are the firmware's (firmware/psp/snp-guest). There is no RMP
 * yet: page contents are not encrypted into the guest, and running a finished one says so by name (snpRunRefusal). Owns SnpInfo.
 */
import { SnpGuest } from '../firmware/psp/snp-guest.ts'
import { FIRMWARE_STATUS as FW, SNP_ID, SNP_PAGE, SNP_POLICY } from '../generated/psp.ts'
import { SEV_COMMAND } from '../generated/kvm-abi.ts'
import { CPU_DR7 } from '../generated/layout.ts'
import { viewOf } from './dispatch.ts'
import { gmemRefusal } from './gmem.ts'
import { badFd, blob, firmware, issues, refuse, type SevCall } from './sev-commands.ts'
import { sealVcpu, type SevInfo, vmsaImage } from './sev-vm.ts'
import type { VcpuFd } from './vcpu.ts'

const PAGE_TYPES: ReadonlySet<number> = new Set([SNP_PAGE.NORMAL, SNP_PAGE.ZERO, SNP_PAGE.UNMEASURED, SNP_PAGE.SECRETS, SNP_PAGE.CPUID])
const DR7_FIXED = 0x400n
/** INITIAL_VMSA_GPA. */
const VMSA_GPA = 0xffff_ffff_f000n

/** A guest context of SNP_GCTX_CREATE. */
export class SnpInfo {
  readonly guest: SnpGuest
  /** Pages that belong to the guest (RMP assigned). */
  readonly pages = new Set<bigint>()

  constructor(guest: SnpGuest) {
    this.guest = guest
  }
}

export function snpCommand(call: SevCall): number {
  const { vm } = call
  const info = vm.sev?.snpActive ? vm.sev : null
  switch (call.id) {
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_START:
      return info === null ? refuse(call, 'ENOTTY', 'not an SNP guest', 'snp_launch_start') : launchStart(call, info)
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_UPDATE:
      return info === null || info.snp === null
        ? refuse(call, 'EINVAL', 'not an SNP guest, or no launch context', 'snp_launch_update')
        : launchUpdate(call, info, info.snp)
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_FINISH:
      if (info === null) return refuse(call, 'ENOTTY', 'not an SNP guest', 'snp_launch_finish')
      return info.snp === null ? refuse(call, 'EINVAL', 'no launch context', 'snp_launch_finish') : launchFinish(call, info, info.snp)
    default:
      if (info === null || vm.vcpus.size > 0) return refuse(call, 'EINVAL', 'SNP is not active, or vCPUs exist', 'snp_enable_certs')
      info.requestCerts = true
      return 0
  }
}

/** struct kvm_sev_snp_launch_start: policy u64, gosvw[16], flags u16, pad. */
function launchStart(call: SevCall, info: SevInfo): number {
  const where = 'snp_launch_start'
  const data = call.kernel.memory.copyIn(call.data, 64)
  if (data === null) return fault(call)
  const view = viewOf(data)
  const policy = view.getBigUint64(0, true)
  if (info.snp !== null) return refuse(call, 'EINVAL', 'there is a launch context already', where)
  if (view.getUint16(24, true) !== 0) return refuse(call, 'EINVAL', 'flags must be 0', where)
  const old = call.kernel.options.linux === '6.12'
  if ((policy & ~(old ? SNP_POLICY.MASK_6_12 : SNP_POLICY.MASK)) !== 0n)
    return refuse(call, 'EINVAL', `policy 0x${policy.toString(16)} has unsupported bits`, where)
  if ((policy & SNP_POLICY.REQUIRED) === 0n) return refuse(call, 'EINVAL', 'policy bit 17 must be set', where)
  if (old && (policy & SNP_POLICY.SMT) === 0n) return refuse(call, 'EINVAL', 'this kernel wants policy bit 16 (SMT allowed)', where)
  if (old && (policy & SNP_POLICY.SINGLE_SOCKET) !== 0n) return refuse(call, 'EINVAL', 'this kernel refuses policy bit 20', where)
  // snp_context_create hides its errno.
  if (!issues(call, call.sevFd))
    return refuse(call, 'ENOTTY', `no guest context: sev_fd ${call.sevFd} is not /dev/sev`, 'snp_context_create')
  if (!call.kernel.psp.snp.initialised) {
    call.error = FW.INVALID_PLATFORM_STATE
    return refuse(call, 'ENOTTY', 'no guest context: SNP is not initialised', 'snp_context_create')
  }
  const guest = new SnpGuest(policy)
  const result = firmware(call, guest.start(), where)
  if (result < 0) return result
  info.snp = new SnpInfo(guest)
  info.fd = call.sevFd
  return 0
}

/** struct kvm_sev_snp_launch_update: gfn_start, uaddr, len u64, type u8, pad, flags u16; advanced by what was done. */
function launchUpdate(call: SevCall, info: SevInfo, snp: SnpInfo): number {
  const where = 'snp_launch_update'
  const { vm } = call
  const { memory } = call.kernel
  const data = memory.copyIn(call.data, 64)
  if (data === null) return fault(call)
  const view = viewOf(data)
  const [gfn, address, length] = [view.getBigUint64(0, true), view.getBigUint64(8, true), view.getBigUint64(16, true)]
  const type = view.getUint8(24)
  const flags = view.getUint16(26, true)
  if (length === 0n || (length & 0xfffn) !== 0n || flags !== 0 || !PAGE_TYPES.has(type))
    return refuse(call, 'EINVAL', 'length 0 or not in pages, flags, or a page type that does not exist', where)
  if (type !== SNP_PAGE.ZERO && (address === 0n || (address & 0xfffn) !== 0n))
    return refuse(call, 'EINVAL', 'uaddr must be page aligned', where)
  const gpa = BigInt.asUintN(64, gfn << 12n)
  const slot = [...vm.slots.values()].find((s) => gpa >= s.gpa && gpa < s.gpa + s.size)
  if (slot === undefined || (slot.flags & 4) === 0) return refuse(call, 'EINVAL', 'no slot with guest_memfd there', where)
  const populate = `${where} (kvm_gmem_populate, sev_gmem_post_populate)`
  const { error } = call
  let status: number = FW.SUCCESS
  let failed = 0
  let done = 0n
  for (; done < length && gpa + done < slot.gpa + slot.size; done += 4096n) {
    const at = gpa + done
    const page = type === SNP_PAGE.ZERO ? null : memory.copyIn(address + done, 4096)
    const why =
      type !== SNP_PAGE.ZERO && page === null
        ? 'the source page is not in a mapping'
        : (gmemRefusal(vm, at) ??
          (snp.pages.has(at) ? `the page at 0x${at.toString(16)} is assigned already` : null) ??
          (issues(call, call.sevFd) ? null : `sev_fd ${call.sevFd} is not /dev/sev`))
    if (why !== null) failed = refuse(call, 'EIO', why, populate)
    else {
      status = snp.guest.update(type, at, page)
      failed = firmware(call, status, populate)
      // The firmware's corrected page goes back to where it came from.
      if (type === SNP_PAGE.CPUID && status === FW.INVALID_PARAM && page !== null) memory.copyOut(address + done, page)
    }
    if (failed !== 0) break
    snp.pages.add(at)
  }
  if (done === 0n) {
    // Every failure of the first page is -EIO with the firmware's status, 0 if it was not asked.
    call.error = status
    return failed
  }
  call.error = error
  view.setBigUint64(0, gfn + (done >> 12n), true)
  view.setBigUint64(16, length - done, true)
  if (type !== SNP_PAGE.ZERO) view.setBigUint64(8, address + done, true)
  return memory.copyOut(call.data, data) ? 0 : fault(call)
}

/** struct kvm_sev_snp_launch_finish: id_block, id_auth u64, id_block_en, auth_key_en, vcek_disabled u8, host_data[32], flags. */
function launchFinish(call: SevCall, info: SevInfo, snp: SnpInfo): number {
  const where = 'snp_launch_finish'
  const data = call.kernel.memory.copyIn(call.data, 88)
  if (data === null) return fault(call)
  const view = viewOf(data)
  if (view.getUint16(54, true) !== 0) return refuse(call, 'EINVAL', 'flags must be 0', where)
  for (const vcpu of call.vm.vcpus.values()) {
    const refused = measureVcpu(call, snp, vcpu)
    if (refused < 0) return refused
  }
  let idBlock: Uint8Array | null = null
  let idAuth: Uint8Array | null = null
  if (view.getUint8(16) !== 0) {
    const block = blob(call, view.getBigUint64(0, true), SNP_ID.BLOCK_SIZE, where)
    if (typeof block === 'number') return block
    const auth = blob(call, view.getBigUint64(8, true), SNP_ID.AUTH_SIZE, where)
    if (typeof auth === 'number') return auth
    idBlock = block
    idAuth = auth
  }
  if (!issues(call, info.fd)) return badFd(call, where)
  const status = snp.guest.finish({
    idBlock,
    idAuth,
    authorKey: idBlock !== null && view.getUint8(17) !== 0,
    vcekDisabled: view.getUint8(18) !== 0,
    hostData: data.slice(19, 51),
  })
  if (status === FW.SUCCESS) call.vm.preFaultAllowed = true
  return firmware(call, status, where)
}

/** snp_launch_update_vmsa of one vCPU: measured and sealed. */
function measureVcpu(call: SevCall, snp: SnpInfo, vcpu: VcpuFd): number {
  const sync = 'sev_es_sync_vmsa'
  const where = 'snp_launch_update_vmsa'
  if (vcpu.guestStateProtected) return refuse(call, 'EINVAL', `vCPU ${vcpu.id} is protected already`, sync)
  if (vcpu.guestDebug !== 0) return refuse(call, 'EINVAL', `vCPU ${vcpu.id} is being debugged (KVM_SET_GUEST_DEBUG)`, sync)
  if ((vcpu.cpu.getBigUint64(CPU_DR7, true) & ~DR7_FIXED) !== 0n) return refuse(call, 'EINVAL', `vCPU ${vcpu.id} has DR7 set`, sync)
  // Not the stored descriptor: the command's own.
  if (!issues(call, call.sevFd)) return refuse(call, 'EBADF', `sev_fd ${call.sevFd} is not /dev/sev`, where)
  const result = firmware(call, snp.guest.update(SNP_PAGE.VMSA, VMSA_GPA, vmsaImage(vcpu)), where)
  if (result < 0) return result
  return sealVcpu(vcpu, false) ? 0 : refuse(call, 'ENOMEM', 'no memory left for a VMSA', where)
}

function fault(call: SevCall): number {
  return call.kernel.badPointer(call.name, 'kvm_sev_cmd.data is not in a mapping')
}

/** A sealed SNP vCPU would enter the guest: that needs the RMP. 0 = go on (an unsealed one fails its VMRUN). */
export function snpRunRefusal(vcpu: VcpuFd): number {
  return vcpu.guestStateProtected && vcpu.vm.sev?.snp !== null
    ? vcpu.kernel.unimplemented('KVM_RUN', 'running an SNP guest: RMP and private memory')
    : 0
}
