/**
 * The in-kernel I/O APIC: registers, entries changed while their interrupt waits or is in service, remote IRR, the RTC's pin,
 * resampling, broadcasts suppressed. "82093AA" is Intel's data sheet 290566-001, "KVM" arch/x86/kvm/ioapic.c of Linux.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { APIC, Board, IOAPIC } from './board.ts'

const test = suite('82093AA')
const REMOTE_IRR = 0x4000
const LEVEL = 0x8000
const MASKED = 0x10000

function board(vcpus = 1): Board {
  const b = new Board({ vcpus })
  for (const s of b.cpus) b.store(APIC + 0xf0, 0x1ff, s)
  return b
}
const low = (b: Board, pin: number, value?: number): number => b.ioapic(0x10 + pin * 2, value)
const high = (b: Board, pin: number, value?: number): number => b.ioapic(0x11 + pin * 2, value)
const status = (b: Board, gsi: number, level: number): number => call(b.core, 'irqLineStatus', b.vm, gsi, level) | 0
/** IRR, or with `serve` what is moved into service as an interrupt is. */
const requested = (b: Board, vector: number, s = b.s): boolean => b.bit(0x200, vector, s)
/** Puts a requested vector into service by hand, then ends it. */
function serve(b: Board, vector: number, s = b.s): void {
  const word = (vector >> 5) * 16
  const a = s + L.VCPU_LAPIC
  const { view } = b.core
  view.setUint32(a + 0x200 + word, view.getUint32(a + 0x200 + word, true) & ~(1 << (vector & 31)), true)
  view.setUint32(a + 0x100 + word, view.getUint32(a + 0x100 + word, true) | (1 << (vector & 31)), true)
}
const end = (b: Board, s = b.s): void => b.store(APIC + 0xb0, 0, s)

// index, value written, value read, source
const REGISTERS: readonly (readonly [index: number, written: number | null, read: number, source: string])[] = [
  [0, 0xffffffff, 0x0f000000, '82093AA 3.2.1: ID in bits 27:24'],
  [1, 0xffffffff, 0x00170011, '82093AA 3.2.2: version 11h, 24 entries, read-only'],
  [2, 0, 0x0f000000, '82093AA 3.2.3: arbitration ID, loaded with the ID, read-only'],
  [3, 0, 0xffffffff, 'KVM ioapic_read_indirect: ones where no entry is'],
  [0x0f, 0, 0xffffffff, 'KVM, likewise'],
  [0x10, null, MASKED, '82093AA 3.2.4: masked after reset'],
  [0x10, 0xffffffff, 0x1afff, '82093AA 3.2.4: delivery status and remote IRR are read-only; KVM keeps bits 31:17'],
  [0x11, 0xffffffff, 0xffffffff, 'KVM keeps all 32 bits of the upper half'],
  [0x3e, null, MASKED, 'entry 23'],
  [0x40, 0, 0xffffffff, 'KVM: behind the last entry'],
  [0xff, 0, 0xffffffff, 'KVM, likewise'],
]
test('registers', () => {
  const b = board()
  for (const [index, written, read, source] of REGISTERS) {
    const expected = index === 0x10 && written !== null ? (0xffffffff & ~(REMOTE_IRR | 0x1000)) >>> 0 : read
    assert.is(b.ioapic(index, written ?? undefined), expected, `${index.toString(16)}: ${source}`)
  }
  call(b.core, 'ioapicGet', b.vm, L.STAGING)
  assert.is(b.core.view.getUint32(L.STAGING + 12, true), 15, 'the ID as KVM_GET_IRQCHIP has it')
  assert.is(b.load(IOAPIC + 0x40), 0, 'no EOI register in version 11h')
  b.store(IOAPIC, 0x123)
  assert.is(b.load(IOAPIC), 0x23, 'IOREGSEL has 8 bits')
})

