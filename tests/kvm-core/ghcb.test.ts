/** VMGEXIT: the GHCB MSR protocol, checks of the page and their order, every NAE event that KVM serves, as Linux 7.3 and 6.12 answer. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { EXIT, Guest } from './guest.ts'

const test = suite('GHCB')
const CODE = 0x1000
const PAGE = 0x100000
const BUFFER = PAGE + 0x800
const OFFSETS = {
  cpl: 0xcb,
  rax: 0x1f8,
  rcx: 0x308,
  rdx: 0x310,
  rbx: 0x318,
  rsi: 0x330,
  code: 0x390,
  info1: 0x398,
  info2: 0x3a0,
  scratch: 0x3a8,
  xcr0: 0x3e8,
} as const
type Fields = Partial<Record<keyof typeof OFFSETS, bigint | number>>
const BITMAP = 0x3f0

class EsGuest extends Guest {
  constructor(options: { type?: number; version?: number; linux?: number; irqchip?: boolean; vcpus?: number } = {}) {
    super({ sevEs: true, irqchip: options.irqchip ?? true, type: options.type ?? 3, ...(options.vcpus ? { vcpus: options.vcpus } : {}) })
    const { view } = this.core
    if (options.version !== undefined) view.setUint32(this.vm + L.VM_GHCB_VERSION, options.version, true)
    if (options.linux !== undefined) view.setUint32(this.vm + L.VM_LINUX, options.linux, true)
    // vmgexit; jmp back
    this.write(CODE, [0xf3, 0x0f, 0x01, 0xd9, 0xeb, 0xfa])
    call(this.core, 'pspEncrypt', this.backing, BigInt(CODE), 16, 1)
    for (const s of this.cpus) {
      this.enter(CODE, s)
      this.cpuid(s, [
        [0, 0, 0, 0xd, 0x68747541, 0x444d4163, 0x69746e65],
        [1, 0, 0, 0xa00f11, 0, 0x80000000, 0x178bfbff],
        [0xd, 0, 1, 7, 0, 0x340, 0],
        [0xd, 2, 1, 256, 576, 0, 0],
        [0x8000001f, 0, 0, 10, 51, 0, 0],
      ])
      call(this.core, 'vmsaSeal', s)
    }
  }

  cpuid(s: number, entries: readonly (readonly number[])[]): void {
    const { view } = this.core
    view.setUint32(s + L.VCPU_CPUID, entries.length, true)
    entries.forEach((e, i) => {
      const at = s + L.VCPU_CPUID + 16 + i * 40
      for (const [j, value] of e.entries()) view.setUint32(at + j * 4, value, true)
    })
    call(this.core, 'cpuidChanged', s)
  }

  get ghcbMsr(): bigint {
    return this.u64(L.CPU_GHCB)
  }
  set ghcbMsr(value: bigint) {
    this.core.view.setBigUint64(this.s + L.CPU_GHCB, value, true)
  }

  /** One VMGEXIT by the MSR protocol. */
  msr(value: bigint): bigint {
    this.ghcbMsr = value
    this.core.view.setBigUint64(this.s + L.CPU_RIP, BigInt(CODE), true)
    this.result = this.run(this.s, 1n)
    return this.ghcbMsr
  }

  result = 0

  /** One VMGEXIT by the page; returns [SW_EXITINFO1, SW_EXITINFO2]. `missing` leaves valid bits out. */
  page(fields: Fields, missing: readonly (keyof typeof OFFSETS)[] = [], usage = 0): readonly [number, bigint] {
    const bytes = new Uint8Array(4096)
    const view = new DataView(bytes.buffer)
    bytes.set(this.read(PAGE + 0x800, 0x7f0), 0x800)
    const all: Fields = { info1: 0, info2: 0, ...fields }
    for (const [name, value] of Object.entries(all) as [keyof typeof OFFSETS, bigint | number][]) {
      const offset = OFFSETS[name]
      if (name === 'cpl') bytes[offset] = Number(value)
      else view.setBigUint64(offset, BigInt(value), true)
      if (!missing.includes(name)) bytes[BITMAP + (offset >> 6)] = (bytes[BITMAP + (offset >> 6)] as number) | (1 << ((offset >> 3) & 7))
    }
    view.setUint32(0xffc, usage, true)
    this.write(PAGE, bytes)
    this.ghcbMsr = BigInt(PAGE)
    this.core.view.setBigUint64(this.s + L.CPU_RIP, BigInt(CODE), true)
    this.result = this.run(this.s, 1n)
    return this.info()
  }

  info(): readonly [number, bigint] {
    return [Number(this.field('info1')), this.field('info2')]
  }
  field(name: keyof typeof OFFSETS): bigint {
    return this.read64(PAGE + OFFSETS[name])
  }
  isValid(name: keyof typeof OFFSETS): boolean {
    const offset = OFFSETS[name]
    return (((this.read(PAGE + BITMAP, 16)[offset >> 6] as number) >> ((offset >> 3) & 7)) & 1) !== 0
  }
  /** Lets the completion of an exit run, without executing anything. */
  complete(): void {
    this.core.view.setUint8(this.s + L.VCPU_RUN + 1, 0)
    this.core.view.setBigUint64(this.s + L.CPU_RIP, BigInt(CODE + 4), true)
    this.result = this.run(this.s, 1n)
  }
}

