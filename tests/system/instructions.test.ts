/**
 * System instructions by table: what each does at CPL 0 and at CPL 3 in 64-bit mode, with the control bits that change it.
 * And an inventory: every mnemonic of the opcode map is met by the oracles (tests/oracle, tests/simd), by this table, or by a
 * test named here.
 */
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeCpuid } from '../../host/cpuid/entries.ts'
import { openKvm } from '../../host/index.ts'
import { cpuidFor } from '../../host/vmm/cpu-types.ts'
import { opcodes } from '../../spec/opcodes/index.ts'
import { sse } from '../../spec/opcodes/sse.ts'
import { x87 } from '../../spec/opcodes/x87.ts'
import { Generator } from '../oracle/wild/generate.ts'
import { call } from '../support/core.ts'
import { L, Machine } from './machine.ts'

const kvm = await openKvm({ host: 'amd' })
const cpuid = cpuidFor(kvm.supportedCpuid(), 0, 1, undefined).entries
kvm[Symbol.dispose]()

const TSD = 0x4n
const UMIP = 0x800n
const PKE = 0x400000n
const PCE = 0x100n
/** PAE, OSFXSR, OSXSAVE. */
const CR4 = 0x40220n
const UD = 6
const GP = 13
const RUNS = -1

interface Line {
  name: string
  bytes: number[]
  /** Vector at CPL 0 and CPL 3, RUNS = none. */
  ring0: number
  ring3: number
  cr4?: bigint
  rax?: bigint
  rcx?: bigint
  rdx?: bigint
  after?: (m: Machine, ring: number) => void
}

const masked = (name: string, bytes: number[]): Line[] => [
  { name, bytes, ring0: RUNS, ring3: RUNS },
  { name, bytes, ring0: RUNS, ring3: GP, cr4: UMIP },
]
const privileged = (name: string, bytes: number[], more: Partial<Line> = {}): Line => ({ name, bytes, ring0: RUNS, ring3: GP, ...more })
const absent = (name: string, bytes: number[]): Line => ({ name, bytes, ring0: UD, ring3: UD })
const low = (m: Machine, n: number): bigint => m.reg(n) & 0xffff_ffffn

