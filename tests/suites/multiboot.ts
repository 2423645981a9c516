/**
 * Runs a multiboot ELF on the bare core as the kvm-unit-tests expect it (their x86/cstart*.S, lib/x86/*.c):
 * entry in flat 32-bit mode, an environment module, serial port, debug-exit, their test device, in-kernel
 * interrupt controllers. No KVM layer is involved, so what fails here is silicon.
 */
import { readFileSync } from 'node:fs'
import { call, loadCore, L } from '../support/core.ts'

const MIB = 1 << 20
const MEMORY = 512 * MIB
const INFO = 0x80000
const EXIT_IO = 2
const EXIT_MMIO = 6

export interface Outcome {
  /** Value written to the debug-exit port, or why the run ended without one. */
  end: number | string
  output: string
  /** Lines by their label: PASS, FAIL, SKIP. */
  lines: (label: string) => string[]
}

/** AMD family 25 with what the tests look for and the core has. */
const cpuid: readonly (readonly number[])[] = [
  [0, 0, 0xd, 0x68747541, 0x444d4163, 0x69746e65],
  [1, 0, 0xa00f11, 0x00010800, 0x81222001, 0x078bfbff],
  [7, 0, 0, 0x00100481, 0x00400004, 0],
  [0x40000000, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d],
  [0x40000001, 0, 0, 0, 0, 0],
  [0x80000000, 0, 0x80000008, 0x68747541, 0x444d4163, 0x69746e65],
  [0x80000001, 0, 0xa00f11, 0, 1, 0x2c100800],
  [0x80000008, 0, 0x3028, 0, 0, 0],
]