test('its place is fixed: a base set by KVM_SET_IRQCHIP away from FEC00000 leaves no I/O APIC (KVM ioapic_in_range, the bus)', () => {
  const b = board()
  call(b.core, 'ioapicGet', b.vm, L.STAGING)
  b.core.view.setBigUint64(L.STAGING, 0xfec10000n, true)
  call(b.core, 'ioapicSet', b.vm, L.STAGING)
  for (const gpa of [IOAPIC, 0xfec10000]) {
    b.setReg(3, BigInt(gpa))
    b.step([0x67, 0x66, 0x8b, 0x03], b.s)
    assert.is(b.reason(), 6, gpa.toString(16))
    b.run(b.s, 1n)
  }
})

test('level: remote IRR from acceptance to EOI; the line drops under it; repeated while high (82093AA 3.2.4, bit 14)', () => {
  const b = board()
  low(b, 20, LEVEL | 0x61)
  assert.equal([status(b, 20, 1), requested(b, 0x61), low(b, 20) & REMOTE_IRR], [1, true, REMOTE_IRR])
  assert.is(status(b, 20, 1), -1, 'waits for its EOI')
  serve(b, 0x61)
  status(b, 20, 0)
  end(b)
  assert.equal([requested(b, 0x61), low(b, 20) & REMOTE_IRR], [false, 0])
  status(b, 20, 1)
  serve(b, 0x61)
  end(b)
  assert.equal([requested(b, 0x61), low(b, 20) & REMOTE_IRR], [true, REMOTE_IRR])
})

// An entry is written while its interrupt is in service (line still high): what is read, and what the EOI of the old and of
// the new vector does.
const CHANGES: readonly (readonly [
  name: string,
  value: number,
  irr: boolean,
  oldEoi: readonly [again: number | null, irr: boolean],
  newEoi: readonly [again: number | null, irr: boolean],
])[] = [
  // name, new low half, remote IRR at once, then: vector requested and remote IRR after the EOI
  ['the vector', LEVEL | 0x62, true, [null, true], [0x62, true]], // KVM kvm_ioapic_update_eoi goes by the vector of now
  ['masked', MASKED | LEVEL | 0x61, true, [null, false], [null, false]],
  ['to edge', 0x61, false, [0x61, false], [0x61, false]], // KVM: remote IRR goes at the write; the EOI was a level's (TMR)
]
for (const [name, value, irr, oldEoi, newEoi] of CHANGES) {
  test(`reprogrammed while in service: ${name}`, () => {
    for (const [vector, [again, left]] of [
      [0x61, oldEoi],
      [value & 0xff, newEoi],
    ] as const) {
      const b = board()
      low(b, 20, LEVEL | 0x61)
      status(b, 20, 1)
      serve(b, 0x61)
      low(b, 20, value)
      assert.is((low(b, 20) & REMOTE_IRR) !== 0, irr)
      assert.is(requested(b, value & 0xff), false, 'nothing at the write')
      if (vector !== 0x61) {
        // An EOI of the new vector.
        end(b)
        b.core.view.setUint32(b.s + L.VCPU_LAPIC + 0x180 + (vector >> 5) * 16, 1 << (vector & 31), true)
        b.core.view.setUint32(b.s + L.VCPU_LAPIC + 0x200 + (vector >> 5) * 16, 1 << (vector & 31), true)
        serve(b, vector)
      }
      end(b)
      assert.is((low(b, 20) & REMOTE_IRR) !== 0, left, vector.toString(16))
      for (const v of [0x61, 0x62]) assert.is(requested(b, v), v === again, v.toString(16))
    }
  })
}

test('level to edge and back while the line is high: delivered anew (the EOI of guests without an EOI register)', () => {
  const b = board()
  low(b, 20, LEVEL | 0x61)
  status(b, 20, 1)
  serve(b, 0x61)
  low(b, 20, MASKED | 0x61)
  assert.is(low(b, 20) & REMOTE_IRR, 0)
  low(b, 20, LEVEL | 0x61)
  assert.equal([requested(b, 0x61), low(b, 20) & REMOTE_IRR], [true, REMOTE_IRR])
})

