/**
 * Every memory form with its operand across two pages whose frames are not neighbours: whatever of the two translations the L1 and
 * L2 TLB know, it does what it does when they know nothing.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { opcodes } from '../../spec/opcodes/index.ts'
import { call } from '../support/core.ts'
import { CODE, gate, IST1, KCODE64, L, STUBS } from '../system/machine.ts'
import { FormBench, TABLE } from './bench.ts'
import { encodings } from './forms.ts'

const PAGE = 0x120000
const NEXT = PAGE + 4096
/** The frame behind NEXT; the one behind PAGE's own holds other bytes. */
const FRAME = 0x130000
const SCRATCH = 0x140000

const pattern = (salt: number): Uint8Array => Uint8Array.from({ length: 4096 }, (_, i) => (i * 37 + (i >> 8) * 11 + salt) & 0xff)

class Bench extends FormBench {
  constructor() {
    super((m) => {
      for (let vector = 0; vector < 20; vector++) m.idt(vector, gate(KCODE64, STUBS + vector * 16, 0x8e, 1))
      m.poke(TABLE + (NEXT >> 12) * 8, BigInt(FRAME) | 3n)
    })
  }

  /** Takes the page's tags out of the L1 arrays; the L2 keeps it. */
  forget(page: number): void {
    const { m } = this
    for (const array of [L.VCPU_TLB_USER, L.VCPU_TLB_SUPERVISOR, L.VCPU_TLB_SMAP]) {
      const entry = m.s + array + ((page >> 7) & 0x7fe0)
      for (const tag of [L.TLB_READ, L.TLB_WRITE, L.TLB_EXEC]) m.core.view.setBigUint64(entry + tag, (1n << 64n) - 1n, true)
    }
  }

  run(code: readonly number[], at: number, known: readonly number[], forgotten: readonly number[]): string {
    const { m } = this
    this.restart()
    call(m.core, 'flushTlb', m.s)
    this.write(PAGE, pattern(3))
    this.write(NEXT, pattern(101))
    this.write(FRAME, pattern(55))
    this.write(SCRATCH, new Uint8Array(0x1000).fill(0x49))
    this.general(SCRATCH + 0x800)
    m.setReg(4, 0x20000n)
    m.set64(L.CPU_RIP, BigInt(CODE))
    // or byte ptr [rbx], 0: the page may be written; the form itself stands alone in its block, behind a jump.
    const touch = [0x80, 0x0b, 0x00, 0xeb, 0x00]
    m.code([...touch, ...touch, 0xeb, 0x00, ...code, 0xf4, 0xf4, 0xf4])
    m.changed()
    for (const page of [PAGE, NEXT]) {
      m.setReg(3, BigInt(page))
      if (known.includes(page)) m.run(2)
      else m.set64(L.CPU_RIP, m.rip + 5n)
    }
    for (const page of forgotten) this.forget(page)
    this.general(SCRATCH + 0x800)
    m.setReg(3, BigInt(at))
    this.vectors()
    m.run(2)
    const memory = [PAGE, NEXT, FRAME].map((page) => this.read(page, 4096).toString('base64'))
    const part = this.part.bind(this)
    const frame = m.rip >= BigInt(STUBS) && m.rip < BigInt(STUBS + 0x1000) ? m.peek(IST1 - 40) : 0n
    return [m.rip, frame, m.flags & 0x8d5n, part(L.CPU_GPR, 128), part(L.CPU_ST, 128), part(L.CPU_XMM, 512), ...memory].join(' ')
  }
}

const apart = /^(VMRUN|VMLOAD|VMSAVE|INVLPGA|INVLPG|MONITOR)/
const both = [PAGE, NEXT]

test('every memory form across two pages that the TLBs know, half know, do not know', () => {
  const b = new Bench()
  const wrong: string[] = []
  let runs = 0
  for (const o of opcodes) {
    if (!o.modrm || o.mod === 'reg' || o.exact !== undefined || o.flags.has('no64') || apart.test(o.mnemonic)) continue
    for (const [variant, code] of encodings(o)) {
      for (const at of [NEXT - 1, NEXT - 3]) {
        const expected = b.run(code, at, [], [])
        for (const [how, known, forgotten] of [
          ['both in the L1', both, []],
          ['the first in the L2', both, [PAGE]],
          ['the second in the L2', both, [NEXT]],
          ['both in the L2', both, both],
          ['the first alone, in the L2', [PAGE], [PAGE]],
        ] as const) {
          runs++
          if (b.run(code, at, known, forgotten) !== expected)
            wrong.push(`${o.text} ${variant} (${Buffer.from(code).toString('hex')}) at ${at.toString(16)}: ${how}`)
        }
      }
    }
  }
  process.stdout.write(`  ${runs} runs\n`)
  assert.equal(wrong.slice(0, 20), [], `${wrong.length} wrong`)
  assert.ok(runs > 5000, `${runs}`)
})

test.run()
