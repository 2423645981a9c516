/** In-kernel interrupt controllers and timers. Register formats: Intel 8259A, 82093AA, 8254 data sheets; APM vol 2 chapter 16. */
import { struct } from './struct.ts'

export const lapic = struct('LAPIC', 'Local APIC, at s + VCPU_LAPIC: the register page as kvm_lapic_state, then timer state', [
  ['REGS', 'u32', 'registers at their xAPIC offsets', 256],
  ['TIMER_DEADLINE', 'u64', 'virtual ns, all ones = not running', 1, 0x400],
  ['TIMER_START', 'u64', 'virtual ns at which the count was (re)loaded'],
  ['TSC_DEADLINE', 'u64', 'IA32_TSC_DEADLINE'],
  ['PERIOD', 'u64', 'initial count in ns'],
  ['PRESENT', 'u32', '1: this vCPU has an in-kernel local APIC'],
  ['ESR_NEW', 'u32', 'errors since the last ESR write'],
  ['LVT_CHANGED', 'u32', ''], ['EOI_BROADCASTS', 'u32', ''],
  ['LAST_VECTOR', 'u32', 'last vector accepted'], ['ARBITRATION', 'u32', 'lowest-priority round robin'],
], 0x1000)

export const pic = struct('PIC', 'One 8259A', [
  ['LAST_IRR', 'u8', 'edge detection'], ['IRR', 'u8', ''], ['IMR', 'u8', ''], ['ISR', 'u8', ''],
  ['PRIORITY_ADD', 'u8', 'highest irq priority'], ['IRQ_BASE', 'u8', ''], ['READ_REG_SELECT', 'u8', ''], ['POLL', 'u8', ''],
  ['SPECIAL_MASK', 'u8', ''], ['INIT_STATE', 'u8', ''], ['AUTO_EOI', 'u8', ''], ['ROTATE_ON_AUTO_EOI', 'u8', ''],
  ['SPECIAL_FULLY_NESTED', 'u8', ''], ['INIT4', 'u8', '4-byte initialisation'], ['ELCR', 'u8', 'trigger mode'], ['ELCR_MASK', 'u8', ''],
], 16)

export const pit = struct('PIT', 'One 8254 channel', [
  ['COUNT', 'u32', 'reload value, 1..0x10000'], ['LATCHED_COUNT', 'u16', ''], ['COUNT_LATCHED', 'u8', '0, or the RW state to read'], ['STATUS_LATCHED', 'u8', ''],
  ['STATUS', 'u8', ''], ['READ_STATE', 'u8', ''], ['WRITE_STATE', 'u8', ''], ['WRITE_LATCH', 'u8', ''],
  ['RW_MODE', 'u8', ''], ['MODE', 'u8', ''], ['BCD', 'u8', ''], ['GATE', 'u8', ''],
  ['COUNT_LOAD_TIME', 'u64', 'virtual ns'],
], 32)

/** KVM_STATE of a VM: one 4 KiB frame of devices, then the routing table. */
export const chip = struct('CHIP', 'In-kernel devices of one VM', [
  ['PICS', 'u8', 'master and slave', 32], ['PIC_OUTPUT', 'u32', 'INTR of the master'], ['PIC_PRESENT', 'u32', ''], ['PIC_LINES', 'u32', 'input levels 0..15'],
  ['PIT_PRESENT', 'u32', ''],
  ['PIT', 'u64', 'three channels, 32 bytes each', 12, 0x40], ['PIT_FLAGS', 'u32', 'kvm_pit_state2.flags', 1, 0xa0], ['SPEAKER', 'u32', 'port 0x61 bit 1'],
  ['PIT_DEADLINE', 'u64', 'next IRQ 0 edge, virtual ns, all ones = none'], ['PIT_PERIOD', 'u64', 'ns, 0 = one shot'],
  ['PIT_REINJECT', 'u32', ''], ['PIT_PENDING', 'u32', 'ticks whose interrupt was not yet acknowledged'],
  ['IOAPIC_PRESENT', 'u32', '', 1, 0xc0], ['IOAPIC_SELECT', 'u32', ''], ['IOAPIC_ID', 'u32', ''], ['IOAPIC_IRR', 'u32', ''],
  ['IOAPIC_LINES', 'u32', 'input levels'], ['IOAPIC_PAD', 'u32', ''], ['IOAPIC_BASE', 'u64', ''],
  ['IOAPIC_TABLE', 'u64', '24 redirection entries', 24, 0x100],
  ['ROUTE_COUNT', 'u32', 'rows of the routing table', 1, 0x1c0], ['ROUTE_CUSTOM', 'u32', '1: set by KVM_SET_GSI_ROUTING'],
  ['AP_JUMP_TABLE', 'u64', 'SEV-ES AP jump table address'],
  ['MSR_FILTER', 'u32', 'kept by host/kvm'], ['LOWEST_PRIORITY', 'u32', 'round robin of lowest-priority delivery'],
  ['USER_DEADLINE', 'u64', 'virtual ns at which KVM_RUN returns for the VMM, all ones = none'],
  ['RUNNING', 'u32', 'vCPU whose time is the VM clock now'], ['IRQ_SOURCES', 'u32', 'irq source per GSI', 32],
  // kvm_irq_routing entries, 24 bytes each: gsi u32, type u32 (1 irqchip, 2 msi), chip or address lo, pin or address hi, data, pad
  ['ROUTES', 'u32', 'kvm_irq_routing, 24 bytes each', 600, 0x680],
], 0x1000)

export const irqchipConstants: Readonly<Record<string, number>> = {
  APIC_ID: 0x20, APIC_VERSION: 0x30, APIC_TPR: 0x80, APIC_APR: 0x90, APIC_PPR: 0xa0, APIC_EOI: 0xb0, APIC_RRD: 0xc0, APIC_LDR: 0xd0,
  APIC_DFR: 0xe0, APIC_SVR: 0xf0, APIC_ISR: 0x100, APIC_TMR: 0x180, APIC_IRR: 0x200, APIC_ESR: 0x280, APIC_LVTCMCI: 0x2f0, APIC_ICR: 0x300,
  APIC_ICR2: 0x310, APIC_LVTT: 0x320, APIC_LVTTHMR: 0x330, APIC_LVTPC: 0x340, APIC_LVT0: 0x350, APIC_LVT1: 0x360, APIC_LVTERR: 0x370,
  APIC_TMICT: 0x380, APIC_TMCCT: 0x390, APIC_TDCR: 0x3e0, APIC_SELF_IPI: 0x3f0,
}
