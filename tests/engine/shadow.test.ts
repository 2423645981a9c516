/**
 * The instruction after STI and MOV SS: slices of every length end in it, NMIs and interrupts come between slices, its operand
 * misses the TLB or lies in MMIO. No NMI or interrupt may come between STI (MOV SS) and that instruction.
 */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { EXIT, GPR, Guest } from '../kvm-core/guest.ts'

const CODE = 0x1000
const HANDLER = 0x2000
const bytes = (hex: string): number[] => (hex.match(/../g) ?? []).map((b) => Number.parseInt(b, 16))

/** push bp; mov bp,sp; push ax; mov ax,[bp+2]; cmp ax,POST; jne 1f; inc word [3000]; 1: inc word [3002]; pop ax; pop bp; iret */
const handler = (post: number): number[] =>
  bytes(
    `5589e5508b46023d${(post & 255).toString(16).padStart(2, '0')}${(post >> 8).toString(16).padStart(2, '0')}7504ff060030ff060230585dcf`,
  )

interface Shape {
  name: string
  /** Before the shadow's instruction, and the rest of the loop up to its JMP. */
  head: string
  tail: string
}
const shapes: Shape[] = [
  // sti; test byte [bx],0; nop; cli; add bx,1000h; inc word [3004]
  { name: 'sti', head: 'fb', tail: 'f6070090fa81c30010ff060430' },
  // mov ss,dx; test byte [bx],0; nop; add bx,1000h; inc word [3004]
  { name: 'mov ss', head: '8ed2', tail: 'f607009081c30010ff060430' },
  // mov ss,dx; mov sp,8000h (what it is for)
  { name: 'mov ss; mov sp', head: '8ed2', tail: 'bc008090ff060430' },
  // sti; sti; sti; cli: only the first makes a shadow
  { name: 'sti; sti', head: 'fb', tail: 'fbfbfa90ff060430' },
  // sti; in al,60h (an exit); cli
  { name: 'sti; in', head: 'fb', tail: 'e460fa90ff060430' },
]

function drive(shape: Shape, slice: number, mmio: boolean, nmi: boolean): { bad: number; seen: number; turns: number } {
  const g = new Guest({ irqchip: true, pit: true })
  const { view } = g.core
  const post = CODE + shape.head.length / 2
  g.write(2 * 4, [HANDLER & 0xff, HANDLER >> 8, 0, 0])
  g.write(0x40 * 4, [HANDLER & 0xff, HANDLER >> 8, 0, 0])
  g.write(HANDLER, handler(post))
  g.write(0x3000, new Array<number>(8).fill(0))
  const body = bytes(shape.head + shape.tail)
  g.write(CODE, [...body, 0xeb, 256 - (body.length + 2)])
  view.setUint32(g.s + L.CPU_HALTED, 0, true)
  if (mmio) view.setBigUint64(g.s + L.CPU_SEGMENTS + L.SEG_GS * 16 + L.SEG_BASE, 0x80000000n, true)
  if (mmio) g.write(CODE, [...bytes(shape.head), 0x65, ...bytes(shape.tail), 0xeb, 256 - (body.length + 3)])
  g.enter(CODE)
  g.setReg(GPR.RSP, 0x9000n)
  for (let turn = 0; turn < 60; turn++) {
    if (nmi) call(g.core, 'queueNmi', g.s)
    else {
      view.setUint32(g.s + L.VCPU_KVM + L.VKVM_INTERRUPT, 0x140, true)
      view.setUint32(g.s + L.CPU_EVENT, view.getUint32(g.s + L.CPU_EVENT, true) | L.EVENT_INTERRUPT, true)
    }
    for (let left = slice; left > 0; ) {
      const from = g.u64(L.CPU_ICOUNT)
      g.run(g.s, BigInt(left))
      if (g.reason() === EXIT.IO || g.reason() === EXIT.MMIO) g.payload().setUint8(8, 0)
      left -= Number(g.u64(L.CPU_ICOUNT) - from) || 1
    }
  }
  const word = (at: number): number => (g.read(at, 1)[0] ?? 0) | ((g.read(at + 1, 1)[0] ?? 0) << 8)
  return { bad: word(0x3000), seen: word(0x3002), turns: word(0x3004) }
}

for (const shape of shapes) {
  for (const nmi of [true, false]) {
    test(`${shape.name}: no ${nmi ? 'NMI' : 'interrupt'} behind it`, () => {
      let seen = 0
      for (const mmio of shape.tail.startsWith('f607') ? [false, true] : [false]) {
        for (let slice = 1; slice <= 40; slice++) {
          const r = drive(shape, slice, mmio, nmi)
          assert.is(r.bad, 0, `slice ${slice}${mmio ? ', MMIO' : ''}: ${r.bad} of ${r.seen}`)
          seen += r.seen
        }
      }
      if (nmi || shape.name.startsWith('sti')) assert.ok(seen > 100, `${seen} seen`)
    })
  }
}

test.run()
