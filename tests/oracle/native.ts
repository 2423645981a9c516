/** The physical CPU: native.c runs batches of cases through it. */
import { NativeServer, SIGNAL_FLAGS } from '../support/native-program.ts'
import type { Case } from './generate.ts'
import { COMPAT16, COMPAT32, FX, IN_SIZE, MEM, OUT_SIZE, WINDOW } from './place.ts'

/** What came out of one case. */
export interface Outcome {
  /** Exception vector, or RAN. */
  vector: number
  error: number
  cr2: bigint
  rip: bigint
  gpr: BigUint64Array
  rflags: bigint
  /** Contents of the windows if they changed. */
  window: Uint8Array | undefined
  /** FXSAVE image if one was given. */
  fx: Uint8Array | undefined
}

export class Native {
  private readonly helper = new NativeServer('oracle/native.c', SIGNAL_FLAGS)

  /** `windows[i]` undefined: that of the case before. */
  async run(cases: readonly Case[], windows: readonly (Uint8Array | undefined)[]): Promise<Outcome[]> {
    const size = cases.reduce((sum, c, i) => sum + IN_SIZE + (c.fx ? 512 : 0) + (windows[i] ? WINDOW : 0), 8)
    const request = Buffer.alloc(size)
    request.writeUInt32LE(cases.length, 0)
    let at = 8
    cases.forEach((c, i) => {
      const window = windows[i]
      request.set(c.bytes, at)
      request.writeUInt32LE(c.length, at + 96)
      request.writeUInt32LE((c.fx ? FX : 0) | (window ? MEM : 0) | (c.bits === 32 ? COMPAT32 : c.bits === 16 ? COMPAT16 : 0), at + 104)
      request.set(new Uint8Array(c.gpr.buffer), at + 112)
      request.writeBigUInt64LE(c.rflags, at + 240)
      request.writeUInt32LE(c.slot, at + 108)
      at += IN_SIZE
      if (c.fx) {
        request.set(c.fx, at)
        at += 512
      }
      if (window) {
        request.set(window, at)
        at += WINDOW
      }
    })
    this.helper.send(request)
    const head = await this.helper.take(8)
    const reply = await this.helper.take(head.readUInt32LE(0))
    const stray = cases[head.readUInt32LE(4) - 1]
    if (stray)
      throw new Error(
        `oracle: a case changes memory outside the windows: ${stray.row.text}, bytes ${Buffer.from(stray.bytes).toString('hex')}, registers ${[...stray.gpr].map((v) => v.toString(16)).join(' ')}`,
      )
    const outcomes: Outcome[] = []
    at = 0
    for (const c of cases) {
      const flags = reply.readUInt32LE(at)
      const gpr = new BigUint64Array(16)
      for (let i = 0; i < 16; i++) gpr[i] = reply.readBigUInt64LE(at + 32 + i * 8)
      const outcome: Outcome = {
        vector: reply.readUInt32LE(at + 4),
        error: reply.readUInt32LE(at + 8),
        cr2: reply.readBigUInt64LE(at + 16),
        rip: reply.readBigUInt64LE(at + 24),
        gpr,
        rflags: reply.readBigUInt64LE(at + 160),
        window: undefined,
        fx: undefined,
      }
      at += OUT_SIZE
      if (c.fx) {
        outcome.fx = reply.subarray(at, at + 512)
        at += 512
      }
      if (flags & MEM) {
        outcome.window = reply.subarray(at, at + WINDOW)
        at += WINDOW
      }
      outcomes.push(outcome)
    }
    return outcomes
  }

  close(): void {
    this.helper.close()
  }
}