const lines: Line[] = [
  ...masked('SLDT', [0x0f, 0x00, 0xc0]),
  ...masked('STR', [0x0f, 0x00, 0xc8]),
  ...masked('SMSW', [0x0f, 0x01, 0xe0]),
  ...masked('SGDT', [0x0f, 0x01, 0x06]),
  ...masked('SIDT', [0x0f, 0x01, 0x0e]),
  { name: 'XGETBV', bytes: [0x0f, 0x01, 0xd0], ring0: RUNS, ring3: RUNS, rcx: 0n, after: (m) => assert.is(low(m, 0), 3n) },
  { name: 'XGETBV', bytes: [0x0f, 0x01, 0xd0], ring0: GP, ring3: GP, rcx: 2n },
  privileged('XSETBV', [0x0f, 0x01, 0xd1], { rcx: 0n, rax: 3n, rdx: 0n }),
  { name: 'XSETBV', bytes: [0x0f, 0x01, 0xd1], ring0: GP, ring3: GP, rcx: 0n, rax: 2n, rdx: 0n },
  { name: 'RDTSC', bytes: [0x0f, 0x31], ring0: RUNS, ring3: RUNS },
  privileged('RDTSC', [0x0f, 0x31], { cr4: TSD }),
  { name: 'RDTSCP', bytes: [0x0f, 0x01, 0xf9], ring0: RUNS, ring3: RUNS, after: (m) => assert.is(low(m, 1), 0x1234n) },
  privileged('RDTSCP', [0x0f, 0x01, 0xf9], { cr4: TSD }),
  { name: 'RDPID', bytes: [0xf3, 0x0f, 0xc7, 0xf8], ring0: RUNS, ring3: RUNS, after: (m) => assert.is(m.reg(0), 0x1234n) },
  // No performance counters are modelled.
  { name: 'RDPMC', bytes: [0x0f, 0x33], ring0: GP, ring3: GP, rcx: 0n, cr4: PCE },
  absent('RDPKRU', [0x0f, 0x01, 0xee]),
  absent('WRPKRU', [0x0f, 0x01, 0xef]),
  { name: 'RDPKRU', bytes: [0x0f, 0x01, 0xee], ring0: RUNS, ring3: RUNS, rcx: 0n, cr4: PKE, after: (m) => assert.is(m.reg(2), 0n) },
  { name: 'RDPKRU', bytes: [0x0f, 0x01, 0xee], ring0: GP, ring3: GP, rcx: 1n, cr4: PKE },
  { name: 'WRPKRU', bytes: [0x0f, 0x01, 0xef], ring0: RUNS, ring3: RUNS, rax: 0n, rcx: 0n, rdx: 0n, cr4: PKE },
  { name: 'WRPKRU', bytes: [0x0f, 0x01, 0xef], ring0: GP, ring3: GP, rax: 0n, rcx: 0n, rdx: 1n, cr4: PKE },
  absent('MONITORX', [0x0f, 0x01, 0xfa]),
  absent('MWAITX', [0x0f, 0x01, 0xfb]),
  absent('CLZERO', [0x0f, 0x01, 0xfc]),
  absent('RDPRU', [0x0f, 0x01, 0xfd]),
  // EFER.SVME is clear.
  ...['VMRUN', '', 'VMLOAD', 'VMSAVE', 'STGI', 'CLGI', 'SKINIT', 'INVLPGA'].flatMap((name, i) =>
    name ? [absent(name, [0x0f, 0x01, 0xd8 + i])] : [],
  ),
  absent('RSM', [0x0f, 0xaa]),
  // SYSENTER and SYSEXIT do not exist in AMD's long mode, but privilege comes first.
  absent('SYSENTER', [0x0f, 0x34]),
  { name: 'SYSEXIT', bytes: [0x0f, 0x35], ring0: UD, ring3: GP },
  { name: 'CLAC', bytes: [0x0f, 0x01, 0xca], ring0: RUNS, ring3: UD },
  { name: 'STAC', bytes: [0x0f, 0x01, 0xcb], ring0: RUNS, ring3: UD, after: (m) => assert.ok((m.flags & 0x40000n) !== 0n) },
  privileged('CLTS', [0x0f, 0x06]),
  privileged('INVD', [0x0f, 0x08]),
  privileged('WBINVD', [0x0f, 0x09]),
  privileged('LMSW', [0x0f, 0x01, 0xf0], { rax: 3n }),
  privileged('INVLPG', [0x0f, 0x01, 0x3e]),
  privileged('INVPCID', [0x66, 0x0f, 0x38, 0x82, 0x06], { rax: 2n }),
  privileged('SWAPGS', [0x0f, 0x01, 0xf8]),
  privileged('RDMSR', [0x0f, 0x32], { rcx: 0x10n }),
  privileged('WRMSR', [0x0f, 0x30], { rcx: 0xc0000103n, rax: 0x1234n, rdx: 0n }),
  privileged('LGDT', [0x0f, 0x01, 0x17]),
  privileged('LIDT', [0x0f, 0x01, 0x5f, 0x10]),
  privileged('LLDT', [0x0f, 0x00, 0xd0], { rax: 0n }),
  { name: 'LTR', bytes: [0x0f, 0x00, 0xd8], ring0: GP, ring3: GP, rax: 0n },
  privileged('MOV', [0x0f, 0x20, 0xc0]),
  // LOCK MOV CR0 is CR8 (AMD); LOCK elsewhere is #UD.
  privileged('MOV', [0xf0, 0x0f, 0x20, 0xc0], { after: (m, ring) => ring === 0 && assert.is(m.reg(0), 5n) }),
  absent('MOV', [0xf0, 0x0f, 0x20, 0xd8]),
  absent('MOV', [0x0f, 0x20, 0xc8]),
  { name: 'CPUID', bytes: [0x0f, 0xa2], ring0: RUNS, ring3: RUNS, rax: 0n, rcx: 0n },
  { name: 'RDRAND', bytes: [0x48, 0x0f, 0xc7, 0xf0], ring0: RUNS, ring3: RUNS, after: (m) => assert.is(m.flags & 1n, 1n) },
  { name: 'RDSEED', bytes: [0x48, 0x0f, 0xc7, 0xf8], ring0: RUNS, ring3: RUNS, after: (m) => assert.is(m.flags & 1n, 1n) },
  absent('MOVDIRI', [0x0f, 0x38, 0xf9, 0x06]),
  absent('MOVDIR64B', [0x66, 0x0f, 0x38, 0xf8, 0x06]),
]

