/**
 * SNP launch commands: the checks that stand before the firmware (arch/x86/kvm/svm/sev.c
 * snp_launch_start, snp_launch_update, snp_launch_finish, snp_enable_certs). The launch itself is not
 * modelled yet and says so.
 */
import { SEV_COMMAND, VM_TYPE } from '../generated/kvm-abi.ts'
import { SNP_POLICY } from '../generated/psp.ts'
import { viewOf } from './dispatch.ts'
import { refuse, type SevCall } from './sev-commands.ts'

export function snpCommand(call: SevCall): number {
  const { vm, kernel } = call
  const active = vm.type === VM_TYPE.SNP && vm.sevActive
  switch (call.id) {
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_START: {
      if (!active) return refuse(call, 'ENOTTY', 'not an SNP guest', 'snp_launch_start')
      const data = kernel.memory.copyIn(call.data, 64)
      if (data === null) return kernel.badPointer(call.name, 'kvm_sev_cmd.data is not in a mapping')
      const view = viewOf(data)
      const policy = view.getBigUint64(0, true)
      if (view.getUint16(24, true) !== 0) return refuse(call, 'EINVAL', 'flags must be 0', 'snp_launch_start')
      if ((policy & ~SNP_POLICY.MASK) !== 0n)
        return refuse(call, 'EINVAL', `policy 0x${policy.toString(16)} has unsupported bits`, 'snp_launch_start')
      if ((policy & SNP_POLICY.REQUIRED) === 0n) return refuse(call, 'EINVAL', 'policy bit 17 must be set', 'snp_launch_start')
      return kernel.unimplemented(call.name, 'the SNP launch')
    }
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_UPDATE:
      return refuse(call, 'EINVAL', 'not an SNP guest, or no launch context', 'snp_launch_update')
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_FINISH:
      return active
        ? refuse(call, 'EINVAL', 'no launch context', 'snp_launch_finish')
        : refuse(call, 'ENOTTY', 'not an SNP guest', 'snp_launch_finish')
    default:
      if (!active || vm.vcpus.size > 0) return refuse(call, 'EINVAL', 'SNP is not active, or vCPUs exist', 'snp_enable_certs')
      return kernel.unimplemented(call.name, 'KVM_EXIT_SNP_REQ_CERTS')
  }
}
