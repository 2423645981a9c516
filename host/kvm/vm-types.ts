/** KVM_CAP_VM_TYPES of the modelled host. */
import { VM_TYPE } from '../generated/kvm-abi.ts'
import type { Kernel } from './kernel.ts'

export function supportedVmTypes(kernel: Kernel): number {
  // KVM_X86_SW_PROTECTED_VM: private memory without hardware behind it, for developing (CONFIG_KVM_SW_PROTECTED_VM, TDP).
  const common = (1 << VM_TYPE.DEFAULT) | (1 << VM_TYPE.SW_PROTECTED)
  if (kernel.options.host === 'intel') return kernel.options.linux === '6.12' ? common : common | (1 << VM_TYPE.TDX)
  return common | (1 << VM_TYPE.SEV) | (1 << VM_TYPE.SEV_ES) | (1 << VM_TYPE.SNP)
}
