/**
 * The room that the tests of every memory form share: a long-mode machine with every instruction turned on, its third GiB mapped
 * page by page (page N of RAM at page N of TABLE), and the registers of a form's run: small numbers where instructions count,
 * ordinary numbers in x87 and SSE, so that no form faults for another reason than its operand's address.
 */
import { call } from '../support/core.ts'
import { L, Machine, PML4 } from '../system/machine.ts'

/** Page table of what lies below 2 MiB. */
export const TABLE = 0x60000

/** What the CPU keeps of the machine's past: translations and decoded blocks. */
const PAST = [L.CPU_JUMP_KEY, L.CPU_BLOCKS_TOP, L.CPU_TLB_CONTEXT, L.CPU_TLB_BASE]

export class FormBench {
  readonly m = new Machine('long')
  readonly #cpu: Uint8Array

  /** `prepare`: what else is there, before the first instruction. */
  constructor(prepare: (m: Machine) => void = () => {}) {
    const { m } = this
    for (let i = 0; i < 512; i++) m.poke(TABLE + i * 8, BigInt(i * 4096) | 3n)
    m.poke(PML4 + 0x2000, BigInt(TABLE) | 3n)
    // FSGSBASE, OSFXSR, OSXMMEXCPT, OSXSAVE
    m.set64(L.CPU_CR4, m.u64(L.CPU_CR4) | 0x50600n)
    m.set64(L.CPU_XCR0, 3n)
    // MOVDIRI and MOVDIR64B exist only with CPUID (leaf 7, ECX 27 and 28).
    m.set32(L.CPU_FEATURES + 3 * 4, (1 << 27) | (1 << 28))
    prepare(m)
    m.changed()
    this.#cpu = m.core.bytes.slice(m.s, m.s + 0x1000)
  }

  write(at: number, bytes: Uint8Array): void {
    this.m.core.bytes.set(bytes, L.STAGING)
    call(this.m.core, 'backingWrite', this.m.backing, BigInt(at), L.STAGING, bytes.length)
  }

  read(at: number, n: number): Buffer {
    call(this.m.core, 'backingRead', this.m.backing, BigInt(at), L.STAGING, n)
    return Buffer.from(this.m.core.bytes.slice(L.STAGING, L.STAGING + n))
  }

  /** Maps pages of RAM at their own addresses with these bits (0: absent). */
  map(...pages: readonly (readonly [at: number, bits: bigint])[]): void {
    for (const [page, bits] of pages) this.m.poke(TABLE + (page >> 12) * 8, BigInt(page) | bits)
    call(this.m.core, 'flushTlb', this.m.s)
  }

  /** The CPU as it was at first; what it has translated and decoded stays. */
  restart(): void {
    const { m } = this
    const keep = PAST.map((at) => [at, m.u32(at)] as const)
    m.core.bytes.set(this.#cpu, m.s)
    for (const [at, value] of keep) m.set32(at, value)
  }

  /** General registers: addresses 0x40 apart from `scratch`, RAX, RCX and RDX small. */
  general(scratch: number): void {
    const { m } = this
    for (let n = 0; n < 16; n++) m.setReg(n, BigInt(scratch + n * 0x40))
    m.setReg(0, 0x21n)
    m.setReg(1, 3n)
    m.setReg(2, 0n)
  }

  /** XMM registers and the x87 stack, three of its registers in use; CF set. */
  vectors(
    xmm = (i: number): number => (i * 29 + 7) & 0x3f,
    st = (i: number): readonly [significand: bigint, exponent: number] => [0x8000000000000000n + BigInt(i) * 0x1000000000000n, 0x3fff + i],
  ): void {
    const { m } = this
    const { bytes, view } = m.core
    for (let i = 0; i < 512; i++) bytes[m.s + L.CPU_XMM + i] = (i & 31) < 16 ? xmm(i) : 0
    for (let i = 0; i < 8; i++) {
      const [significand, exponent] = st(i)
      view.setBigUint64(m.s + L.CPU_ST + i * 16, significand, true)
      view.setUint16(m.s + L.CPU_ST + i * 16 + 8, exponent, true)
    }
    m.set32(L.CPU_FTOP, 5)
    m.set32(L.CPU_FTAG, 0xe0)
    m.setFlags(3n)
  }

  /** Bytes of the vCPU structure in hexadecimal. */
  part(from: number, size: number): string {
    return Buffer.from(this.m.core.bytes.subarray(this.m.s + from, this.m.s + from + size)).toString('hex')
  }
}