test('unmasked while the line is high: a level is delivered, an edge is not (KVM ioapic_write_indirect)', () => {
  const b = board()
  low(b, 20, MASKED | LEVEL | 0x61)
  low(b, 21, MASKED | 0x62)
  assert.equal([status(b, 20, 1), status(b, 21, 1), status(b, 21, 1)], [-1, -1, 0])
  low(b, 20, LEVEL | 0x61)
  low(b, 21, 0x62)
  assert.equal([requested(b, 0x61), requested(b, 0x62)], [true, false])
  status(b, 21, 0)
  assert.equal([status(b, 21, 1), requested(b, 0x62)], [1, true])
})

test('a destination written while remote IRR is set takes effect with the next delivery', () => {
  const b = board(2)
  const [bsp, ap] = b.cpus as [number, number]
  low(b, 20, LEVEL | 0x61)
  status(b, 20, 1)
  high(b, 20, 1 << 24)
  assert.equal([low(b, 20) & REMOTE_IRR, requested(b, 0x61, bsp), requested(b, 0x61, ap)], [REMOTE_IRR, true, false])
  serve(b, 0x61)
  end(b)
  assert.equal([requested(b, 0x61, bsp), requested(b, 0x61, ap)], [false, true])
})

test('an edge entry is delivered whatever its remote IRR, which only KVM_SET_IRQCHIP can bring there (KVM ioapic_service)', () => {
  const b = board()
  call(b.core, 'ioapicGet', b.vm, L.STAGING)
  b.core.view.setBigUint64(L.STAGING + 24 + 20 * 8, BigInt(REMOTE_IRR | 0x61), true)
  call(b.core, 'ioapicSet', b.vm, L.STAGING)
  assert.equal([status(b, 20, 1), requested(b, 0x61)], [1, true])
})

test('a resampling line: unmasking asks its owner instead of delivering, a write under remote IRR asks nobody (kvm_notify_irqfd_resampler)', () => {
  const b = board()
  const asked = (): number => {
    call(b.core, 'takeHostWork', b.vm)
    return call(b.core, 'takeAck', b.vm, 20)
  }
  call(b.core, 'resampleGsi', b.vm, 20, 1)
  low(b, 20, MASKED | LEVEL | 0x61)
  call(b.core, 'irqResample', b.vm, 20, 1)
  assert.is(asked(), 0)
  low(b, 20, LEVEL | 0x61)
  assert.equal([asked(), requested(b, 0x61)], [1, false])
  call(b.core, 'irqResample', b.vm, 20, 1)
  assert.equal([requested(b, 0x61), low(b, 20) & REMOTE_IRR], [true, REMOTE_IRR])
  low(b, 20, LEVEL | 0x61)
  assert.is(asked(), 0)
  serve(b, 0x61)
  end(b)
  assert.equal([asked(), requested(b, 0x61), low(b, 20) & REMOTE_IRR], [1, false, 0])
})

test('nobody takes it: a destination without a CPU leaves remote IRR clear, a broadcast that finds none sets it (KVM ioapic_service: ret != 0)', () => {
  const b = board()
  low(b, 20, LEVEL | 0x61)
  high(b, 20, 7 << 24)
  assert.equal([status(b, 20, 1), low(b, 20) & REMOTE_IRR], [0, 0])
  status(b, 20, 0)
  high(b, 20, 0xff << 24)
  b.core.view.setBigUint64(b.s + L.CPU_APIC_BASE, 0xfee00000n, true)
  assert.equal([status(b, 20, 1), low(b, 20) & REMOTE_IRR], [-1, REMOTE_IRR])
})