function machine(line: Line): Machine {
  const m = new Machine('long')
  m.core.bytes.set(encodeCpuid(cpuid).subarray(8), m.s + L.VCPU_CPUID + 16)
  m.core.view.setUint32(m.s + L.VCPU_CPUID, cpuid.length, true)
  call(m.core, 'cpuidChanged', m.s)
  m.set64(L.CPU_CR0, 0x80000011n)
  m.set64(L.CPU_CR4, CR4 | (line.cr4 ?? 0n))
  m.set64(L.CPU_XCR0, 3n)
  m.set64(L.CPU_CR8, 5n)
  m.set64(L.CPU_TSC_AUX, 0x1234n)
  m.setReg(6, 0x30000n)
  m.setReg(7, 0x30100n)
  // LGDT and LIDT keep the tables.
  m.poke(0x30100, 0x3ffn, 2)
  m.poke(0x30102, 0x1000n)
  m.poke(0x30110, 0xfffn, 2)
  m.poke(0x30112, 0x2000n)
  m.setReg(0, line.rax ?? 0n)
  m.setReg(1, line.rcx ?? 0n)
  m.setReg(2, line.rdx ?? 0x55n)
  m.changed()
  return m
}

test('system instructions at CPL 0 and CPL 3', () => {
  const wrong: string[] = []
  for (const line of lines) {
    for (const ring of [0, 3]) {
      const m = machine(line)
      if (ring === 3) m.user()
      // UD2 marks the end: HLT is privileged.
      m.code([...line.bytes, 0x0f, 0x0b])
      m.set32(L.CPU_HALTED, 0)
      m.run(3)
      const vector = (Number(m.rip) - 1 - 0x8000) / 16
      const at = m.frame(vector === GP ? 1 : 0)
      const ran = vector === UD && at === 0x10000 + line.bytes.length
      const got = ran ? RUNS : vector
      const want = ring === 0 ? line.ring0 : line.ring3
      if (got !== want) wrong.push(`${line.name} ${Buffer.from(line.bytes).toString('hex')} at CPL ${ring}: ${got}, not ${want}`)
      else if (got === RUNS) line.after?.(m, ring)
    }
  }
  assert.equal(wrong, [])
})

/** Mnemonics that neither oracle runs, nor the table above: the test that does. */
const elsewhere: Record<string, string> = {
  VMMCALL: 'tests/kvm-core/ghcb.test.ts',
  VMCALL: 'tests/kvm/api/pv.test.ts',
  VMGEXIT: 'tests/kvm-core/ghcb.test.ts',
  MONITOR: 'tests/system/segments.test.ts',
  MWAIT: 'tests/system/segments.test.ts',
  SYSCALL: 'tests/system/transfer.test.ts',
  INT1: 'tests/system/delivery.test.ts',
  XSAVES: 'tests/simd/guards.test.ts',
  XRSTORS: 'tests/simd/guards.test.ts',
}

test('every mnemonic of the opcode map has a test', () => {
  const generator = new Generator(1)
  for (let i = 0; i < 30; i++) {
    const batch = generator.begin()
    for (let k = 0; k < 1000; k++) generator.make(batch)
  }
  const texts = new Set([...sse, ...x87])
  const met = new Set<string>(lines.map((l) => l.name))
  for (const o of opcodes)
    if (generator.covered.has(o.text) || (texts.has(o.text) && !/^XSAVES|^XRSTORS/.test(o.mnemonic))) met.add(o.mnemonic)
  const missing = [...new Set(opcodes.map((o) => o.mnemonic))].filter((name) => !met.has(name) && elsewhere[name] === undefined)
  assert.equal(missing, [], 'no test meets these')
  for (const [name, file] of Object.entries(elsewhere)) {
    const path = fileURLToPath(new URL(`../../../${file}`, import.meta.url))
    assert.ok(existsSync(path) && new RegExp(`\\b${name}\\b`, 'i').test(readFileSync(path, 'utf8')), `${file} says nothing of ${name}`)
  }
})

test.run()