const OK = [0, 0n] as const
const bad = (code: number): readonly [number, bigint] => [2, BigInt(code)]

test('MSR protocol', () => {
  const g = new EsGuest()
  assert.is(g.msr(0x002n), (2n << 48n) | (1n << 32n) | (51n << 24n) | 1n)
  assert.is(g.msr((1n << 32n) | (0n << 30n) | 4n), (0xa00f11n << 32n) | 5n)
  assert.is(g.msr((1n << 32n) | (3n << 30n) | 4n), (0x178bfbffn << 32n) | (3n << 30n) | 5n)
  assert.is(g.msr((0x8000001fn << 32n) | (1n << 30n) | 4n), (51n << 32n) | (1n << 30n) | 5n)
  assert.is(g.msr(0x080n), (3n << 12n) | 0x081n)
  assert.is(g.msr(0x016n), 0x016n, 'unknown codes leave the MSR as it is')
  assert.is(g.msr(0xabcn), 0xabcn)
  for (const code of [0x100n, 0x10n, 0x12n, 0x14n]) {
    g.msr(0x1000n | code)
    assert.is(g.result, 0)
    assert.is(g.reason(), EXIT.SYSTEM_EVENT)
    const p = g.payload()
    assert.equal([p.getUint32(0, true), p.getUint32(4, true), p.getBigUint64(8, true)], [6, 1, 0x1000n | code])
  }
  const legacy = new EsGuest({ type: 0 })
  assert.is(legacy.msr(0x002n) >> 48n, 1n)
})

test('a page that is not there resumes the guest silently', () => {
  const g = new EsGuest()
  assert.is(g.msr(0n), 0n)
  assert.is(g.result, -4)
  assert.is(g.msr(0x40000000n), 0x40000000n)
  assert.is(g.result, -4)
})

test('a GHCB in a private page reads as ciphertext', () => {
  const g = new EsGuest()
  call(g.core, 'pspEncrypt', g.backing, BigInt(PAGE), 4096, 1)
  g.ghcbMsr = BigInt(PAGE)
  g.core.view.setBigUint64(g.s + L.CPU_RIP, BigInt(CODE), true)
  g.run(g.s, 1n)
  assert.is(g.kvm32(L.VKVM_COUNT_USED), 1)
  assert.not.equal(g.kvm64(L.VKVM_COUNTS), 0n)
})

