/** KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST on x86 (Linux 7.x arch/x86/kvm/x86.c kvm_get_set_one_reg): MSRs by id. */
import { REQUEST } from '../generated/kvm-abi.ts'
import { UNKNOWN_IOCTL, viewOf } from './dispatch.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

/** KVM_REG_X86 | KVM_REG_SIZE_U64; bits 39:32 are the type. */
const X86_U64 = 0x2030_0000_0000_0000n
const TYPE_MSR = 2n

/** struct kvm_one_reg: id, addr u64. */
function oneReg(vcpu: VcpuFd, name: 'KVM_GET_ONE_REG' | 'KVM_SET_ONE_REG', bytes: Uint8Array): number {
  const { kernel } = vcpu
  const view = viewOf(bytes)
  const id = view.getBigUint64(0, true)
  const address = view.getBigUint64(8, true)
  const refuse = (reason: string): number => kernel.refuse('EINVAL', name, reason, 'arch/x86/kvm/x86.c kvm_get_set_one_reg')
  if (id >> 40n !== X86_U64 >> 40n || ((id >> 32n) & 0xffn) !== TYPE_MSR) return refuse(`register id 0x${id.toString(16)} is unknown`)
  const msrs = new Uint8Array(8 + 16)
  const io = viewOf(msrs)
  io.setUint32(0, 1, true)
  io.setUint32(8, Number(id & 0xffffffffn), true)
  const get = name === 'KVM_GET_ONE_REG'
  if (!get) {
    const value = kernel.memory.copyIn(address, 8)
    if (value === null) return kernel.badPointer(name)
    msrs.set(value, 16)
  }
  if (vcpu.ioctl(get ? REQUEST.KVM_GET_MSRS : REQUEST.KVM_SET_MSRS, msrs) !== 1)
    return refuse(`MSR 0x${(id & 0xffffffffn).toString(16)} is not accessible`)
  if (get && !kernel.memory.copyOut(address, msrs.subarray(16, 24))) return kernel.badPointer(name)
  return 0
}

/** kvm_get_reg_list: the one register of this kind is the shadow stack pointer, and no shadow stacks are offered. */
function regList(vcpu: VcpuFd, bytes: Uint8Array): number {
  if (vcpu.kernel.options.linux === '6.12')
    return vcpu.kernel.refuse('EINVAL', 'KVM_GET_REG_LIST', 'no such request on x86 before 6.18', UNKNOWN_IOCTL)
  viewOf(bytes).setBigUint64(0, 0n, true)
  return 0
}

export const oneRegHandlers: readonly VcpuRow[] = [
  ['KVM_GET_REG_LIST', regList],
  ['KVM_GET_ONE_REG', (vcpu, bytes) => oneReg(vcpu, 'KVM_GET_ONE_REG', bytes)],
  ['KVM_SET_ONE_REG', (vcpu, bytes) => oneReg(vcpu, 'KVM_SET_ONE_REG', bytes)],
]
