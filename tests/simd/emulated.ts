/** Runs one instruction in the core: 64-bit mode, identity paging, every register from a State. */
import { call, L } from '../support/core.ts'
import { Machine, STACK, STUBS } from '../system/machine.ts'
import { BLOCK, BLOCK_SIZE, NONE } from './native.ts'
import type { Outcome, State } from './native.ts'

const CODE = 0x100000
const SLOT = 32
/** CR0: PG, ET, NE, MP, PE; CR4: PAE, OSFXSR, OSXMMEXCPT, OSXSAVE. */
const CR0 = 0x80000033n
const CR4 = 0x40620n

export class Emulated {
  private readonly m = new Machine('long')
  private next = CODE
  private readonly control: { cr0: bigint; cr4: bigint }

  constructor(control: { cr0?: bigint; cr4?: bigint } = {}) {
    this.control = { cr0: control.cr0 ?? CR0, cr4: control.cr4 ?? CR4 }
  }

  private write(gpa: number, bytes: Uint8Array): void {
    this.m.core.bytes.set(bytes, L.STAGING)
    call(this.m.core, 'backingWrite', this.m.backing, BigInt(gpa), L.STAGING, bytes.length)
  }

  /** `loose`: the code may be followed by bytes of its own, so that any end but an exception counts as none. */
  run(code: readonly number[], state: State, loose = false): Outcome {
    const { m } = this
    const { view, bytes } = m.core
    const s = m.s
    const rip = this.next
    this.next = rip + SLOT < BLOCK - 0x1000 ? rip + SLOT : CODE
    this.write(rip, Uint8Array.from([...code, 0xf4]))
    this.write(BLOCK, state.memory)
    const fx = new DataView(state.fx.buffer, state.fx.byteOffset)
    const status = fx.getUint16(2, true)
    const control = fx.getUint16(0, true)
    const top = (status >> 11) & 7
    m.set32(L.CPU_FCW, control)
    m.set32(L.CPU_FSW, (status & 0x477f) | ((status & ~control & 0x3f) !== 0 ? 0x8080 : 0))
    m.set32(L.CPU_FTOP, top)
    m.set32(L.CPU_FTAG, fx.getUint8(4))
    m.set32(L.CPU_MXCSR, fx.getUint32(24, true))
    for (const field of [L.CPU_FIP, L.CPU_FDP]) m.set64(field, 0n)
    for (const field of [L.CPU_FOP, L.CPU_FCS, L.CPU_FDS]) m.set32(field, 0)
    for (let i = 0; i < 8; i++) bytes.set(state.fx.subarray(32 + i * 16, 42 + i * 16), s + L.CPU_ST + (((i + top) & 7) << 4))
    for (let i = 0; i < 16; i++) bytes.set(state.fx.subarray(160 + i * 16, 176 + i * 16), s + L.CPU_XMM + i * 32)
    for (let i = 0; i < 16; i++) m.setReg(i, 0n)
    state.gpr.forEach((g, i) => m.setReg(i, g))
    m.setReg(4, BigInt(STACK))
    m.setReg(6, BigInt(BLOCK))
    m.setReg(7, BigInt(BLOCK))
    m.set64(L.CPU_CR0, this.control.cr0)
    m.set64(L.CPU_CR4, this.control.cr4)
    m.set64(L.CPU_XCR0, 3n)
    m.set64(L.CPU_RIP, BigInt(rip))
    m.set32(L.CPU_HALTED, 0)
    m.setFlags(state.flags)
    m.changed()
    const why = m.run(2)
    const at = Number(m.rip)
    const halted = at === rip + code.length + 1
    const raised = at > STUBS && at < STUBS + 0x1000 && (at - 1 - STUBS) % 16 === 0
    if (!halted && !raised && !loose) throw new Error(`stopped by ${why} at ${at.toString(16)}`)
    const image = new Uint8Array(512)
    const out = new DataView(image.buffer)
    const newTop = view.getUint32(s + L.CPU_FTOP, true)
    out.setUint16(0, m.u32(L.CPU_FCW), true)
    out.setUint16(2, m.u32(L.CPU_FSW) | (newTop << 11), true)
    image[4] = m.u32(L.CPU_FTAG)
    out.setUint32(24, m.u32(L.CPU_MXCSR), true)
    for (let i = 0; i < 8; i++) {
      const from = s + L.CPU_ST + (((i + newTop) & 7) << 4)
      image.set(bytes.subarray(from, from + 10), 32 + i * 16)
    }
    for (let i = 0; i < 16; i++) image.set(bytes.subarray(s + L.CPU_XMM + i * 32, s + L.CPU_XMM + i * 32 + 16), 160 + i * 16)
    call(m.core, 'backingRead', m.backing, BigInt(BLOCK), L.STAGING, BLOCK_SIZE)
    return {
      vector: raised ? (at - 1 - STUBS) / 16 : NONE,
      gpr: [0, 1, 2, 3].map((i) => m.reg(i)),
      flags: m.flags,
      fx: image,
      memory: bytes.slice(L.STAGING, L.STAGING + BLOCK_SIZE),
    }
  }
}