test('checks and their order', () => {
  const g = new EsGuest()
  assert.equal(g.page({ code: 0x72, rax: 1, rcx: 0 }, [], 1), bad(2), 'usage comes first')
  assert.equal(g.page({ code: 0x72, rax: 1, rcx: 0 }, ['code']), bad(4))
  assert.equal(g.page({ code: 0x72, rax: 1, rcx: 0 }, ['info1']), bad(4))
  assert.equal(g.page({ code: 0x72, rax: 1, rcx: 0 }, ['info2']), bad(4))
  assert.equal(g.page({ code: 0x78 }), bad(6), 'HLT is not an event')
  assert.equal(g.page({ code: 0x80000018 }), bad(6))
  assert.equal(g.page({ code: 0x1_0000_0072n, rax: 0, rcx: 0 }), bad(6))
  for (const code of [0x80000010, 0x80000011, 0x80000012, 0x80000013]) {
    assert.equal(g.page({ code, rax: 0, rbx: 0, scratch: BUFFER }), bad(6), '7.3: SNP only')
    assert.equal(new EsGuest({ linux: 612 }).page({ code, rax: 0, rbx: 0, scratch: BUFFER }), bad(4), '6.12: SNP only')
  }
  assert.not.ok(g.isValid('code'), 'the bitmap was cleared')
  assert.ok(g.isValid('info1') && g.isValid('info2') && g.isValid('rax') && g.isValid('rdx'))
})

test('required fields', () => {
  const need: Record<number, (keyof typeof OFFSETS)[]> = {
    0x37: ['rax'],
    0x6f: ['rcx'],
    0x72: ['rax', 'rcx'],
    0x81: ['rax', 'cpl'],
    0x8a: ['rax', 'rcx', 'rdx'],
    0x8b: ['rax', 'rcx'],
    0x80000001: ['scratch'],
    0x80000002: ['scratch'],
  }
  const g = new EsGuest()
  for (const [code, names] of Object.entries(need)) {
    const fields: Fields = { code: Number(code), ...Object.fromEntries(names.map((n) => [n, 0])) }
    for (const name of names) assert.equal(g.page(fields, [name]), bad(4), `${code} without ${name}`)
  }
  assert.equal(g.page({ code: 0x72, rax: 0xd, rcx: 0 }), bad(4), 'CPUID 0xd needs XCR0')
  assert.equal(g.page({ code: 0x7b, info1: 0x03f80010 }), bad(4), 'OUT needs RAX')
  assert.equal(g.page({ code: 0x7b, info1: 0x03f80014, info2: 1 }), bad(4), 'string I/O needs scratch')
  assert.equal(g.page({ code: 0x7c }), bad(4))
  assert.equal(g.page({ code: 0x7c, info1: 1, rcx: 0x10, rax: 0 }), bad(4), 'WRMSR needs RDX')
})

test('CPUID answers from the table, XSAVE size from the GHCB XCR0', () => {
  const g = new EsGuest()
  assert.equal(g.page({ code: 0x72, rax: 1, rcx: 0 }), OK)
  assert.equal([g.field('rax'), g.field('rdx')], [0xa00f11n, 0x178bfbffn])
  g.page({ code: 0x72, rax: 0xd, rcx: 0, xcr0: 3 })
  assert.is(g.field('rbx'), 576n)
  g.page({ code: 0x72, rax: 0xd, rcx: 0, xcr0: 7 })
  assert.is(g.field('rbx'), 832n)
  g.page({ code: 0x72, rax: 0x77, rcx: 0 })
  assert.equal([g.field('rax'), g.field('rbx'), g.field('rcx'), g.field('rdx')], [0n, 0n, 0n, 0n])
})

test('events without effect, and those that fail', () => {
  const g = new EsGuest()
  for (const code of [0x27, 0x76, 0x89, 0x80000003]) assert.equal(g.page({ code }), OK)
  assert.equal(g.page({ code: 0x37, rax: 0x400 }), OK)
  assert.equal(g.page({ code: 0x8a, rax: 0, rcx: 0, rdx: 0 }), OK)
  assert.equal(g.page({ code: 0x8b, rax: 0, rcx: 0 }), OK)
  g.page({ code: 0x6e })
  assert.is(g.result, 0)
  assert.is(g.reason(), EXIT.INTERNAL_ERROR)
  assert.equal([g.payload().getUint32(0, true), g.payload().getUint32(4, true), g.payload().getBigUint64(8, true)], [4, 2, 0x6en])
  g.page({ code: 0x8000ffff })
  assert.is(g.result, -22)
  g.page({ code: 0x8000fffe })
  assert.is(g.reason(), EXIT.SYSTEM_EVENT)
  assert.equal([g.payload().getUint32(0, true), g.payload().getBigUint64(8, true)], [6, BigInt(PAGE)])
  assert.equal(g.page({ code: 0x8000fffd }), [0, 3n])
})

