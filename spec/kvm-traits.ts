/**
 * Three traits of a VM type beyond the protection of its state (seed mail 000; requirements A8), as Linux 7.3 merged them:
 * guest_tsc_protected (arch/x86/kvm/x86.c), has_protected_eoi (x86.c, irq.c), kvm_arch_has_readonly_mem = !has_protected_state.
 * The mail expected them for TDX alone: read-only slots went further. No behaviour here.
 */
import type { PolicyType } from './kvm-policy.ts'

export interface Traits {
  readonly type: PolicyType
  /** KVM_SEV_INIT2 with SECURE_TSC. */
  readonly secureTsc?: boolean
  /** No offset and no scaling: KVM_SET_TSC_KHZ of a vCPU is refused, writes of the offset and of IA32_TSC are lost. */
  readonly tscImmutable: boolean
  /** EOIs are not seen: no IOAPIC in the kernel, no resampling irqfd. */
  readonly eoiUnsupported: boolean
  readonly readonlyUnsupported: boolean
}

const row = (
  type: PolicyType,
  tscImmutable: boolean,
  eoiUnsupported: boolean,
  readonlyUnsupported: boolean,
  secureTsc = false,
): Traits => ({
  type,
  tscImmutable,
  eoiUnsupported,
  readonlyUnsupported,
  secureTsc,
})

export const TRAITS: readonly Traits[] = [
  row('default', false, false, false),
  row('sev-legacy', false, false, false),
  row('sev-es-legacy', false, false, false),
  row('sev', false, false, false),
  row('sev-es', false, false, true),
  row('snp', false, false, true),
  row('snp', true, false, true, true),
  row('tdx', true, true, true),
]
