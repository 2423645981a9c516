/** The table of vCPU requests. */
import type { Kernel } from './kernel.ts'
import { type Handler, type HandlerOptions, type IoctlTable, ioctlTable, type RequestName } from './dispatch.ts'
import { debugHandlers } from './vcpu-debug.ts'
import { eventHandlers } from './vcpu-events.ts'
import { fpuHandlers } from './vcpu-fpu.ts'
import { miscHandlers } from './vcpu-misc.ts'
import { oneRegHandlers } from './one-reg.ts'
import { StatsFd, vcpuStatistics } from './stats.ts'
import { msrHandlers } from './vcpu-msrs.ts'
import { nestedHandlers } from './vcpu-nested.ts'
import { pvHandlers } from './vcpu-pv.ts'
import { registerHandlers } from './vcpu-registers.ts'
import type { VcpuFd } from './vcpu.ts'

export type VcpuRow = readonly [name: RequestName, handler: Handler<VcpuFd>, options?: HandlerOptions]

const tables = new WeakMap<Kernel, IoctlTable<VcpuFd>>()

/** KVM_RUN takes no argument and no budget: it returns on an exit, `immediate_exit` or a kick. */
const run: VcpuRow = [
  'KVM_RUN',
  (vcpu, _bytes, value) => {
    if (value !== 0) return vcpu.kernel.refuse('EINVAL', 'KVM_RUN', 'the argument must be 0', 'virt/kvm/kvm_main.c kvm_vcpu_ioctl')
    return vcpu.run(Number.POSITIVE_INFINITY)
  },
]

const statsFd: VcpuRow = [
  'KVM_GET_STATS_FD',
  (vcpu) => vcpu.kernel.install(new StatsFd(vcpu.kernel, `kvm-1/vcpu-${vcpu.id}`, vcpuStatistics(vcpu))),
]

export function vcpuTable(kernel: Kernel): IoctlTable<VcpuFd> {
  let table = tables.get(kernel)
  if (table === undefined) {
    table = ioctlTable<VcpuFd>(kernel.policy, [
      run,
      ...registerHandlers,
      ...fpuHandlers,
      ...debugHandlers,
      ...msrHandlers,
      ...eventHandlers,
      ...miscHandlers,
      ...pvHandlers,
      ...nestedHandlers,
      ...oneRegHandlers,
      statsFd,
    ])
    tables.set(kernel, table)
  }
  return table
}
