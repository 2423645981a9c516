/** The table of vCPU requests. */
import type { Kernel } from './kernel.js'
import { type Handler, type HandlerOptions, type IoctlTable, ioctlTable, type RequestName } from './dispatch.js'
import { debugHandlers } from './vcpu-debug.js'
import { eventHandlers } from './vcpu-events.js'
import { fpuHandlers } from './vcpu-fpu.js'
import { miscHandlers } from './vcpu-misc.js'
import { msrHandlers } from './vcpu-msrs.js'
import { registerHandlers } from './vcpu-registers.js'
import type { VcpuFd } from './vcpu.js'

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

export function vcpuTable(kernel: Kernel): IoctlTable<VcpuFd> {
  let table = tables.get(kernel)
  if (table === undefined) {
    table = ioctlTable<VcpuFd>(kernel.policy, [run, ...registerHandlers, ...fpuHandlers, ...debugHandlers, ...msrHandlers, ...eventHandlers, ...miscHandlers])
    tables.set(kernel, table)
  }
  return table
}
