/**
 * KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM and VM_COPY_ENC_CONTEXT_FROM (arch/x86/kvm/svm/sev.c sev_vm_move_enc_context_from,
 * sev_vm_copy_enc_context_from): a guest moves to another VM of this host, or a mirror VM shares its ASID.
 *
 * What Linux 6.12 and 7.3 leave behind is left behind here too. A move carries active, ASID, handle, es_active, vmsa_features,
 * regions and mirrors, and per vCPU of SEV-ES the VMSA and struct vcpu_sev_es_state. It does not carry sev->fd (commands that
 * use the stored one are -EBADF at the destination), ghcb_version (0 from then on), nor does it clear need_init: a VM of type
 * SEV_VM or SEV_ES_VM that was moved into refuses KVM_RUN; an ordinary VM (the legacy init commands) runs. A mirror has
 * neither vmsa_features nor ghcb_version.
 */
import { VM_TYPE } from '../generated/kvm-abi.ts'
import { VKVM_PENDING, VM_SEV } from '../generated/layout.ts'
import { activateSev, initSevVcpu, keepCopies, noteControl, SevInfo } from './sev-vm.ts'
import { shadowFpu } from './vcpu-fpu.ts'
import type { VcpuFd } from './vcpu.ts'
import { VmFd } from './vm.ts'

const SEV_C = 'arch/x86/kvm/svm/sev.c'

/** The VM that the capability's argument names, or the refusal. */
function sourceOf(vm: VmFd, fd: bigint, where: string): VmFd | number {
  const { kernel } = vm
  const source = kernel.file(Number(fd))
  if (!(source instanceof VmFd)) return kernel.refuse('EBADF', 'KVM_ENABLE_CAP', `file descriptor ${fd} is not a VM`, `${SEV_C} ${where}`)
  if (source === vm) return kernel.refuse('EINVAL', 'KVM_ENABLE_CAP', 'source and destination are one VM', `${SEV_C} sev_lock_two_vms`)
  return source
}

export function moveContext(vm: VmFd, fd: bigint): number {
  const where = 'sev_vm_move_enc_context_from'
  const source = sourceOf(vm, fd, where)
  if (typeof source === 'number') return source
  const { kernel } = vm
  const refuse = (reason: string, at = where): number => kernel.refuse('EINVAL', 'KVM_ENABLE_CAP', reason, `${SEV_C} ${at}`)
  if (vm.type !== source.type) return refuse('the two VMs are of different types')
  if (vm.sevActive) return refuse('the destination is a SEV guest already')
  const info = source.sev
  if (!source.sevActive || info === null) return refuse('the source is not a SEV guest')
  if (info.snpActive) return refuse('SNP guests cannot be moved')
  if (info.es) {
    const check = 'sev_check_source_vcpus'
    if (vm.vcpus.size !== source.vcpus.size) return refuse(`${source.vcpus.size} vCPUs at the source, ${vm.vcpus.size} here`, check)
    for (const vcpu of source.vcpus.values())
      if (!vcpu.guestStateProtected) return refuse(`vCPU ${vcpu.id} of the source has no encrypted VMSA yet`, check)
  }
  const moved = new SevInfo(info.asid, info.es, info.vmsaFeatures, 0)
  moved.guest = info.guest
  moved.moved = true
  moved.owner = info.owner
  moved.regions.push(...info.regions)
  const { needInit } = vm
  source.sev = null
  source.sevActive = false
  source.view.setUint32(VM_SEV, 0, true)
  activateSev(vm, moved)
  vm.needInit = needInit
  vm.gated ||= needInit
  // Mirrors of the source are mirrors of the target now; a mirror that moves stays one of its owner.
  for (const mirror of info.mirrors) {
    if (mirror.sev !== null) mirror.sev.owner = vm
    moved.mirrors.add(mirror)
    vm.retain()
    source.release()
  }
  info.mirrors.clear()
  const siblings = moved.owner?.sev?.mirrors
  if (siblings?.delete(source)) siblings.add(vm)
  const targets = [...vm.vcpus.values()]
  for (const vcpu of targets) initSevVcpu(vcpu)
  if (moved.es) [...source.vcpus.values()].forEach((vcpu, i) => moveVcpu(vcpu, targets[i] as VcpuFd))
  source.kill('its encryption context was moved to another VM (KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM)')
  return 0
}

export function copyContext(vm: VmFd, fd: bigint): number {
  const where = 'sev_vm_copy_enc_context_from'
  const source = sourceOf(vm, fd, where)
  if (typeof source === 'number') return source
  const { kernel } = vm
  const refuse = (reason: string): number => kernel.refuse('EINVAL', 'KVM_ENABLE_CAP', reason, `${SEV_C} ${where}`)
  if (vm.sevActive) return refuse('the mirror is a SEV guest already')
  const info = source.sev
  if (!source.sevActive || info === null) return refuse('the source is not a SEV guest')
  if (info.owner !== null) return refuse('the source is a mirror itself')
  if (info.snpActive) return refuse('SNP guests have no mirrors')
  if (vm.vcpus.size > 0) return refuse('the mirror has vCPUs already')
  const mirror = new SevInfo(info.asid, info.es, 0n, 0)
  mirror.guest = info.guest
  mirror.fd = info.fd
  mirror.owner = source
  // The owner's ASID must live as long as the mirror does.
  source.retain()
  info.mirrors.add(vm)
  activateSev(vm, mirror)
  return 0
}

/** sev_migrate_from, per vCPU: the VMSA changes hands; what KVM shows of registers is the destination's own. */
function moveVcpu(from: VcpuFd, to: VcpuFd): void {
  const { call } = to.kernel.core
  // An exit that userspace has answered is completed; what is left of it has nobody to complete it.
  if (from.kvm.getUint32(VKVM_PENDING, true) !== 0) call.vcpuRun(from.s, 0n)
  from.kvm.setUint32(VKVM_PENDING, 0, true)
  if (to.vm.type === VM_TYPE.DEFAULT) keepCopies(to)
  shadowFpu(to)
  noteControl(to, () => call.vmsaMove(from.s, to.s))
  from.guestStateProtected = false
  // fpstate_is_confidential stays as it was on both sides.
  to.guestStateProtected = true
}
