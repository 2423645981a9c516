/** Reader of the MOO format of SingleStepTests (chunks: tag, u32 length, payload), as far as the 80286 vectors need it. */

export interface MooState {
  /** ax bx cx dx cs ss ds es sp bp si di ip flags; undefined where unchanged. */
  regs: (number | undefined)[]
  ram: [address: number, value: number][]
}

export interface MooCase {
  index: number
  bytes: Uint8Array
  initial: MooState
  final: MooState
  /** Vector. */
  exception?: number
}

export interface Chunk {
  tag: string
  /** With its head of 8 bytes. */
  whole: Uint8Array
  body: Uint8Array
}

const viewOf = (b: Uint8Array): DataView => new DataView(b.buffer, b.byteOffset, b.byteLength)

export function* chunks(data: Uint8Array): Generator<Chunk> {
  for (let at = 0; at + 8 <= data.length; ) {
    const end = at + 8 + viewOf(data).getUint32(at + 4, true)
    if (end > data.length) throw new Error(`chunk at ${at} is longer than the file`)
    yield { tag: String.fromCharCode(...data.subarray(at, at + 4)), whole: data.subarray(at, end), body: data.subarray(at + 8, end) }
    at = end
  }
}

function state(body: Uint8Array): MooState {
  const result: MooState = { regs: [], ram: [] }
  for (const { tag, body: b } of chunks(body)) {
    const v = viewOf(b)
    if (tag === 'REGS') {
      const mask = v.getUint16(0, true)
      let at = 2
      for (let i = 0; i < 14; i++) {
        if ((mask & (1 << i)) === 0) continue
        result.regs[i] = v.getUint16(at, true)
        at += 2
      }
    } else if (tag === 'RAM ') {
      const n = v.getUint32(0, true)
      for (let i = 0; i < n; i++) result.ram.push([v.getUint32(4 + i * 5, true), v.getUint8(8 + i * 5)])
    }
  }
  return result
}

/** A TEST chunk: u32 index, then chunks. */
export function mooCase(body: Uint8Array): MooCase {
  const empty: MooState = { regs: [], ram: [] }
  const c: MooCase = { index: viewOf(body).getUint32(0, true), bytes: new Uint8Array(), initial: empty, final: empty }
  for (const { tag, body: b } of chunks(body.subarray(4))) {
    if (tag === 'BYTS') c.bytes = b.subarray(4)
    else if (tag === 'INIT') c.initial = state(b)
    else if (tag === 'FINA') c.final = state(b)
    else if (tag === 'EXCP') c.exception = b[0] ?? 0
  }
  return c
}
