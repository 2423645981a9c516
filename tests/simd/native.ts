/** The physical CPU as the oracle of x87 and SSE: tests/oracle/fpu.c. */
import { spawnSync } from 'node:child_process'
import { NativeProgram } from '../support/native-program.ts'

/** Bytes of guest memory that a case may read and write, and their address in both worlds: half of them on either side of a page boundary. */
export const BLOCK = 0x37fe00
export const BLOCK_SIZE = 1024
/** No exception. */
export const NONE = 0xff

/** State before or after one instruction: RAX RCX RDX RBX, RFLAGS, the FXSAVE64 image and the memory block. */
export interface State {
  gpr: bigint[]
  flags: bigint
  fx: Uint8Array
  memory: Uint8Array
}
export interface Outcome extends State {
  vector: number
}

const IN = 16 + 32 + 8 + 512 + BLOCK_SIZE
const OUT = 8 + 32 + 8 + 512 + BLOCK_SIZE

export function runNative(cases: readonly { code: readonly number[]; state: State }[]): Outcome[] {
  using program = new NativeProgram('oracle/fpu.c')
  const input = Buffer.alloc(IN * cases.length)
  cases.forEach(({ code, state }, i) => {
    const at = i * IN
    input[at] = code.length
    code.forEach((b, k) => {
      input[at + 1 + k] = b
    })
    state.gpr.forEach((g, k) => input.writeBigUInt64LE(g, at + 16 + 8 * k))
    input.writeBigUInt64LE(state.flags, at + 48)
    input.set(state.fx, at + 56)
    input.set(state.memory, at + 568)
  })
  const { stdout, signal, status } = spawnSync(program.path, { input, maxBuffer: OUT * cases.length + 4096 })
  if (stdout.length !== OUT * cases.length)
    throw new Error(`oracle ended after ${stdout.length / OUT} of ${cases.length} cases (${signal ?? status})`)
  return cases.map((_, i) => {
    const o = stdout.subarray(i * OUT, (i + 1) * OUT)
    return {
      vector: Number(o.readBigUInt64LE(0)),
      gpr: [0, 1, 2, 3].map((k) => o.readBigUInt64LE(8 + 8 * k)),
      flags: o.readBigUInt64LE(40),
      fx: new Uint8Array(o.subarray(48, 560)),
      memory: new Uint8Array(o.subarray(560)),
    }
  })
}