test('AP jump table', () => {
  const g = new EsGuest()
  assert.equal(g.page({ code: 0x80000005, info1: 1 }), OK)
  assert.equal(g.page({ code: 0x80000005, info1: 0, info2: 0x9f000 }), OK)
  assert.equal(g.page({ code: 0x80000005, info1: 1 }), [0, 0x9f000n])
  assert.equal(g.page({ code: 0x80000005, info1: 2 }), bad(5))
})

test('MSRs: values, and #GP as an event to inject', () => {
  const g = new EsGuest()
  assert.equal(g.page({ code: 0x7c, info1: 1, rcx: 0x175, rax: 0x1234, rdx: 0 }), OK)
  assert.equal(g.page({ code: 0x7c, rcx: 0x175 }), OK)
  assert.equal([g.field('rax'), g.field('rdx')], [0x1234n, 0n])
  assert.equal(g.page({ code: 0x7c, rcx: 0x12345678 }), [1, 0x8000030dn])
})

test('VMMCALL', () => {
  const g = new EsGuest()
  g.page({ code: 0x81, rax: 99, cpl: 0 })
  assert.is(g.field('rax'), BigInt.asUintN(64, -1000n))
  g.page({ code: 0x81, rax: 99, cpl: 3 })
  assert.is(g.field('rax'), BigInt.asUintN(64, -1n))
  g.page({ code: 0x81, rax: 12, rbx: 0x1000, rcx: 1, rdx: 0x10, cpl: 0 })
  assert.is(g.field('rax'), BigInt.asUintN(64, -1000n), 'not enabled')
  g.core.view.setUint32(g.vm + L.VM_HYPERCALL_EXITS, 0x1000, true)
  g.page({ code: 0x81, rax: 12, rbx: 0x1001, rcx: 1, rdx: 0x10, cpl: 0 })
  assert.is(g.field('rax'), BigInt.asUintN(64, -22n))
  g.page({ code: 0x81, rax: 12, rbx: 0x1000, rcx: 1, rdx: 0x10, cpl: 0 })
  assert.is(g.reason(), EXIT.HYPERCALL)
  const p = g.payload()
  assert.equal(
    [0, 8, 16, 24, 56, 64].map((o) => p.getBigUint64(o, true)),
    [12n, 0x1000n, 1n, 0x10n, 0n, 1n],
  )
  p.setBigUint64(56, 22n, true)
  g.complete()
  assert.is(g.field('rax'), 22n)
})

test('port I/O: IN merges into RAX, OUT, the kernel bus, no size', () => {
  const g = new EsGuest()
  g.page({ code: 0x7b, info1: 0x03f8_0011, rax: 0x1234 }) // in al
  assert.equal(g.io(), { write: false, size: 1, port: 0x3f8, count: 1 })
  assert.equal(g.info(), OK)
  g.pio()[0] = 0xab
  g.complete()
  assert.is(g.field('rax'), 0x12abn)
  g.page({ code: 0x7b, info1: 0x0402_0010, rax: 0x41 })
  assert.equal(g.io(), { write: true, size: 1, port: 0x402, count: 1 })
  assert.is(g.pio()[0], 0x41)
  g.complete()
  assert.equal(g.page({ code: 0x7b, info1: 0x0021_0010, rax: 0x5a }), OK)
  assert.is(g.result, -4)
  g.page({ code: 0x7b, info1: 0x0021_0011 })
  assert.is(g.field('rax'), 0x5an)
  assert.equal(g.page({ code: 0x7b, info1: 0x0021_0001 }), OK)
})

