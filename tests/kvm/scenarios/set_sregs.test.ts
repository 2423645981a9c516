/** In the manner of selftests x86/set_sregs_test: feature bits of CR4 need CPUID, combinations that no CPU has are refused, state stays. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { Sregs } from 'cloister'
import { realModeGuest, refuses } from './guest.ts'

const CR0 = { PE: 1n, ET: 0x10n, NW: 1n << 29n, CD: 1n << 30n, PG: 1n << 31n }
const CR4 = { PAE: 0x20n, UMIP: 1n << 11n, PCIDE: 1n << 17n }
const EFER = { LME: 0x100n, LMA: 0x400n }

test('impossible combinations are refused and change nothing', async () => {
  const { vcpu } = await realModeGuest([0xf4])
  const sregs = vcpu.getSregs()
  const wrong: readonly (readonly [string, Partial<Sregs>])[] = [
    ['PG without PE', { cr0: CR0.PG | CR0.ET }],
    ['NW without CD', { cr0: (sregs.cr0 & ~CR0.CD) | CR0.NW }],
    ['CR0 above 32 bits', { cr0: sregs.cr0 | (1n << 40n) }],
    ['reserved CR4 bit', { cr4: 1n << 28n }],
    ['LMA without PAE', { cr0: CR0.PG | CR0.PE | CR0.ET, efer: EFER.LME | EFER.LMA, cr4: 0n }],
    ['reserved APIC base bit', { apicBase: sregs.apicBase | 1n }],
  ]
  for (const [what, change] of wrong) {
    refuses('EINVAL', () => vcpu.setSregs({ ...sregs, ...change }), what)
    assert.equal(vcpu.getSregs(), sregs, what)
  }
})

test('CR4 bits follow the vCPU’s CPUID', async () => {
  const { kvm, vcpu } = await realModeGuest([0xf4])
  const sregs = vcpu.getSregs()
  vcpu.setSregs({ ...sregs, cr4: CR4.UMIP })
  vcpu.setSregs(sregs)
  // Without UMIP in CPUID 7.0 ECX bit 2.
  vcpu.setCpuid2(kvm.supportedCpuid().map((e) => (e.function === 7 && e.index === 0 ? { ...e, ecx: e.ecx & ~4 } : e)))
  refuses('EINVAL', () => vcpu.setSregs({ ...sregs, cr4: CR4.UMIP }), 'UMIP')
})

test('long mode as a VMM sets it up', async () => {
  const { vcpu } = await realModeGuest([0xf4])
  const sregs = vcpu.getSregs()
  const long = { ...sregs, cr0: CR0.PG | CR0.PE | CR0.ET, cr3: 0x2000n, cr4: CR4.PAE, efer: EFER.LME | EFER.LMA }
  vcpu.setSregs({ ...long, cs: { ...sregs.cs, l: 1, db: 0, type: 11 } })
  assert.is(vcpu.getSregs().efer, EFER.LME | EFER.LMA)
})

test.run()
