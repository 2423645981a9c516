/** Fixed-offset structures in the core's linear memory; both compilers get their constants from these. */

export type Scalar = 'u8' | 'u16' | 'u32' | 'u64'
const sizeOf: Record<Scalar, number> = { u8: 1, u16: 2, u32: 4, u64: 8 }

export interface Field {
  readonly name: string
  readonly offset: number
  readonly type: Scalar
  readonly count: number
  readonly doc: string
}

export interface Struct {
  /** Prefix of the generated constants, e.g. `CPU` gives `CPU_RIP`. */
  readonly name: string
  readonly doc: string
  readonly fields: readonly Field[]
  readonly size: number
}

/** One row: name, type, documentation, element count (1), explicit offset (next aligned). */
export type Row = readonly [name: string, type: Scalar, doc: string, count?: number, at?: number]

/** Lays the rows out in order, each aligned to its size; an explicit offset may only move forward. */
export function struct(name: string, doc: string, rows: readonly Row[], size?: number): Struct {
  let at = 0
  const fields = rows.map(([field, type, fieldDoc, count = 1, fixed]) => {
    const step = sizeOf[type]
    let offset = Math.ceil(at / step) * step
    if (fixed !== undefined) {
      if (fixed < offset) throw new RangeError(`${name}.${field}: offset 0x${fixed.toString(16)} overlaps the field before it`)
      offset = fixed
    }
    at = offset + step * count
    return { name: field, offset, type, count, doc: fieldDoc }
  })
  if (size !== undefined && at > size) throw new RangeError(`${name} needs ${at} bytes, ${size} are reserved`)
  return { name, doc, fields, size: size ?? Math.ceil(at / 8) * 8 }
}

export interface Region {
  readonly name: string
  readonly doc: string
  readonly offset: number
  readonly size: number
}

/** A chain of named regions, each aligned to 4 KiB (or more), in order. */
export function chain(start: number, rows: readonly (readonly [name: string, size: number, doc: string])[]): readonly Region[] {
  let at = start
  return rows.map(([name, size, doc]) => {
    const region = { name, doc, offset: at, size }
    at = Math.ceil((at + size) / 4096) * 4096
    return region
  })
}