export function runMultiboot(path: string, seconds = 60): Outcome {
  const core = loadCore()
  const vm = call(core, 'vmCreate')
  const ram = call(core, 'backingCreate', MEMORY / 4096)
  core.view.setBigUint64(vm + L.VM_PHYS_MASK, ((1n << 40n) - 1n) & ~0xfffn, true)
  call(core, 'createIrqchip', vm, 0)
  call(core, 'createPit', vm, 0)
  call(core, 'slotSet', vm, 0, 0n, BigInt(MEMORY), 0, ram, 0)
  const s = call(core, 'vcpuCreate', vm, 0)
  const put = (gpa: number, bytes: Uint8Array): void => {
    for (let i = 0; i < bytes.length; i += 4096) {
      const part = bytes.subarray(i, i + 4096)
      core.bytes.set(part, L.STAGING)
      call(core, 'backingWrite', ram, BigInt(gpa + i), L.STAGING, part.length)
    }
  }
  core.view.setUint32(s + L.VCPU_CPUID, cpuid.length, true)
  cpuid.forEach(([leaf = 0, index = 0, ...values], i) => {
    for (const [j, v] of [leaf, index, 0, ...values].entries()) core.view.setUint32(s + L.VCPU_CPUID + 16 + i * 40 + j * 4, v >>> 0, true)
  })
  call(core, 'cpuidChanged', s)
  const elf = readFileSync(path)
  const e = new DataView(elf.buffer, elf.byteOffset, elf.byteLength)
  for (let i = 0; i < e.getUint16(44, true); i++) {
    const p = e.getUint32(28, true) + i * e.getUint16(42, true)
    if (e.getUint32(p, true) === 1)
      put(e.getUint32(p + 12, true), elf.subarray(e.getUint32(p + 4, true), e.getUint32(p + 4, true) + e.getUint32(p + 16, true)))
  }
  put(INFO, multibootInfo())
  const v = core.view
  const set = (field: number, value: number): void => v.setBigUint64(s + field, BigInt(value), true)
  set(L.CPU_RIP, e.getUint32(24, true))
  set(L.CPU_GPR + 3 * 8, INFO)
  set(L.CPU_CR0, 0x11)
  for (let n = 0; n < 6; n++) {
    const at = s + L.CPU_SEGMENTS + n * 16
    v.setBigUint64(at + L.SEG_BASE, 0n, true)
    v.setUint32(at + L.SEG_LIMIT, 0xffffffff, true)
    v.setUint16(at + L.SEG_SELECTOR, n === L.SEG_CS ? 8 : 16, true)
    v.setUint16(at + L.SEG_ATTRIB, n === L.SEG_CS ? 0xc9b : 0xc93, true)
  }
  call(core, 'cpuModeChanged', s)

  let output = ''
  let end: number | string | null = null
  const echo = new Uint8Array(4)
  const page = new Uint8Array(4096)
  const read = (port: number): number =>
    port >= 0xe0 && port < 0xe4 ? (echo[port - 0xe0] ?? 0) : port === 0x3fd ? 0x60 : port >= 0x3f8 && port < 0x400 ? 0 : 0xff
  const write = (port: number, value: number): void => {
    if (port >= 0xe0 && port < 0xe4) echo[port - 0xe0] = value
    else if (port === 0x3f8) output += String.fromCharCode(value)
  }
  const run = s + L.VCPU_RUN
  const limit = Date.now() + seconds * 1000
  while (end === null) {
    const status = call(core, 'vcpuRun', s, 1000000n) | 0
    const d = core.view
    if (status === -4) {
      if (Date.now() > limit) end = 'time'
      continue
    }
    const reason = d.getUint32(run + 8, true)
    if (status !== 0) end = `status ${status}`
    else if (reason === EXIT_IO) {
      const size = d.getUint8(run + 33)
      const port = d.getUint16(run + 34, true)
      const data = run + Number(d.getBigUint64(run + 40, true))
      for (let i = 0; i < d.getUint32(run + 36, true) * size; i++) {
        if (d.getUint8(run + 32) === 0) d.setUint8(data + i, read(port + (i % size)))
        else write(port + (i % size), d.getUint8(data + i))
      }
      if (d.getUint8(run + 32) === 1) {
        if (port === 0xf4) end = d.getUint8(data)
        else if (port === 0xe4) call(core, 'flushEverywhere')
        else if (port >= 0x2000 && port < 0x2018) call(core, 'irqLine', vm, port - 0x2000, d.getUint8(data) ? 1 : 0)
      }
    } else if (reason === EXIT_MMIO) {
      const gpa = Number(d.getBigUint64(run + 32, true))
      const length = d.getUint32(run + 48, true)
      for (let i = 0; i < length; i++) {
        const inside = gpa >= 0xff000000 && gpa < 0xff001000
        if (d.getUint8(run + 52) === 0) d.setUint8(run + 40 + i, inside ? (page[(gpa & 0xfff) + i] ?? 0xff) : 0xff)
        else if (inside) page[(gpa & 0xfff) + i] = d.getUint8(run + 40 + i)
      }
    } else end = `exit ${reason} at 0x${d.getBigUint64(s + L.CPU_RIP, true).toString(16)}`
  }
  const all = output.split(/\r?\n/)
  return { end, output, lines: (label) => all.filter((line) => line.startsWith(`${label}:`)) }
}

function multibootInfo(): Uint8Array {
  const bytes = new Uint8Array(4096)
  const v = new DataView(bytes.buffer)
  const text = (at: number, s: string): number => {
    bytes.set(new TextEncoder().encode(s), at)
    return INFO + at
  }
  v.setUint32(0, 0x4f, true)
  v.setUint32(4, 640, true)
  v.setUint32(8, MEMORY / 1024 - 1024, true)
  v.setUint32(16, text(0x100, 'test\0'), true)
  const environment = `NR_CPUS=1\nMEMSIZE=${MEMORY / MIB}\nTEST_DEVICE=1\nBOOTLOADER=0\n`
  v.setUint32(20, 1, true)
  v.setUint32(24, INFO + 0x200, true)
  v.setUint32(0x200, text(0x300, environment), true)
  v.setUint32(0x204, INFO + 0x300 + environment.length, true)
  v.setUint32(44, 48, true)
  v.setUint32(48, INFO + 0x400, true)
  for (const [i, [base, size]] of (
    [
      [0, 0x9fc00],
      [MIB, MEMORY - MIB],
    ] as const
  ).entries()) {
    const at = 0x400 + i * 24
    v.setUint32(at, 20, true)
    v.setBigUint64(at + 4, BigInt(base), true)
    v.setBigUint64(at + 12, BigInt(size), true)
    v.setUint32(at + 20, 1, true)
  }
  return bytes
}