test('string I/O through the shared buffer', () => {
  const g = new EsGuest()
  g.write(
    BUFFER,
    [...'hello'].map((c) => c.charCodeAt(0)),
  )
  g.page({ code: 0x7b, info1: 0x0402_001c, info2: 5, scratch: BUFFER }) // rep outsb
  assert.equal(g.io(), { write: true, size: 1, port: 0x402, count: 5 })
  assert.is(String.fromCharCode(...g.pio().slice(0, 5)), 'hello')
  g.complete()
  g.page({ code: 0x7b, info1: 0x0510_001d, info2: 4, scratch: BUFFER + 8 }) // rep insb
  assert.equal(g.io(), { write: false, size: 1, port: 0x510, count: 4 })
  g.pio().set([9, 8, 7, 6])
  g.complete()
  assert.equal([...g.read(BUFFER + 8, 4)], [9, 8, 7, 6])
  g.page({ code: 0x7b, info1: 0x0510_001c, info2: 0x8000_0000, scratch: BUFFER })
  assert.is(g.result, -22)
})

test('scratch rules by protocol version', () => {
  const g = new EsGuest()
  const out = (scratch: number, info2: number): readonly [number, bigint] => g.page({ code: 0x7b, info1: 0x0402_001c, info2, scratch })
  assert.equal(out(0, 1), bad(3))
  assert.equal(out(PAGE + 0x7ff, 1), bad(3))
  assert.equal(out(BUFFER, 2033), bad(3))
  assert.equal(out(0x2000, 1), bad(3), 'outside the page with version 2')
  const old = new EsGuest({ version: 1 })
  old.write(0x2000, [0x61, 0x62])
  old.page({ code: 0x7b, info1: 0x0402_001c, info2: 2, scratch: 0x2000 })
  assert.equal(old.io(), { write: true, size: 1, port: 0x402, count: 2 })
  old.complete()
  assert.equal(old.page({ code: 0x7b, info1: 0x0402_001c, info2: 0x10001, scratch: 0x2000 }), bad(3))
  old.page({ code: 0x7b, info1: 0x0402_001c, info2: 2, scratch: 0x40000000 })
  assert.is(old.result, -14)
})