// delivery mode, what the vCPU has afterwards
test('delivery modes (82093AA 3.2.4, bits 10:8)', () => {
  for (const [mode, result, requestedThen, nmi, woken] of [
    [0, 1, true, 0, 0],
    [1, 1, true, 0, 0],
    [2, 1, false, 0, 0],
    [3, 1, false, 0, 1], // reserved; KVM's APIC_DM_REMRD wakes a halted vCPU
    [4, 1, false, 1, 0],
    [5, 1, false, 0, 0],
    [7, 0, false, 0, 0], // ExtINT: only through LVT0 (KVM __apic_accept_irq)
  ] as const) {
    const b = board()
    low(b, 20, (mode << 8) | 0x61)
    assert.is(status(b, 20, 1), result, `mode ${mode}`)
    assert.equal([b.kvm32(L.VKVM_NMI_PENDING), b.kvm32(L.VKVM_PV_UNHALTED)], [nmi, woken], `mode ${mode}`)
    assert.is((b.core.view.getUint32(b.s + L.VCPU_LAPIC + 0x230, true) & 2) !== 0, requestedThen, `mode ${mode}`)
  }
})

test('pin 8: KVM_IRQ_LINE_STATUS says coalesced until every vCPU has ended it (rtc_irq_check_coalesced), KVM_IRQ_LINE does not', () => {
  const b = board(2)
  const [bsp, ap] = b.cpus as [number, number]
  low(b, 8, 0x61)
  high(b, 8, 0xff << 24)
  const edge = (): number => {
    status(b, 8, 0)
    return status(b, 8, 1)
  }
  assert.is(edge(), 3, 'two vCPUs, and the PIC')
  assert.is(edge(), 0, 'coalesced: here, and in the PIC, where nobody has taken it')
  serve(b, 0x61, bsp)
  end(b, bsp)
  edge()
  assert.is(requested(b, 0x61, bsp), false, 'the other one has it')
  serve(b, 0x61, ap)
  end(b, ap)
  edge()
  assert.equal([requested(b, 0x61, bsp), requested(b, 0x61, ap)], [true, true])
  // Without the status every edge is delivered.
  serve(b, 0x61, bsp)
  b.irq(8, 0)
  b.irq(8, 1)
  assert.is(requested(b, 0x61, bsp), true)
})

test('pin 8: what KVM_SET_IRQCHIP and KVM_SET_LAPIC bring decides who still owes an EOI (kvm_rtc_eoi_tracking_restore)', () => {
  const b = board()
  low(b, 8, 0x61)
  const owed = (): number => b.core.view.getUint32(b.core.view.getUint32(b.vm + L.VM_KVM_STATE, true) + L.CHIP_RTC_PENDING, true)
  const again = (): void => {
    call(b.core, 'ioapicGet', b.vm, L.STAGING)
    call(b.core, 'ioapicSet', b.vm, L.STAGING)
  }
  status(b, 8, 1)
  assert.is(owed(), 1)
  serve(b, 0x61)
  again()
  assert.is(owed(), 1)
  call(b.core, 'lapicGet', b.s, L.STAGING)
  b.core.view.setUint32(L.STAGING + 0x130, 0, true)
  call(b.core, 'lapicSet', b.s, L.STAGING)
  assert.is(owed(), 0)
  again()
  assert.is(owed(), 0)
})

test('SVR.12 (set by KVM_SET_LAPIC): the EOI leaves remote IRR alone (kvm_lapic_suppress_eoi_broadcast)', () => {
  for (const svr of [0x1ff, 0x11ff]) {
    const b = board()
    low(b, 20, LEVEL | 0x61)
    status(b, 20, 1)
    serve(b, 0x61)
    b.core.view.setUint32(b.s + L.VCPU_LAPIC + 0xf0, svr, true)
    status(b, 20, 0)
    end(b)
    assert.is((low(b, 20) & REMOTE_IRR) !== 0, svr === 0x11ff)
  }
})

test('GSI 16 to 23 reach the I/O APIC alone, GSI 0 to 15 the PIC too (KVM default_routing)', () => {
  const b = board()
  b.initPic()
  for (let gsi = 0; gsi < 24; gsi++) low(b, gsi, 0x40 + gsi)
  for (let gsi = 0; gsi < 24; gsi++) {
    if (gsi === 2) continue // the cascade
    assert.is(status(b, gsi, 1), gsi < 16 ? 2 : 1, `GSI ${gsi}`)
    assert.is(requested(b, 0x40 + gsi), true)
  }
  assert.is(status(b, 24, 1), -1)
})

test.run()
