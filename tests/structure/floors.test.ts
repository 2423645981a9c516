/** Imports run only down the floors of docs/how-it-works.md: userspace, kernel, firmware, silicon. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { importsOf, sources, textOf } from './sources.ts'

/** What each room of host/ may import, beside itself, `host/errors.ts` and what is generated from spec/. */
const HOST: Readonly<Record<string, readonly string[]>> = {
  // silicon's host half, and arithmetic that belongs to nobody
  'host/engine': [],
  'host/crypto': [],
  // firmware
  'host/firmware/psp': ['host/engine', 'host/crypto'],
  // kernel
  'host/policy': [],
  'host/cpuid': [],
  'host/kvm': ['host/policy', 'host/cpuid', 'host/firmware/psp', 'host/engine', 'host/crypto'],
  // the public API, and userspace above it
  'host/index.ts': ['host/kvm', 'host/policy', 'host/cpuid', 'host/firmware/psp'],
  'host/vmm': ['host/index.ts'],
  'host/test': ['host/kvm', 'host/policy'],
  'host/replay': ['host/kvm', 'host/policy', 'host/cpuid'],
  'host/cli': ['host/index.ts', 'host/vmm', 'host/replay', 'host/policy'],
  'host/cli.ts': ['host/cli'],
  'host/errors.ts': [],
}

/** The map of the core's memory is known to silicon, firmware and kernel; userspace has the kernel's own structures. */
const LAYOUT_READERS = ['host/engine', 'host/firmware/psp', 'host/kvm', 'host/replay']

/** Rooms of silicon: they are one machine and know each other. */
const SILICON = ['assembly/cpu', 'assembly/decode', 'assembly/execute', 'assembly/memory', 'assembly/paging']

/** Where silicon leaves the guest: a VM exit, or an answer that KVM gives in its place. Nowhere else does it call the kernel. */
const EXITS: Readonly<Record<string, string>> = {
  'assembly/cpu/debug.ts': 'breakpoints of KVM_SET_GUEST_DEBUG',
  'assembly/cpu/msr.ts': 'intercepted MSRs: local APIC, paravirtual clocks, time',
  'assembly/execute/boundary.ts': 'interrupts and events between instructions',
  'assembly/execute/identify.ts': 'CPUID, RDTSC, RDMSR, WRMSR',
  'assembly/execute/io.ts': 'port I/O, HLT',
  'assembly/execute/repeat.ts': 'breakpoints of KVM_SET_GUEST_DEBUG',
  'assembly/execute/return.ts': 'breakpoints of KVM_SET_GUEST_DEBUG',
  'assembly/execute/system.ts': 'CR8, RSM, PAUSE, WBINVD, INT3',
  'assembly/execute/vmgexit.ts': 'VMGEXIT, VMMCALL',
  'assembly/memory/access.ts': 'nested page faults of MMIO',
}

/** The room that a path belongs to: its folder, or the file itself where it stands alone. */
function roomOf(path: string): string {
  const parts = path.split('/')
  if (parts[1] === 'firmware') return parts.slice(0, 3).join('/')
  return parts.slice(0, 2).join('/')
}

test('every room of host/ imports only rooms below it', () => {
  const wrong: string[] = []
  for (const path of sources('host')) {
    const room = roomOf(path)
    if (room === 'host/generated') continue
    const allowed = HOST[room]
    assert.ok(allowed, `${path}: ${room} is no room of this test's list`)
    for (const { to } of importsOf(path)) {
      const target = roomOf(to)
      if (target === room || target === 'host/errors.ts') continue
      if (target === 'host/generated') {
        if (to === 'host/generated/layout.ts' && !LAYOUT_READERS.includes(room)) wrong.push(`${path} reads the map of the core's memory`)
      } else if (!allowed.includes(target)) wrong.push(`${path} imports ${to}`)
    }
  }
  assert.equal(wrong, [])
})

test('assembly/ imports nothing from outside, and silicon calls the kernel only where it exits', () => {
  const wrong: string[] = []
  const exits = new Set<string>()
  for (const path of sources('assembly')) {
    if (path.startsWith('assembly/generated/')) continue
    for (const { to } of importsOf(path)) {
      if (!to.startsWith('assembly/')) wrong.push(`${path} imports ${to}`)
      if (!SILICON.includes(roomOf(path)) || roomOf(to) !== 'assembly/kvm') continue
      exits.add(path)
      if (EXITS[path] === undefined) wrong.push(`${path} calls the kernel: ${to}`)
    }
  }
  assert.equal(wrong, [])
  assert.equal([...exits].toSorted(), Object.keys(EXITS).toSorted())
})

test('nothing that ships imports tools, tests or benchmarks, and spec/ is data alone', () => {
  const wrong: string[] = []
  for (const path of sources('host', 'assembly', 'spec')) {
    const top = path.split('/')[0] ?? ''
    for (const { to } of importsOf(path)) if (!to.startsWith(`${top}/`)) wrong.push(`${path} imports ${to}`)
  }
  assert.equal(wrong, [])
})

/** Longer than a reader keeps in mind, and why they are. */
const LONG: Readonly<Record<string, string>> = {}

test('what ships is in files of one purpose: none is longer than 450 lines', () => {
  const long: string[] = []
  for (const path of sources('host', 'assembly')) {
    if (path.includes('/generated/')) continue
    if (textOf(path).split('\n').length > 451 && LONG[path] === undefined) long.push(path)
  }
  assert.equal(long, [])
  for (const path of Object.keys(LONG)) assert.ok(textOf(path).split('\n').length > 451, `${path} is short enough`)
})

test('the rules see a forbidden import', () => {
  const found = importsOf('host/kvm/example.ts', `import { Machine } from '../vmm/machine.ts'\nimport type { A } from 'cloister'\n`)
  assert.equal(found, [
    { to: 'host/vmm/machine.ts', names: ['Machine'] },
    { to: 'host/index.ts', names: ['A'] },
  ])
})

test.run()
