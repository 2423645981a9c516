/**
 * KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE of a processor without SVM for its guests (kvm_amd nested=0). 7.3 refuses both;
 * 6.12 asks svm_get_nested_state all the same: a guest that is in no nested guest, with GIF set.
 */
import { viewOf } from './dispatch.ts'
import type { VcpuRow } from './vcpu-ioctls.ts'
import type { VcpuFd } from './vcpu.ts'

/** struct kvm_nested_state: flags, format u16, size u32, hdr[120]. */
const HEADER = 128
const FLAG = { GUEST_MODE: 1, RUN_PENDING: 2, EVMCS: 4, GIF_SET: 0x100 } as const
const FORMAT_SVM = 1
const X86 = 'arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl'
const SVM = 'arch/x86/kvm/svm/nested.c svm_set_nested_state'

/** Asked before the caller's memory is touched. */
function off(vcpu: VcpuFd, name: string): number {
  const { linux, host } = vcpu.kernel.options
  if (linux === '6.12' && host === 'amd') return 0
  return vcpu.kernel.refuse('EINVAL', name, 'nested virtualisation is off', X86)
}

function getNested(vcpu: VcpuFd, bytes: Uint8Array): number {
  const name = 'KVM_GET_NESTED_STATE'
  const view = viewOf(bytes)
  if (view.getUint32(4, true) < HEADER) {
    view.setUint32(4, HEADER, true)
    return vcpu.kernel.refuse('E2BIG', name, `${HEADER} bytes are needed`, X86)
  }
  bytes.fill(0, 0, HEADER)
  view.setUint16(0, FLAG.GIF_SET, true)
  view.setUint16(2, FORMAT_SVM, true)
  view.setUint32(4, HEADER, true)
  return 0
}

function setNested(vcpu: VcpuFd, bytes: Uint8Array): number {
  const name = 'KVM_SET_NESTED_STATE'
  const view = viewOf(bytes)
  const flags = view.getUint16(0, true)
  const refuse = (why: string, where = X86): number => vcpu.kernel.refuse('EINVAL', name, why, where)
  if (view.getUint32(4, true) < HEADER) return refuse('the size is below that of the header')
  if ((flags & ~(FLAG.GUEST_MODE | FLAG.RUN_PENDING | FLAG.EVMCS | FLAG.GIF_SET)) !== 0) return refuse(`flags 0x${flags.toString(16)}`)
  if ((flags & (FLAG.RUN_PENDING | FLAG.GUEST_MODE)) === FLAG.RUN_PENDING) return refuse('a pending run without a nested guest')
  if (view.getUint16(2, true) !== FORMAT_SVM) return refuse('not the format of SVM', SVM)
  // EFER.SVME is clear.
  return flags === FLAG.GIF_SET ? 0 : refuse('without EFER.SVME: GIF set and no nested guest', SVM)
}

export const nestedHandlers: readonly VcpuRow[] = [
  ['KVM_GET_NESTED_STATE', getNested, { first: (vcpu: VcpuFd) => off(vcpu, 'KVM_GET_NESTED_STATE') }],
  ['KVM_SET_NESTED_STATE', setNested, { first: (vcpu: VcpuFd) => off(vcpu, 'KVM_SET_NESTED_STATE') }],
]
