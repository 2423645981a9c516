/**
 * KVM_SET_PMU_EVENT_FILTER (arch/x86/kvm/pmu.c kvm_vm_ioctl_set_pmu_event_filter): which events the counters of a guest may count.
 * The modelled host runs with kvm.enable_pmu=0: the filter is checked as Linux does, there is nothing that it would keep out.
 */
import { viewOf } from './dispatch.ts'
import type { VmRow } from './vm-ioctls.ts'
import type { VmFd } from './vm.ts'

/** struct kvm_pmu_event_filter: action, nevents, fixed_counter_bitmap, flags u32, pad, events u64[]. */
const HEADER = 32
const MAX_EVENTS = 300
const MASKED_EVENTS = 1
/** Bits of a masked entry: umask match 15:8 and mask 63:56, exclude 55. */
const MASK_BITS = 0xff80_0000_0000_ff00n
const EVENT = { amd: 0xf_0000_00ffn, intel: 0xffn } as const
const SOURCE = 'arch/x86/kvm/pmu.c kvm_vm_ioctl_set_pmu_event_filter'

function setFilter(vm: VmFd, bytes: Uint8Array): number {
  const { kernel } = vm
  const name = 'KVM_SET_PMU_EVENT_FILTER'
  const view = viewOf(bytes)
  const [action, count, flags] = [view.getUint32(0, true), view.getUint32(4, true), view.getUint32(12, true)]
  if (action > 1) return kernel.refuse('EINVAL', name, `action ${action} (ALLOW 0, DENY 1)`, SOURCE)
  if ((flags & ~MASKED_EVENTS) !== 0) return kernel.refuse('EINVAL', name, `flags 0x${flags.toString(16)}`, SOURCE)
  if (count > MAX_EVENTS) return kernel.refuse('E2BIG', name, `${count} events (at most ${MAX_EVENTS})`, SOURCE)
  if (bytes.length < HEADER + count * 8) return kernel.badPointer(name, 'the events run over the end of the buffer')
  if ((flags & MASKED_EVENTS) === 0) return 0
  const valid = MASK_BITS | EVENT[kernel.options.host]
  for (let i = 0; i < count; i++) {
    const event = view.getBigUint64(HEADER + i * 8, true)
    if ((event & ~valid) !== 0n)
      return kernel.refuse('EINVAL', name, `masked event 0x${event.toString(16)} has bits that do not exist`, `${SOURCE} (is_filter_valid)`)
  }
  return 0
}

const tail = (header: DataView): number => {
  const count = header.getUint32(4, true)
  return HEADER + (count > MAX_EVENTS ? 0 : count * 8)
}

export const pmuFilterHandlers: readonly VmRow[] = [['KVM_SET_PMU_EVENT_FILTER', setFilter, { tail }]]