test('MMIO: pieces, the kernel bus, lengths', () => {
  const g = new EsGuest()
  g.page({ code: 0x80000001, info1: 0xb0000000, info2: 4, scratch: BUFFER })
  assert.is(g.reason(), EXIT.MMIO)
  const p = g.payload()
  assert.equal([p.getBigUint64(0, true), p.getUint32(16, true), p.getUint8(20)], [0xb0000000n, 4, 0])
  p.setBigUint64(8, 0x11223344n, true)
  g.complete()
  assert.equal([...g.read(BUFFER, 4)], [0x44, 0x33, 0x22, 0x11])
  g.write(BUFFER, [1, 2, 3, 4])
  g.page({ code: 0x80000002, info1: 0xb0000000, info2: 4, scratch: BUFFER })
  assert.equal([p.getBigUint64(8, true), p.getUint8(20)], [0x04030201n, 1])
  g.complete()
  assert.equal(g.page({ code: 0x80000001, info1: 0xfee00030, info2: 4, scratch: BUFFER }), OK)
  assert.equal([...g.read(BUFFER, 4)], [0x14, 0x00, 0x05, 0x00])
  assert.equal(g.page({ code: 0x80000001, info1: 0xb0000000, info2: 0, scratch: BUFFER }), OK)
  assert.equal(g.page({ code: 0x80000001, info1: 0xb0000000, info2: 9, scratch: BUFFER }), bad(5))
  assert.equal(g.page({ code: 0x80000001, info1: 0xb0000000, info2: 8, scratch: 0 }), bad(3))
  const old = new EsGuest({ version: 1 })
  old.page({ code: 0x80000001, info1: 0xb0000000, info2: 12, scratch: BUFFER })
  assert.is(old.payload().getUint32(16, true), 8)
  old.payload().setBigUint64(8, 0x0807060504030201n, true)
  old.run(old.s, 1n)
  assert.equal([old.payload().getBigUint64(0, true), old.payload().getUint32(16, true)], [0xb0000008n, 4])
  old.payload().setBigUint64(8, 0x0c0b0a09n, true)
  old.complete()
  assert.equal([...old.read(BUFFER, 12)], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
})

test('AP reset hold: INIT and SIPI release it, a first SIPI only starts the vCPU', () => {
  const g = new EsGuest({ vcpus: 2 })
  const ap = g.cpus[1] as number
  const { view } = g.core
  assert.is(view.getUint32(ap + L.CPU_HALTED, true), 1)
  const icr = (value: number): void => {
    g.write(BUFFER, [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, 0])
    g.page({ code: 0x80000002, info1: 0xfee00300, info2: 4, scratch: BUFFER })
  }
  icr(0xc4500)
  icr(0xc4609)
  assert.is(g.run(ap, 1n), -4)
  assert.is(view.getUint32(ap + L.CPU_HALTED, true), 0)
  assert.is(g.rip(ap), CODE + 4, 'runs the sealed state')
  // hold by the MSR protocol
  view.setBigUint64(ap + L.CPU_GHCB, 6n, true)
  view.setBigUint64(ap + L.CPU_RIP, BigInt(CODE), true)
  g.run(ap, 1n)
  assert.is(view.getUint32(ap + L.CPU_HALTED, true), 9)
  assert.is(view.getBigUint64(ap + L.CPU_GHCB, true), 7n)
  icr(0xc4500)
  icr(0xc4609)
  g.run(ap, 1n)
  assert.is(view.getUint32(ap + L.CPU_HALTED, true), 0)
  assert.is(view.getBigUint64(ap + L.CPU_GHCB, true), 0x1007n)
})

test('AP reset hold without an APIC in the kernel leaves for userspace', () => {
  const g = new EsGuest({ irqchip: false })
  g.page({ code: 0x80000004 })
  assert.equal([g.result, g.reason()], [0, EXIT.AP_RESET_HOLD])
  g.complete()
  assert.equal(g.info(), OK)
})

test('events are counted', () => {
  const g = new EsGuest()
  g.msr(2n)
  g.page({ code: 0x72, rax: 0, rcx: 0 })
  g.page({ code: 0x72, rax: 0, rcx: 0 })
  assert.is(g.kvm32(L.VKVM_COUNT_USED), 2)
  assert.equal(
    [0, 8, 16, 24].map((o) => g.kvm64(L.VKVM_COUNTS + o)),
    [0x8000000000000002n, 1n, 0x72n, 2n],
  )
})

test('a GHCB in the page of running code: what KVM writes there is noise to the guest, also where it was decoded before', () => {
  const HOME = 0x4000
  for (const inCode of [false, true]) {
    const g = new EsGuest()
    const code = new Uint8Array(4096).fill(0x90)
    // vmgexit; jmp to 0x390: mov ax, 0x1234; jmp back to it. KVM answers in 0x398 to 0x3a7.
    code.set([0xf3, 0x0f, 0x01, 0xd9, 0xeb, 0x0a], 0x380)
    code.set([0xb8, 0x34, 0x12, 0xeb, 0xfb], 0x390)
    g.write(HOME, code)
    call(g.core, 'pspEncrypt', g.backing, BigInt(HOME), 4096, 1)
    const view = (rip: number): void => g.core.view.setBigUint64(g.s + L.CPU_RIP, BigInt(rip), true)
    view(HOME + 0x390)
    g.run(g.s, 50n)
    assert.is(g.reg(0) & 0xffffn, 0x1234n, 'warm')
    const before = g.read(HOME + 0x390, 32)
    g.setReg(0, 0n)
    view(HOME + 0x380)
    g.ghcbMsr = BigInt(inCode ? HOME : PAGE)
    g.run(g.s, 1n)
    // Ciphertext, or zeros without valid bits: refused either way.
    assert.is(Number(g.read64((inCode ? HOME : PAGE) + OFFSETS.info1)), 2)
    assert.is(g.rip(), HOME + 0x384)
    g.run(g.s, 2n)
    const after = g.read(HOME + 0x390, 32)
    assert.is(Buffer.from(before).equals(after), !inCode)
    // A write of eight bytes changes its whole granule of 16.
    assert.is((g.reg(0) & 0xffffn) === 0x1234n, !inCode, inCode ? 'noise' : 'as it was')
  }
})

test.run()
