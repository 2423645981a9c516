/**
 * KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM and VM_COPY_ENC_CONTEXT_FROM (arch/x86/kvm/svm/sev.c sev_vm_move_enc_context_from,
 * sev_vm_copy_enc_context_from): a guest moves to another VM of this host, or a mirror VM shares its ASID.
 */
import { VM_TYPE } from '../generated/kvm-abi.ts'
import { CPU_ID, CPU_INDEX, CPU_TIME_BASE, CPU_VM, VKVM_PROTECTED, VKVM_VMSA_FRAME, VM_SEV } from '../generated/layout.ts'
import { activateSev, initSevVcpu, SevInfo } from './sev-vm.ts'
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
  if (source.type === VM_TYPE.SNP) return refuse('SNP guests cannot be moved')
  if (info.es) {
    const check = 'sev_check_source_vcpus'
    if (vm.vcpus.size !== source.vcpus.size) return refuse(`${source.vcpus.size} vCPUs at the source, ${vm.vcpus.size} here`, check)
    for (const vcpu of source.vcpus.values())
      if (!vcpu.guestStateProtected) return refuse(`vCPU ${vcpu.id} of the source has no encrypted VMSA yet`, check)
  }
  source.sev = null
  source.sevActive = false
  source.view.setUint32(VM_SEV, 0, true)
  activateSev(vm, info)
  const targets = [...vm.vcpus.values()]
  for (const vcpu of targets) initSevVcpu(vcpu)
  if (info.es) [...source.vcpus.values()].forEach((vcpu, i) => moveVcpu(vcpu, targets[i] as VcpuFd))
  // Mirrors of the source are mirrors of the target now.
  for (const file of kernel.files) {
    if (!(file instanceof VmFd) || file.sev?.owner !== source) continue
    file.sev.owner = vm
    vm.retain()
    source.release()
  }
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
  if (source.type === VM_TYPE.SNP || vm.type === VM_TYPE.SNP) return refuse('SNP guests have no mirrors')
  if (vm.vcpus.size > 0) return refuse('the mirror has vCPUs already')
  const mirror = new SevInfo(info.asid, info.es, info.vmsaFeatures, info.ghcbVersion)
  mirror.guest = info.guest
  mirror.fd = info.fd
  mirror.owner = source
  // The owner's ASID must live as long as the mirror does.
  source.retain()
  activateSev(vm, mirror)
  return 0
}

/** sev_migrate_from: the VMSA changes hands; the emulator's state behind it goes along. */
function moveVcpu(from: VcpuFd, to: VcpuFd): void {
  const keep = [CPU_VM, CPU_ID, CPU_INDEX].map((field) => [field, to.cpu.getUint32(field, true)] as const)
  const bytes = (view: DataView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
  const base = to.cpu.getBigUint64(CPU_TIME_BASE, true)
  bytes(to.cpu).set(bytes(from.cpu))
  bytes(to.kvm).set(bytes(from.kvm))
  for (const [field, value] of keep) to.cpu.setUint32(field, value, true)
  to.cpu.setBigUint64(CPU_TIME_BASE, base, true)
  from.kvm.setUint32(VKVM_VMSA_FRAME, 0, true)
  from.kvm.setUint32(VKVM_PROTECTED, 0, true)
  to.guestStateProtected = true
  to.fpstateConfidential = true
  for (const [field, value] of from.sealedControl) to.sealedControl.set(field, value)
  to.sealed = from.sealed
  to.kernel.core.call.cpuModeChanged(to.s)
}
